"""What the OpenAPI document says about webhooks: requests that we send, in its own section."""

from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)

from domain.endpoints import WebhookEvent

_INTEGER = Schema(type=OpenAPIType.INTEGER)
_SESSION = Reference(ref="#/components/schemas/Session")
_BALANCE = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "balance": _INTEGER,
        "threshold": Schema(one_of=[_INTEGER, Schema(type=OpenAPIType.NULL)]),
    },
    required=["balance", "threshold"],
    description="As they are when the message is sent.",
)
_EVENTS: dict[WebhookEvent, tuple[str, Schema | Reference]] = {
    WebhookEvent.COMPLETED: ("A session completed", _SESSION),
    WebhookEvent.FAILED: ("A session failed, and its credit is, or will be, back", _SESSION),
    WebhookEvent.CREDITS_LOW: ("Your balance fell below your threshold", _BALANCE),
}
_DESCRIPTION = """\
Sent to each of your endpoints that asks for it, at least once and in no particular order. Messages
follow [Standard Webhooks](https://www.standardwebhooks.com); its libraries verify them. `data` is
read, and links in it are signed, at each attempt. Answer with a 2xx within 10 seconds. Otherwise
the message is sent again, for three days."""
_HEADERS = {
    "webhook-id": "The delivery's id, the same at each attempt: ignore one that you have seen.",
    "webhook-timestamp": "When this attempt was made, in seconds since 1970.",
    "webhook-signature": "`v1,` and the base64 of the HMAC-SHA256 of `id.timestamp.body`, by the"
    " endpoint's secret. After a rotation two of these, separated by a space.",
}


_HEADERS_OF_SESSIONS = {
    "traceparent": "The trace of the request that created the session, as W3C Trace Context.",
}


def describe_webhooks(document: OpenAPI) -> None:
    """Add the section ``webhooks``."""
    document.webhooks = {
        event.value: PathItem(post=_operation(event, summary, data))
        for event, (summary, data) in _EVENTS.items()
    }


def _headers(event: WebhookEvent) -> dict[str, str]:
    return _HEADERS if event is WebhookEvent.CREDITS_LOW else _HEADERS | _HEADERS_OF_SESSIONS


def _operation(event: WebhookEvent, summary: str, data: Schema | Reference) -> Operation:
    return Operation(
        tags=["Webhooks"],
        operation_id=event.name.lower() + "_event",
        summary=summary,
        description=_DESCRIPTION,
        security=[],
        parameters=[
            Parameter(
                name=name,
                param_in="header",
                required=True,
                description=description,
                schema=Schema(type=OpenAPIType.STRING),
            )
            for name, description in _headers(event).items()
        ],
        request_body=RequestBody(
            required=True,
            content={"application/json": OpenAPIMediaType(schema=_message(event, data))},
        ),
        responses={
            "2XX": OpenAPIResponse(description="Delivered."),
            "410": OpenAPIResponse(
                description="Nothing is to be sent any more: the endpoint is disabled."
            ),
            "default": OpenAPIResponse(description="Not delivered: it is sent again."),
        },
    )


def _message(event: WebhookEvent, data: Schema | Reference) -> Schema:
    return Schema(
        type=OpenAPIType.OBJECT,
        properties={
            "type": Schema(type=OpenAPIType.STRING, const=event.value),
            "timestamp": Schema(
                type=OpenAPIType.STRING,
                format=OpenAPIFormat.DATE_TIME,
                description="When it happened.",
            ),
            "data": data,
        },
        required=["type", "timestamp", "data"],
    )
