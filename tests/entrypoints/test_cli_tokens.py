"""``wearon tokens``: client tokens are listed and revoked."""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from domain.client_tokens import ClientToken
from tests.contracts.backends import PostgresBackend
from tests.support.cli import Shop
from tests.support.clock import utc_now
from tests.support.examples import MANY, ORIGINS, STORE, a_token


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    """A store that names its origins."""
    shop = Shop(postgres.url())

    async def prepare(container: Any) -> None:
        backend = PostgresBackend(container.database())
        await backend.empty()
        await backend.name_origins(STORE, ORIGINS)

    shop.do(prepare)
    return shop


def added(shop: Shop, shopper_id: str = "anna") -> ClientToken:
    token = a_token(shopper_id=shopper_id, created_at=utc_now())
    add: Callable[[Any], Awaitable[None]] = lambda container: container.client_token_repo().add(  # noqa: E731
        token, max_live=MANY
    )
    shop.do(add)
    return token


def test_tokens_are_listed(shop: Shop) -> None:
    """Newest first, of all shoppers of the store or of one, without their hashes."""
    anna, ben = added(shop), added(shop, "ben")

    of_all = shop.json("tokens", "list", "--store", STORE.id)
    of_anna = shop.run("tokens", "list", "--store", STORE.id, "--shopper", "anna").stdout

    assert [token["id"] for token in of_all] == [str(ben.id), str(anna.id)]
    assert (of_all[0]["store_id"], of_all[0]["shopper_id"]) == (STORE.id, "ben")
    assert anna.token_sha256 not in str(of_all) + of_anna
    header, row = of_anna.splitlines()
    assert re.split(r"  +", header)[:4] == ["ID", "SHOPPER", "ORIGIN", "USED"]
    assert re.split(r"  +", row)[:5] == [str(anna.id), "anna", anna.origin, "0/5", "0"]


def test_token_is_revoked(shop: Shop) -> None:
    """Again with the same answer. An unknown one is an error."""
    token = added(shop)

    revoked = [shop.run("tokens", "revoke", token.id) for _ in range(2)]
    unknown = shop.run("tokens", "revoke", uuid4())

    assert [(result.exit_code, result.stdout) for result in revoked] == [(0, "Revoked.\n")] * 2
    assert shop.json("tokens", "list", "--store", STORE.id) == []
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: No such client token")


@pytest.mark.parametrize("store", [(), ("--store", ""), ("--store", "a b")])
def test_store_is_required(shop: Shop, store: tuple[str, ...]) -> None:
    """And must be the id of one."""
    result = shop.run("tokens", "list", *store)

    assert result.exit_code == 2
    assert "--store" in result.stderr
