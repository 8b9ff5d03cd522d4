"""The calls of the system that this one replaced, for stores whose programs still send them.

Thin translations onto the use cases of our own calls, deprecated: see docs/original.md. Names of
fields, statuses and the tolerance for unknown fields are the original's, errors are ours.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg
from msgspec import Meta, Struct

from config.metrics import SUBMISSIONS
from domain.credits import GENERATION_COST, CreditAccount
from domain.errors import Unconfirmed
from domain.plans import Plan
from domain.requests import TryOnRequest
from domain.sessions import (
    DEFAULT_PROMPT,
    MAX_ACCESSORIES,
    MAX_PROMPT_LENGTH,
    Accessory,
    GenerationInput,
    SessionStatus,
)
from domain.signup import CallerAccounts
from domain.submission import Submission
from domain.views import SessionView, SessionViews
from entrypoints.http.access import for_stores
from entrypoints.http.admin import Administration
from entrypoints.http.inputs import (
    IdempotencyKey,
    Injected,
    OwnedRequest,
    SessionIdInPath,
    StrictBody,
    decoded,
)
from entrypoints.http.openapi import failures
from entrypoints.http.patterns import PRINTABLE_TEXT
from entrypoints.http.rates import as_text, rate_headers
from entrypoints.http.schemas import CreatedAt, SessionId, Url
from entrypoints.http.submit import outcome_of

MAX_IMAGES = 2 + MAX_ACCESSORIES
"""A model, an outfit and the accessories."""
ACCESSORY_TYPE = "accessory"
"""The original does not know the accessories' types."""
DISCLOSURE = (
    "Your photo is sent to WearOn and to its AI provider to make the picture. Photos that you"
    " upload and the picture are deleted after a limited time, or earlier at the store's request."
)

_TAGS = ["Original"]
_EXAMPLE = {
    "image_urls": [
        "https://images.example.com/person.jpg",
        "https://images.example.com/coat.jpg",
    ],
    "age_verified": True,
}


class OriginalRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A try-on request as the original has it. Unknown fields are ignored."""

    image_urls: Annotated[
        list[Url],
        Meta(
            min_length=1,
            max_length=MAX_IMAGES,
            description="The person, then the outfit, then accessories.",
        ),
    ]
    prompt: (
        Annotated[
            str,
            Meta(
                max_length=MAX_PROMPT_LENGTH,
                pattern=PRINTABLE_TEXT,
                description="Your own prompt; an empty one stands for the default one.",
            ),
        ]
        | None
    ) = None
    age_verified: (
        Annotated[bool, Meta(description="Whether you verified that the person is old enough.")]
        | None
    ) = None

    def asked(self) -> GenerationInput:
        """The input as the domain has it."""
        model, *items = self.image_urls
        return GenerationInput(
            model_image_url=model,
            outfit_image_url=items[0] if items else None,
            accessories=tuple(Accessory(type=ACCESSORY_TYPE, url=url) for url in items[1:]),
            prompt=(self.prompt or "").strip() or DEFAULT_PROMPT,
            age_verified=self.age_verified,
        )


class OriginalBody(StrictBody[OriginalRequest]):
    """The original reads a body as JSON whatever its Content-Type."""

    decoder = msgspec.json.Decoder(OriginalRequest)

    def decode_bytes(self, value: bytes) -> OriginalRequest:
        request: OriginalRequest = decoded(value, self.decoder)
        return request


Body = Annotated[OriginalRequest, BodyKwarg(examples=[Example(value=_EXAMPLE)])]


class OriginalCreated(Struct, frozen=True, kw_only=True):
    """An accepted and charged request."""

    session_id: SessionId
    status: SessionStatus


class OriginalCreatedEnvelope(Struct, frozen=True, kw_only=True):
    """Response to an accepted request of the original's."""

    data: OriginalCreated
    error: None


class OriginalSession(Struct, frozen=True, kw_only=True):
    """A session as the original shows it."""

    session_id: SessionId
    status: SessionStatus
    model_image_url: Annotated[str | None, Meta(description="Null once erased.")]
    outfit_image_url: str | None
    generated_image_url: Annotated[
        str | None,
        Meta(description="The picture's link, once completed. It expires: get the session again."),
    ]
    error_message: str | None
    credits_used: Annotated[
        int, Meta(description="What the request cost; a failed session was refunded.", examples=[1])
    ]
    request_id: str
    created_at: CreatedAt
    completed_at: datetime | None

    @classmethod
    def of(cls, view: SessionView) -> Self:
        session, asked = view.session, view.session.input
        return cls(
            session_id=session.id,
            status=session.status,
            model_image_url=asked.model_image_url or None,
            outfit_image_url=asked.outfit_image_url,
            generated_image_url=view.picture_url,
            error_message=None if session.failure is None else session.failure.message,
            credits_used=GENERATION_COST,
            request_id=session.request_id,
            created_at=session.created_at,
            completed_at=session.completed_at,
        )


class OriginalSessionEnvelope(Struct, frozen=True, kw_only=True):
    """Response with one session as the original shows it."""

    data: OriginalSession
    error: None


class OriginalBalance(Struct, frozen=True, kw_only=True):
    """A store's credits. `balance` is `total_purchased` minus `total_spent`."""

    balance: int
    total_purchased: int
    total_spent: Annotated[int, Meta(description="Debits, less the refunded ones.")]

    @classmethod
    def of(cls, account: CreditAccount) -> Self:
        spent = account.total_debited - account.total_refunded
        return cls(
            balance=account.balance, total_purchased=account.balance + spent, total_spent=spent
        )


class OriginalBalanceEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a store's credits as the original shows them."""

    data: OriginalBalance
    error: None


class OriginalConfig(Struct, frozen=True, kw_only=True):
    """A store's configuration as the original shows it."""

    store_id: str
    shop_domain: Annotated[
        str | None,
        Meta(description="A host of the store's origins, the `myshopify.com` one if there is one."),
    ]
    billing_mode: Annotated[
        Literal["absorb_mode"], Meta(description="The store pays; there is no other mode.")
    ]
    retail_credit_price: Annotated[None, Meta(description="Always null: shoppers pay nothing.")]
    shopify_variant_id: Annotated[None, Meta(description="Always null: credits are no product.")]
    subscription_tier: Annotated[
        str | None, Meta(description="The store's plan; null for the default one.")
    ]
    status: Literal["active", "suspended"]
    privacy_disclosure: Annotated[str, Meta(description="A text to show to shoppers.")]


class OriginalConfigEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a store's configuration as the original shows it."""

    data: OriginalConfig
    error: None


@post(
    "/generation/create",
    status_code=201,
    opt=for_stores(),
    dto=OriginalBody,
    return_dto=None,
    tags=_TAGS,
    deprecated=True,
    summary="Create a generation (original)",
    response_description="Accepted and charged; the picture will be generated.",
    responses=failures(401, 402, 403, Unconfirmed, 413, 415, 422, 429, 503),
)
async def create_original(
    request: OwnedRequest,
    data: Body,
    submission: Injected[Submission],
    idempotency_key: IdempotencyKey = None,
) -> Response[OriginalCreatedEnvelope]:
    """`POST /api/v1/generations` under the original's names. Takes one credit of the store."""
    info = request.scope["state"]["request_info"]
    try:
        receipt = await submission.submit(
            TryOnRequest(
                caller=request.user,
                request_id=info["request_id"],
                input=data.asked(),
                idempotency_key=idempotency_key,
                traceparent=info.get("traceparent"),
                links=submission.links,
            )
        )
    except Exception as error:
        SUBMISSIONS.inc(outcome_of(error))
        raise
    SUBMISSIONS.inc(outcome_of(receipt))
    info["session_id"] = receipt.session.id
    created = OriginalCreated(session_id=receipt.session.id, status=receipt.session.status)
    replayed = {"Idempotency-Replayed": "true"} if receipt.replayed else {}
    return Response(
        OriginalCreatedEnvelope(data=created, error=None),
        headers=as_text(rate_headers(receipt.rates)) | replayed,
    )


@get(
    "/generation/{session_id:str}",
    opt=for_stores(),
    tags=_TAGS,
    deprecated=True,
    summary="Get a session (original)",
    response_description="The session's current state.",
    responses=failures(401, 403, 404, 503),
)
async def get_original(
    request: OwnedRequest, session_id: SessionIdInPath, views: Injected[SessionViews]
) -> OriginalSessionEnvelope:
    """`GET /api/v1/generations/{id}` under the original's names."""
    view = await views.get(session_id, request.user.owner)
    return OriginalSessionEnvelope(data=OriginalSession.of(view), error=None)


@get(
    "/credits/balance",
    opt=for_stores(),
    tags=_TAGS,
    deprecated=True,
    summary="Get the balance (original)",
    response_description="The store's credits.",
    responses=failures(401, 403, 503),
)
async def get_original_balance(
    request: OwnedRequest, accounts: Injected[CallerAccounts]
) -> OriginalBalanceEnvelope:
    """`GET /api/v1/credits` under the original's names."""
    account = await accounts.of(request.user)
    return OriginalBalanceEnvelope(data=OriginalBalance.of(account), error=None)


@get(
    "/stores/config",
    opt=for_stores(),
    tags=_TAGS,
    deprecated=True,
    summary="Get the store's configuration (original)",
    response_description="The store's configuration.",
    responses=failures(401, 403, 503),
)
async def get_original_config(
    request: OwnedRequest,
    accounts: Injected[CallerAccounts],
    administration: Injected[Administration],
) -> OriginalConfigEnvelope:
    """The billing mode is always `absorb_mode`: the store pays for its shoppers' pictures. Selling
    credits to shoppers is not supported."""
    account = await accounts.of(request.user)
    store = await administration.stores.get(request.user.owner.id)
    config = OriginalConfig(
        store_id=store.id,
        shop_domain=_shop_domain(store.origins),
        billing_mode="absorb_mode",
        retail_credit_price=None,
        shopify_variant_id=None,
        subscription_tier=None if account.plan is Plan.DEFAULT else account.plan.value,
        status="suspended" if account.suspended else "active",
        privacy_disclosure=DISCLOSURE,
    )
    return OriginalConfigEnvelope(data=config, error=None)


def _shop_domain(origins: Collection[str]) -> str | None:
    hosts = filter(None, (urlsplit(origin).hostname for origin in origins))
    ordered = sorted(hosts, key=lambda host: (not host.endswith(".myshopify.com"), host))
    return ordered[0] if ordered else None


ORIGINAL_HANDLERS = (
    create_original,
    get_original,
    get_original_balance,
    get_original_config,
)
