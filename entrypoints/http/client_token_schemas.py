"""Request and response bodies of client tokens, with their documentation."""

from datetime import datetime, timedelta
from typing import Annotated, Self
from uuid import UUID

from msgspec import Meta, Struct

from domain.client_tokens import (
    MAX_LIFETIME,
    MAX_PICTURES,
    MIN_LIFETIME,
    ClientToken,
    IssuedToken,
    ShopperSummary,
)
from domain.plans import SUBMISSIONS_PER_PICTURE
from entrypoints.http.patterns import ID, ORIGIN
from entrypoints.http.schemas import Stats

DEFAULT_LIFETIME = timedelta(minutes=15)
CLIENT_TOKENS_PATH = "/api/v1/client-tokens"

ShopperId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=ID,
        description="Your own id of the shopper. Not an e-mail address: give a hash of it.",
        examples=["customer-4711"],
    ),
]
TokenId = Annotated[
    UUID,
    Meta(
        description="The token's id, which is no secret.",
        examples=["018f6b9e-7c3a-7d21-9a40-3f0c5f6d2b11"],
    ),
]
Origin = Annotated[
    str,
    Meta(
        description="The only origin from which browsers may use the token.",
        examples=["https://shop.example"],
    ),
]
Pictures = Annotated[int, Meta(description="How many pictures the token allows.")]
ExpiresAt = Annotated[datetime, Meta(description="When the token expires, UTC.")]


class NewClientToken(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a client token."""

    shopper_id: ShopperId
    origin: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=300,
            description="The origin of the page that will use the token: one of your origins.",
            examples=["https://shop.example"],
            extra_json_schema=ORIGIN,
        ),
    ]
    lifetime_seconds: Annotated[
        int,
        Meta(
            ge=MIN_LIFETIME // timedelta(seconds=1),
            le=MAX_LIFETIME // timedelta(seconds=1),
            description="After how many seconds the token expires.",
        ),
    ] = DEFAULT_LIFETIME // timedelta(seconds=1)
    pictures: Annotated[
        int, Meta(ge=1, le=MAX_PICTURES, description="How many pictures it allows.")
    ] = 1


class NewToken(Struct, frozen=True, kw_only=True):
    """A new client token."""

    client_token: Annotated[
        str,
        Meta(
            description="The token for the shopper's browser. It is not shown again.",
            examples=["wc_5e0f9a3c7a394b079d5c0f4f6d1f2a11"],
        ),
    ]
    token_id: TokenId
    shopper_id: str
    origin: Origin
    pictures: Pictures
    expires_at: ExpiresAt

    @classmethod
    def of(cls, issued: IssuedToken) -> Self:
        token = issued.token
        return cls(
            client_token=issued.secret,
            token_id=token.id,
            shopper_id=token.shopper_id,
            origin=token.origin,
            pictures=token.pictures,
            expires_at=token.expires_at,
        )


class NewTokenEnvelope(Struct, frozen=True, kw_only=True):
    """Response to a request for a client token."""

    data: NewToken
    error: None


class LiveToken(Struct, frozen=True, kw_only=True):
    """A client token that is neither expired nor revoked."""

    token_id: TokenId
    shopper_id: str
    origin: Origin
    pictures: Pictures
    pictures_used: Annotated[
        int, Meta(description="Its sessions, except for those that failed and were refunded.")
    ]
    submissions: Annotated[
        int,
        Meta(
            description="All its sessions. They are limited as well: to"
            f" {SUBMISSIONS_PER_PICTURE} times `pictures`."
        ),
    ]
    pictures_left: Annotated[int, Meta(description="How many sessions it allows now.")]
    created_at: datetime
    expires_at: ExpiresAt

    @classmethod
    def of(cls, token: ClientToken) -> Self:
        return cls(
            token_id=token.id,
            shopper_id=token.shopper_id,
            origin=token.origin,
            pictures=token.pictures,
            pictures_used=token.used,
            submissions=token.submissions,
            pictures_left=token.pictures_left,
            created_at=token.created_at,
            expires_at=token.expires_at,
        )


class LiveTokens(Struct, frozen=True, kw_only=True):
    """A shopper's live tokens, newest first."""

    items: list[LiveToken]


class LiveTokensEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a shopper's live tokens."""

    data: LiveTokens
    error: None


class Revoked(Struct, frozen=True, kw_only=True):
    """A client token that was revoked, now or before."""

    token_id: TokenId
    revoked: bool = True


class RevokedEnvelope(Struct, frozen=True, kw_only=True):
    """Response to the revocation of a client token."""

    data: Revoked
    error: None


class ShopperNumbers(Struct, frozen=True, kw_only=True):
    """A shopper's sessions by status, and what its live tokens still allow."""

    shopper_id: str
    sessions: Annotated[Stats, Meta(description="Of the newest 10,000 sessions.")]
    live_tokens: int
    pictures_left: Annotated[int, Meta(description="Of all live tokens together.")]

    @classmethod
    def of(cls, shopper_id: str, summary: ShopperSummary) -> Self:
        return cls(
            shopper_id=shopper_id,
            sessions=Stats.of(summary.sessions),
            live_tokens=summary.live_tokens,
            pictures_left=summary.pictures_left,
        )


class ShopperEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a shopper's numbers."""

    data: ShopperNumbers
    error: None
