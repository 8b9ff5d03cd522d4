"""Webhooks: an owner's endpoints, their secrets, and what was delivered to them."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, patch, post, put
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, JSONBody, PathParameter, QueryParameter

from domain.endpoints import DeliveryStatus
from domain.webhooks import Webhooks
from entrypoints.http.inputs import (
    CursorText,
    Injected,
    Limit,
    OwnedRequest,
    StrictBody,
    cursor_after,
    position_after,
)
from entrypoints.http.openapi import failures
from entrypoints.http.webhook_schemas import (
    Alert,
    AlertEnvelope,
    DeletedEndpoint,
    DeletedEndpointEnvelope,
    DeliveryEnvelope,
    DeliveryItem,
    DeliveryPage,
    DeliveryPageEnvelope,
    EndpointChanges,
    EndpointEnvelope,
    EndpointItem,
    Endpoints,
    EndpointsEnvelope,
    FailedSince,
    NewAlert,
    NewEndpoint,
    Retried,
    RetriedEnvelope,
    SecretEnvelope,
    SecretItem,
)

_TAGS = ["Webhooks"]
_ENDPOINT = "/webhooks/{endpoint_id:str}"
_EXAMPLE = Example(
    value={"url": "https://shop.example/hooks/wearon", "events": ["generation.completed"]}
)
_NewEndpoint = Annotated[NewEndpoint, BodyKwarg(examples=[_EXAMPLE])]
EndpointIdInPath = Annotated[UUID, PathParameter(description="The endpoint's id.")]
DeliveryIdInPath = Annotated[UUID, PathParameter(description="The delivery's id.")]
StatusFilter = Annotated[
    DeliveryStatus | None, QueryParameter(description="Only deliveries in this status.")
]


class NewEndpointBody(StrictBody[NewEndpoint]):
    decoder = msgspec.json.Decoder(NewEndpoint)


class EndpointChangesBody(StrictBody[EndpointChanges]):
    decoder = msgspec.json.Decoder(EndpointChanges)


class FailedSinceBody(StrictBody[FailedSince]):
    decoder = msgspec.json.Decoder(FailedSince)


class NewAlertBody(StrictBody[NewAlert]):
    decoder = msgspec.json.Decoder(NewAlert)


@get(
    "/webhooks",
    tags=_TAGS,
    summary="List your endpoints",
    response_description="All of your endpoints, newest first.",
    responses=failures(401, 403, 503),
)
async def list_endpoints(request: OwnedRequest, webhooks: Injected[Webhooks]) -> EndpointsEnvelope:
    """Without their secrets."""
    found = await webhooks.all(request.user.owner)
    items = [EndpointItem.of(endpoint) for endpoint in found]
    return EndpointsEnvelope(data=Endpoints(items=items), error=None)


@post(
    "/webhooks",
    status_code=201,
    dto=NewEndpointBody,
    return_dto=None,
    tags=_TAGS,
    summary="Create an endpoint",
    response_description="The endpoint, with its secret.",
    responses=failures(401, 403, 409, 413, 415, 503),
)
async def create_endpoint(
    request: OwnedRequest, data: _NewEndpoint, webhooks: Injected[Webhooks]
) -> SecretEnvelope:
    """Your events are sent to it from now on, signed with `secret`, which is not shown again. The
    URL must be https, and its host on the public internet. A 409 means that you have as many
    endpoints as you can have."""
    issued = await webhooks.create(
        request.user.owner, url=data.url, events=data.events, description=data.description
    )
    return SecretEnvelope(data=SecretItem.issued(issued), error=None)


@get(
    _ENDPOINT,
    tags=_TAGS,
    summary="Get an endpoint",
    response_description="The endpoint.",
    responses=failures(401, 403, 404, 503),
)
async def get_endpoint(
    request: OwnedRequest, endpoint_id: EndpointIdInPath, webhooks: Injected[Webhooks]
) -> EndpointEnvelope:
    """Without its secret. Shows whether it is disabled, failing or paused."""
    endpoint = await webhooks.get(endpoint_id, request.user.owner)
    return EndpointEnvelope(data=EndpointItem.of(endpoint), error=None)


@patch(
    _ENDPOINT,
    dto=EndpointChangesBody,
    return_dto=None,
    tags=_TAGS,
    summary="Change an endpoint",
    response_description="The endpoint after the change.",
    responses=failures(401, 403, 404, 413, 415, 503),
)
async def change_endpoint(
    request: OwnedRequest,
    endpoint_id: EndpointIdInPath,
    data: JSONBody[EndpointChanges],
    webhooks: Injected[Webhooks],
) -> EndpointEnvelope:
    """`enabled` false stops messages to it: what happens meanwhile is sent once it is enabled. What
    waits goes to a changed URL as well."""
    endpoint = await webhooks.update(endpoint_id, request.user.owner, data.change())
    return EndpointEnvelope(data=EndpointItem.of(endpoint), error=None)


@delete(
    _ENDPOINT,
    status_code=200,
    tags=_TAGS,
    summary="Delete an endpoint",
    response_description="The endpoint is deleted.",
    responses=failures(401, 403, 404, 503),
)
async def delete_endpoint(
    request: OwnedRequest, endpoint_id: EndpointIdInPath, webhooks: Injected[Webhooks]
) -> DeletedEndpointEnvelope:
    """With its deliveries, also those that wait. A message in flight may still arrive."""
    await webhooks.delete(endpoint_id, request.user.owner)
    return DeletedEndpointEnvelope(data=DeletedEndpoint(endpoint_id=endpoint_id), error=None)


@post(
    f"{_ENDPOINT}/rotate",
    status_code=200,
    tags=_TAGS,
    summary="Rotate an endpoint's secret",
    response_description="The endpoint, with its new secret.",
    responses=failures(401, 403, 404, 503),
)
async def rotate_secret(
    request: OwnedRequest, endpoint_id: EndpointIdInPath, webhooks: Injected[Webhooks]
) -> SecretEnvelope:
    """Messages carry two signatures for 24 hours, with the new secret and with the one before, so
    you can change over at any time. A second rotation within that time ends the first secret."""
    issued = await webhooks.rotate(endpoint_id, request.user.owner)
    return SecretEnvelope(data=SecretItem.issued(issued), error=None)


@post(
    f"{_ENDPOINT}/test",
    status_code=201,
    tags=_TAGS,
    summary="Send a test event",
    response_description="The delivery, which is sent at once.",
    responses=failures(401, 403, 404, 503),
)
async def send_test_event(
    request: OwnedRequest, endpoint_id: EndpointIdInPath, webhooks: Injected[Webhooks]
) -> DeliveryEnvelope:
    """A `webhook.test`, whatever events the endpoint asks for. The list of deliveries shows what
    came of it. It waits while the endpoint is disabled or paused."""
    delivery = await webhooks.send_test(endpoint_id, request.user.owner)
    return DeliveryEnvelope(data=DeliveryItem.of(delivery), error=None)


@get(
    f"{_ENDPOINT}/deliveries",
    tags=_TAGS,
    summary="List an endpoint's deliveries",
    response_description="One page of deliveries, newest first.",
    responses=failures(401, 403, 404, 503),
)
async def list_deliveries(
    *,
    request: OwnedRequest,
    endpoint_id: EndpointIdInPath,
    webhooks: Injected[Webhooks],
    status: StatusFilter = None,
    limit: Limit = 20,
    cursor: CursorText = None,
) -> DeliveryPageEnvelope:
    """Newest first, up to `limit` per page, each with its latest attempts. Deliveries are deleted 7
    days after they were delivered, failed or expired."""
    found = await webhooks.deliveries(
        endpoint_id,
        request.user.owner,
        status=status,
        limit=limit + 1,
        after=position_after(cursor),
    )
    items = [DeliveryItem.of(delivery) for delivery in found[:limit]]
    next_cursor = cursor_after(found[limit - 1]) if len(found) > limit else None
    return DeliveryPageEnvelope(data=DeliveryPage(items=items, next_cursor=next_cursor), error=None)


@post(
    "/webhooks/deliveries/{delivery_id:str}/retry",
    status_code=200,
    tags=_TAGS,
    summary="Retry a delivery",
    response_description="The delivery, which is sent at once.",
    responses=failures(401, 403, 404, 503),
)
async def retry_delivery(
    request: OwnedRequest, delivery_id: DeliveryIdInPath, webhooks: Injected[Webhooks]
) -> DeliveryEnvelope:
    """Whatever its status, under the same `webhook-id`, with the session as it is then. It waits
    while the endpoint is disabled or paused."""
    delivery = await webhooks.retry(delivery_id, request.user.owner)
    return DeliveryEnvelope(data=DeliveryItem.of(delivery), error=None)


@post(
    f"{_ENDPOINT}/deliveries/retry",
    status_code=200,
    dto=FailedSinceBody,
    return_dto=None,
    tags=_TAGS,
    summary="Retry failed deliveries",
    response_description="How many deliveries are sent again.",
    responses=failures(401, 403, 404, 413, 415, 503),
)
async def retry_failed_deliveries(
    request: OwnedRequest,
    endpoint_id: EndpointIdInPath,
    data: JSONBody[FailedSince],
    webhooks: Injected[Webhooks],
) -> RetriedEnvelope:
    """All that failed or expired and were created at `since` or later, up to 10,000 per call, the
    oldest first. Repeat it until `retried` is 0."""
    retried = await webhooks.retry_failed(endpoint_id, request.user.owner, since=data.since)
    return RetriedEnvelope(data=Retried(retried=retried), error=None)


@get(
    "/credits/alert",
    tags=["Credits"],
    summary="Get the threshold of low credits",
    response_description="The threshold.",
    responses=failures(401, 403, 503),
)
async def get_alert(request: OwnedRequest, webhooks: Injected[Webhooks]) -> AlertEnvelope:
    """The balance below which `credits.low` is sent to your webhooks. Null: never."""
    threshold = await webhooks.low_credits(request.user.owner)
    return AlertEnvelope(data=Alert(low_credits=threshold), error=None)


@put(
    "/credits/alert",
    dto=NewAlertBody,
    return_dto=None,
    tags=["Credits"],
    summary="Set the threshold of low credits",
    response_description="The threshold.",
    responses=failures(401, 403, 413, 415, 503),
)
async def set_alert(
    request: OwnedRequest, data: JSONBody[NewAlert], webhooks: Injected[Webhooks]
) -> AlertEnvelope:
    """Each time your balance falls from `low_credits` or more to less, `credits.low` is sent to
    each of your webhooks that asks for it."""
    await webhooks.set_low_credits(request.user.owner, data.low_credits)
    return AlertEnvelope(data=Alert(low_credits=data.low_credits), error=None)


WEBHOOK_HANDLERS = (
    list_endpoints,
    create_endpoint,
    get_endpoint,
    change_endpoint,
    delete_endpoint,
    rotate_secret,
    send_test_event,
    list_deliveries,
    retry_delivery,
    retry_failed_deliveries,
    get_alert,
    set_alert,
)
