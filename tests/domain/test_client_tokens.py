"""Client tokens: what they allow, and the idempotency keys of shoppers."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.callers import Caller, Shopper
from domain.client_tokens import MAX_LIVE, ClientTokens, IssuedToken
from domain.errors import InvalidInput, Suspended, TokenUsedUp, Unauthenticated
from tests.support.clock import START
from tests.support.examples import STORE, a_request, a_token
from tests.support.service import Service

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


def issuer(service: Service) -> ClientTokens:
    return ClientTokens(
        tokens=service.tokens,
        accounts=service.accounts,
        reads=service.repo,
        new_secret=lambda: "wc_secret",
        hash_secret=lambda secret: f"hash of {secret}",
        new_id=uuid4,
        clock=service.clock.now,
    )


async def issued(service: Service, **changes: Any) -> IssuedToken:
    asked: dict[str, Any] = {
        "shopper_id": "anna",
        "origin": "https://shop.example",
        "lifetime": HOUR,
        "pictures": 2,
    }
    return await issuer(service).issue(STORE, **asked | changes)


async def test_token_is_issued(service: Service) -> None:
    """For the calling store, from now on; only the hash is stored, and no secret is printed."""
    new = await issued(service)

    stored = await service.tokens.get(new.token.id)
    assert stored == new.token
    assert (stored.store, stored.token_sha256) == (STORE, "hash of wc_secret")
    assert stored.expires_at == stored.created_at + HOUR
    assert new.secret == "wc_secret"
    assert "wc_secret" not in repr(new)
    assert "hash of" not in repr(stored)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("shopper_id", {"shopper_id": "a b"}),
        ("shopper_id", {"shopper_id": "anna\n"}),
        ("origin", {"origin": "https://evil.example"}),
        ("lifetime_seconds", {"lifetime": timedelta(seconds=59.9)}),
        ("lifetime_seconds", {"lifetime": HOUR + timedelta(microseconds=1)}),
        ("pictures", {"pictures": 0}),
        ("pictures", {"pictures": 1_001}),
    ],
)
async def test_invalid_token(service: Service, field: str, changes: dict[str, Any]) -> None:
    """The error names the field, whoever asks: not only the HTTP API."""
    with pytest.raises(InvalidInput) as error:
        await issued(service, **changes)

    assert error.value.field == field
    assert await service.tokens.live(STORE, shopper_id=None, limit=MAX_LIVE) == []


async def test_suspended_store_gets_no_token(service: Service) -> None:
    """Nor does anybody else get one for it."""
    account = service.accounts.balance_of(STORE)
    service.accounts._accounts[STORE] = replace(account, suspended=True)

    with pytest.raises(Suspended):
        await issued(service)


@pytest.mark.parametrize(
    ("used", "submissions", "left"),
    [(0, 0, 2), (1, 1, 1), (2, 2, 0), (0, 4, 2), (0, 5, 1), (1, 5, 1), (0, 6, 0), (1, 6, 0)],
)
def test_pictures_left(used: int, submissions: int, left: int) -> None:
    """Of two pictures and six submissions."""
    token = a_token(pictures=2, used=used, submissions=submissions)

    assert token.pictures_left == left


@pytest.mark.parametrize(
    ("changes", "age", "error"),
    [
        ({}, timedelta(0), None),
        ({}, HOUR - timedelta(microseconds=1), None),
        ({}, HOUR, Unauthenticated),
        ({"revoked_at": START}, timedelta(0), Unauthenticated),
        ({"used": 5, "submissions": 5}, timedelta(0), TokenUsedUp),
        ({"submissions": 15}, timedelta(0), TokenUsedUp),
        ({"used": 5, "submissions": 5}, HOUR, Unauthenticated),
    ],
)
def test_picture_is_required(
    changes: dict[str, Any], age: timedelta, error: type[Exception] | None
) -> None:
    """A live token that has one left."""
    token = a_token(**changes)

    if error is None:
        token.require_picture(START + age)
    else:
        with pytest.raises(error):
            token.require_picture(START + age)


def test_stored_keys_of_shoppers_are_apart() -> None:
    """Whatever ids and keys are made of: none equals another one's or a store's own, and each fits
    the column."""
    ids = ("a", "a:b", "a.b", "b", "a" * 128)
    keys = ("k", "b:k", "b", ":k", "!", "k" * 255, "k" * 254)
    by_shopper = [Shopper(id=id_, token_id=uuid4()).stored_key(key) for id_ in ids for key in keys]

    assert len({*by_shopper, *keys}) == len(ids) * len(keys) + len(keys)
    assert all(" " in key and len(key) <= 255 for key in by_shopper)


def test_stored_key_does_not_show_the_shopper() -> None:
    """It stays with the session when a shopper's personal data are erased."""
    stored = Shopper(id="anna-smith", token_id=uuid4()).stored_key("order-1")

    assert "anna" not in stored
    assert "order" not in stored
    assert len(stored) <= 255


def test_stored_key_is_the_same_for_all_tokens() -> None:
    """So a repetition with a new token finds the first request's session."""
    keys = {Shopper(id="anna", token_id=uuid4()).stored_key("order-1") for _ in range(2)}

    assert len(keys) == 1


def test_request_has_the_stored_key() -> None:
    """A store's own key stays as it is."""
    request = a_request(STORE, idempotency_key="order-1")
    shopper = Shopper(id="anna", token_id=uuid4())

    of_shopper = replace(request, caller=Caller(owner=STORE, shopper=shopper))

    assert request.stored_key == "order-1"
    assert of_shopper.stored_key == shopper.stored_key("order-1")
    assert replace(of_shopper, idempotency_key=None).stored_key is None


async def test_expired_tokens_are_purged_by_recovery(service: Service) -> None:
    """A day after they expired."""
    await issued(service)
    service.clock.advance(HOUR + timedelta(days=1))

    too_early = await service.recover()
    service.clock.advance(timedelta(seconds=1))
    report = await service.recover()

    assert (too_early.tokens_deleted, report.tokens_deleted) == (0, 1)


async def test_recovery_searches_for_expired_tokens_now_and_then(service: Service) -> None:
    """Most runs would find nothing, and each search costs the database something."""
    recovery = service.recovery()
    searches = []
    for minutes in (0, 4, 2):
        service.clock.advance(timedelta(minutes=minutes))
        await recovery.run_once()
        searches.append(service.tokens.faults.calls.count("purge"))

    assert searches == [1, 1, 2]
