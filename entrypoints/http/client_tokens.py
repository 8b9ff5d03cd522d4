"""Client tokens: a store's server issues and revokes them for its shoppers' browsers."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, post
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, PathParameter, QueryParameter

from domain.client_tokens import ClientTokens
from entrypoints.http.access import for_stores
from entrypoints.http.client_token_schemas import (
    LiveToken,
    LiveTokens,
    LiveTokensEnvelope,
    NewClientToken,
    NewToken,
    NewTokenEnvelope,
    Revoked,
    RevokedEnvelope,
    ShopperEnvelope,
    ShopperNumbers,
)
from entrypoints.http.inputs import Injected, OwnedRequest, StrictBody
from entrypoints.http.openapi import failures

ShopperIdInPath = Annotated[str, PathParameter(description="Your own id of the shopper.")]
_TAGS = ["Client tokens"]
_EXAMPLE = Example(
    value={"shopper_id": "customer-4711", "origin": "https://shop.example", "pictures": 3}
)
Body = Annotated[NewClientToken, BodyKwarg(examples=[_EXAMPLE])]


class NewClientTokenBody(StrictBody[NewClientToken]):
    decoder = msgspec.json.Decoder(NewClientToken)


@post(
    "/client-tokens",
    status_code=201,
    opt=for_stores(),
    dto=NewClientTokenBody,
    return_dto=None,
    tags=_TAGS,
    summary="Create a client token",
    response_description="The token, which is not shown again.",
    responses=failures(401, 403, 413, 415, 429, 503),
)
async def create_client_token(
    request: OwnedRequest, data: Body, client_tokens: Injected[ClientTokens]
) -> NewTokenEnvelope:
    """For a store's server: a short-lived token for the browser of one shopper. The browser sends
    it like an API key, from the given origin only, and may then create up to `pictures`
    generations, which you pay for, upload pictures for them, and see and cancel this shopper's
    generations, but nothing else of yours. A shopper can have 100 live tokens."""
    issued = await client_tokens.issue(
        request.user.owner,
        shopper_id=data.shopper_id,
        origin=data.origin,
        lifetime=timedelta(seconds=data.lifetime_seconds),
        pictures=data.pictures,
    )
    return NewTokenEnvelope(data=NewToken.of(issued), error=None)


@get(
    "/client-tokens",
    opt=for_stores(),
    tags=_TAGS,
    summary="List a shopper's client tokens",
    response_description="The shopper's live tokens, newest first.",
    responses=failures(401, 403, 503),
)
async def list_client_tokens(
    request: OwnedRequest,
    client_tokens: Injected[ClientTokens],
    shopper_id: Annotated[str, QueryParameter(description="Your own id of the shopper.")],
) -> LiveTokensEnvelope:
    """The tokens that are neither expired nor revoked, with what they have used."""
    found = await client_tokens.live(request.user.owner, shopper_id)
    items = [LiveToken.of(token) for token in found]
    return LiveTokensEnvelope(data=LiveTokens(items=items), error=None)


@delete(
    "/client-tokens/{token_id:str}",
    status_code=200,
    opt=for_stores(),
    tags=_TAGS,
    summary="Revoke a client token",
    response_description="The token is revoked.",
    responses=failures(401, 403, 404, 503),
)
async def revoke_client_token(
    request: OwnedRequest,
    client_tokens: Injected[ClientTokens],
    token_id: Annotated[UUID, PathParameter(description="The token's id.")],
) -> RevokedEnvelope:
    """It creates no more generations from now on, and stops working for anything else within a few
    seconds. A repetition has the same answer. Expired tokens are deleted after a day."""
    await client_tokens.revoke(token_id, request.user.owner)
    return RevokedEnvelope(data=Revoked(token_id=token_id), error=None)


@get(
    "/shoppers/{shopper_id:str}",
    opt=for_stores(),
    tags=_TAGS,
    summary="Get a shopper's numbers",
    response_description="The shopper's sessions by status, and what its live tokens allow.",
    responses=failures(401, 403, 503),
)
async def get_shopper(
    request: OwnedRequest, client_tokens: Injected[ClientTokens], shopper_id: ShopperIdInPath
) -> ShopperEnvelope:
    """How many generations a shopper has requested, and how many more its tokens allow. For a
    shopper without any, all numbers are 0. List the generations with
    `GET /api/v1/generations?shopper_id=`."""
    summary = await client_tokens.summary(request.user.owner, shopper_id)
    return ShopperEnvelope(data=ShopperNumbers.of(shopper_id, summary), error=None)


CLIENT_TOKEN_HANDLERS = (
    create_client_token,
    list_client_tokens,
    revoke_client_token,
    get_shopper,
)
