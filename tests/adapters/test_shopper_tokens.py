"""ShopperTokens behind the cache: a client token ends with its lifetime, however it was cached."""

from datetime import timedelta

import pytest

from adapters.auth.api_keys import key_sha256
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.claims import JwtRules
from adapters.auth.client_tokens import CLIENT_TOKEN_PREFIX, ShopperTokens, new_client_token
from adapters.auth.user_tokens import UserTokens
from adapters.client_tokens.memory import InMemoryClientTokenRepo
from domain.callers import Caller, CallerKind, Shopper
from domain.client_tokens import ClientToken
from domain.errors import DomainMismatch, Unauthenticated
from tests.support.clock import FakeClock
from tests.support.examples import MANY, ORIGINS, STORE, a_token

pytestmark = pytest.mark.anyio

RULES = JwtRules(secret="a key for tests, long enough for HS256", issuer="us", audience="them")
CACHE_SECONDS = 5.0


class Door:
    """A client token, and the authenticator that lets it in."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.seconds = 0.0
        self.origins = set(ORIGINS)
        self.tokens = InMemoryClientTokenRepo(
            clock=self.clock.now, origins_of=lambda _: self.origins, budgets={}
        )
        self.authenticate = BearerAuthenticator(
            keys={CLIENT_TOKEN_PREFIX: ShopperTokens(self.tokens, clock=self.clock.now)},
            users=UserTokens(RULES),
            cache_seconds=CACHE_SECONDS,
            clock=lambda: self.seconds,
        )

    async def issued(self) -> tuple[str, ClientToken]:
        secret = new_client_token()
        token = a_token(token_sha256=key_sha256(secret))
        await self.tokens.add(token, max_live=MANY)
        return secret, token


@pytest.fixture
def door() -> Door:
    return Door()


async def test_token_stands_for_its_shopper(door: Door) -> None:
    """In its store, from its own origin only."""
    secret, token = await door.issued()

    caller = await door.authenticate(secret)

    assert caller == Caller(
        owner=STORE,
        shopper=Shopper(id="anna", token_id=token.id),
        origins=frozenset({token.origin}),
    )
    assert caller.kind is CallerKind.SHOPPER
    caller.check_origin(token.origin)
    for origin in (None, "https://m.shop.example", "null"):
        with pytest.raises(DomainMismatch):
            caller.check_origin(origin)


async def test_cached_token_ends_with_its_lifetime(door: Door) -> None:
    """To the moment, although the cache holds it longer."""
    secret, _ = await door.issued()
    door.clock.advance(timedelta(hours=1) - timedelta(microseconds=1))
    await door.authenticate(secret)
    door.clock.advance(timedelta(microseconds=1))

    with pytest.raises(Unauthenticated, match="The client token has expired"):
        await door.authenticate(secret)


@pytest.mark.parametrize("change", ["revoked", "its origin is removed"])
async def test_change_holds_once_the_cache_ends(door: Door, change: str) -> None:
    """Until then the cached caller is let in; the debit refuses a revoked token at once."""
    secret, token = await door.issued()
    await door.authenticate(secret)
    if change == "revoked":
        await door.tokens.revoke(token.id, STORE)
    else:
        door.origins.clear()

    await door.authenticate(secret)
    door.seconds = CACHE_SECONDS

    with pytest.raises(Unauthenticated, match="The client token is not valid"):
        await door.authenticate(secret)


def test_tokens_are_long_and_random() -> None:
    """128 bits, which nobody guesses."""
    tokens = {new_client_token() for _ in range(100)}

    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {len(CLIENT_TOKEN_PREFIX) + 32}
