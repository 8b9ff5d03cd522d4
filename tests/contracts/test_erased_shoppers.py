"""ErasureRepoPort: sessions of shoppers lose their shoppers, who go with their client tokens."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from domain.callers import Shopper
from domain.credits import Channel, LedgerKind, Owner
from domain.plans import TokenBudget
from domain.sessions import SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, MANY, STORE, a_session

pytestmark = pytest.mark.anyio

ANOTHER = Owner(channel=Channel.B2B, id="store-2")


async def a_shopper(backend: Backend, shopper_id: str, store: Owner = STORE) -> Shopper:
    """With a new client token for three pictures."""
    token_id = uuid4()
    expires_at = datetime.now(UTC) + timedelta(minutes=30)
    await backend.add_token(
        token_id,
        TokenBudget(store_id=store.id, shopper_id=shopper_id, pictures=3, expires_at=expires_at),
    )
    return Shopper(id=shopper_id, token_id=token_id)


async def processing(backend: Backend, shopper: Shopper, store: Owner = STORE) -> UUID:
    await backend.credits.grant(store, 1, note="test")
    session = a_session(owner=store, shopper=shopper)
    created = (await backend.sessions.create(session, max_active=MANY)).session
    return (await backend.claim(created.id, lease=LEASE)).id


async def failed(backend: Backend, shopper: Shopper, store: Owner = STORE) -> UUID:
    session_id = await processing(backend, shopper, store)
    assert await backend.attempts.fail(session_id, FAILURE, attempt=1)
    return session_id


async def has_token(backend: Backend, shopper: Shopper) -> bool:
    try:
        await backend.budget_of(shopper.token_id)
    except (KeyError, AssertionError):
        return False
    return True


async def test_sessions_of_one_shopper_are_found(backend: Backend) -> None:
    """Of all client tokens, newest first. Neither those of another shopper, nor those of a namesake
    at another store, nor the store's own."""
    ann = await a_shopper(backend, "ann")
    wanted = [await failed(backend, ann), await failed(backend, await a_shopper(backend, "ann"))]
    await failed(backend, await a_shopper(backend, "bob"))
    await failed(backend, await a_shopper(backend, "ann", ANOTHER), ANOTHER)
    await backend.queued(STORE)

    found = await backend.erasure.sessions_of(STORE, shopper="ann", limit=9, after=None)
    first = await backend.erasure.sessions_of(STORE, shopper="ann", limit=1, after=None)

    assert [session.id for session in found] == wanted[::-1]
    assert [session.id for session in first] == wanted[1:]


async def test_shopper_of_a_session_goes_only_when_asked_for(backend: Backend) -> None:
    """The shopper's own erasure of a picture leaves the session visible to the shopper. The
    operator's takes the shopper as well, also afterwards."""
    ann = await a_shopper(backend, "ann")
    session_id = await failed(backend, ann)
    seen: list[object] = []

    for with_shopper in (False, True, True):
        seen.append(await backend.erasure.erase([session_id], with_shopper=with_shopper))
        seen.append((await backend.get(session_id)).shopper)

    assert seen == [1, ann, 1, None, 0, None]
    assert await backend.erasure.sessions_of(STORE, shopper="ann", limit=9, after=None) == []


async def test_one_shopper_is_forgotten_with_all_client_tokens(backend: Backend) -> None:
    """Other shoppers of the store and namesakes at other stores stay."""
    mine = [await a_shopper(backend, "ann"), await a_shopper(backend, "ann")]
    others = [await a_shopper(backend, "bob"), await a_shopper(backend, "ann", ANOTHER)]

    counts = [
        await backend.erasure.forget_shoppers(STORE, shopper="ann", limit=9) for _ in range(2)
    ]

    assert counts == [1, 0]
    assert [await has_token(backend, shopper) for shopper in mine] == [False, False]
    assert [await has_token(backend, shopper) for shopper in others] == [True, True]


async def test_shoppers_are_forgotten_in_batches(backend: Backend) -> None:
    """Up to the limit in each call; fewer mean that none is left."""
    shoppers = [await a_shopper(backend, f"shopper-{number}") for number in range(5)]

    counts = [await backend.erasure.forget_shoppers(STORE, shopper=None, limit=2) for _ in range(3)]

    assert counts == [2, 2, 1]
    assert not any([await has_token(backend, shopper) for shopper in shoppers])


async def test_session_of_a_forgotten_shopper_still_ends(backend: Backend) -> None:
    """With its refund to the store, although there is no client token to give the picture back
    to."""
    session_id = await processing(backend, await a_shopper(backend, "ann"))
    await backend.erasure.forget_shoppers(STORE, shopper="ann", limit=9)

    assert await backend.attempts.fail(session_id, FAILURE, attempt=1)

    assert (await backend.get(session_id)).status is SessionStatus.FAILED
    kinds = [entry.kind for entry in await backend.ledger(STORE)]
    assert kinds == [LedgerKind.GRANT, LedgerKind.DEBIT, LedgerKind.REFUND]
    assert await backend.credits.audit(limit=9) == []


@pytest.mark.parametrize("channel", Channel)
async def test_there_may_be_no_shoppers(backend: Backend, channel: Channel) -> None:
    """A user has none, not even if a store has the same id."""
    await a_shopper(backend, "ann", ANOTHER)
    owner = Owner(channel=channel, id=ANOTHER.id if channel is Channel.B2C else STORE.id)

    assert await backend.erasure.forget_shoppers(owner, shopper=None, limit=9) == 0
