"""Cancelling: a queued session fails at once; one that is processed is told to stop, is never
queued again, and ends as completed or as CANCELLED with its refund."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from domain.callers import Shopper
from domain.errors import IllegalTransition, RateLimited
from domain.plans import AccountLimits, TokenBudget
from domain.ports import Renewal
from domain.sessions import CANCELLED, Fault, GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, FAULT, LEASE, MANY, STORE, a_session, picture_of

pytestmark = pytest.mark.anyio

NO_DELAY = timedelta(0)
EXTERNAL_TIMEOUT = timedelta(minutes=15)
MOMENT = timedelta(seconds=30)
MAX_ATTEMPTS = 3
LINK = "https://elsewhere.example/picture.png"


async def to_be_cancelled(backend: Backend, *, attempt: int = 1) -> GenerationSession:
    """A session whose worker has not learned yet that it is cancelled."""
    session = await backend.claimed(attempt=attempt)
    cancelled = await backend.sessions.cancel(session.id)
    assert cancelled is not None
    return cancelled


async def recover(backend: Backend) -> tuple[int, list[GenerationSession]]:
    """How many dead leases were released, and the sessions that failed."""
    failed = await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )
    released = await backend.recovery.release_dead_leases(
        max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )
    return released, failed


async def require_cancelled(backend: Backend, session_id: UUID) -> None:
    """It failed for that reason, and was refunded once."""
    session = await backend.get(session_id)
    assert (session.status, session.failure) == (SessionStatus.FAILED, CANCELLED)
    assert session.completed_at is not None
    assert session.lease_expires_at is None
    assert await backend.money_of(session_id) == ["debit", "refund"]


async def test_queued_session_fails_at_once(backend: Backend) -> None:
    """As CANCELLED, with the refund; it keeps its idempotency key and can be claimed no more."""
    queued = (await backend.created(idempotency_key="key-1")).session

    cancelled = await backend.sessions.cancel(queued.id)

    assert cancelled == await backend.get(queued.id)
    await require_cancelled(backend, queued.id)
    assert cancelled is not None
    assert cancelled.idempotency_key == "key-1"
    assert cancelled.cancel_requested_at is not None
    assert await backend.attempts.claim(queued.id, lease=LEASE) is None
    assert await backend.balance() == 1


async def test_processing_session_records_the_request(backend: Backend) -> None:
    """Nothing else of it changes, and nothing is refunded yet."""
    claimed = await backend.claimed()

    cancelled = await backend.sessions.cancel(claimed.id)

    assert cancelled is not None
    assert cancelled.cancel_requested_at is not None
    assert cancelled == replace(claimed, cancel_requested_at=cancelled.cancel_requested_at)
    assert cancelled == await backend.get(claimed.id)
    assert await backend.money_of(claimed.id) == ["debit"]


async def test_request_changes_no_other_session(backend: Backend) -> None:
    """Neither a queued nor a processing one."""
    others = [await backend.queued(), (await backend.claimed()).id]
    before = [await backend.get(other) for other in others]

    await to_be_cancelled(backend)
    await backend.sessions.cancel(await backend.queued())

    assert [await backend.get(other) for other in others] == before


async def test_first_request_counts(backend: Backend) -> None:
    """It can be repeated, and its time stays."""
    first = await to_be_cancelled(backend)
    await backend.advance(timedelta(seconds=5))

    again = await backend.sessions.cancel(first.id)

    assert again is not None
    assert again.cancel_requested_at == first.cancel_requested_at


@pytest.mark.parametrize("status", [SessionStatus.COMPLETED, SessionStatus.FAILED])
async def test_final_session_is_not_cancelled(backend: Backend, status: SessionStatus) -> None:
    """Nothing changes; nor is there anything to cancel of an unknown session."""
    ended = await backend.finished(status)
    ledger = await backend.ledger()

    assert await backend.sessions.cancel(ended.id) is None
    assert await backend.sessions.cancel(uuid4()) is None

    assert await backend.get(ended.id) == ended
    assert await backend.ledger() == ledger


async def test_renewal_tells(backend: Backend) -> None:
    """The worker of the current attempt only, and its lease is extended as well."""
    claimed = await backend.claimed()
    assert await backend.attempts.renew(claimed.id, attempt=1, lease=LEASE) is Renewal.RENEWED
    await backend.sessions.cancel(claimed.id)
    before = await backend.get(claimed.id)

    current = await backend.attempts.renew(claimed.id, attempt=1, lease=2 * LEASE)
    stale = await backend.attempts.renew(claimed.id, attempt=2, lease=LEASE)

    after = await backend.get(claimed.id)
    assert (current, stale) == (Renewal.CANCEL_REQUESTED, None)
    assert before.lease_expires_at is not None
    assert after.lease_expires_at is not None
    assert after.lease_expires_at > before.lease_expires_at


async def test_renewals_at_once_tell_each_its_own(backend: Backend) -> None:
    """However many calls share a statement."""
    sessions = [await backend.claimed() for _ in range(6)]
    for session in sessions[::2]:
        await backend.sessions.cancel(session.id)

    told = await asyncio.gather(
        *(backend.attempts.renew(session.id, attempt=1, lease=LEASE) for session in sessions)
    )

    assert told == [Renewal.CANCEL_REQUESTED, Renewal.RENEWED] * 3


@pytest.mark.parametrize("fault", [None, FAULT])
async def test_release_fails_it(backend: Backend, fault: Fault | None) -> None:
    """With the refund at once, and the record of the fault. It is due for no other push."""
    session = await to_be_cancelled(backend)

    status = await backend.attempts.release(session.id, attempt=1, delay=NO_DELAY, fault=fault)

    assert status is SessionStatus.FAILED
    await require_cancelled(backend, session.id)
    assert await backend.balance() == 1
    assert len(await backend.reads.attempt_faults(session.id)) == (1 if fault else 0)
    due = await backend.recovery.claim_overdue(created_before=None, again_after=NO_DELAY, limit=10)
    assert due == []


async def test_release_without_a_request_returns_queued(backend: Backend) -> None:
    """And refunds nothing; a stale attempt's does nothing."""
    session = await backend.claimed(attempt=2)

    stale = await backend.attempts.release(session.id, attempt=1, delay=NO_DELAY)
    status = await backend.attempts.release(session.id, attempt=2, delay=NO_DELAY)

    assert (stale, status) == (None, SessionStatus.QUEUED)
    assert await backend.money_of(session.id) == ["debit"]


async def test_stale_release_does_not_fail_it(backend: Backend) -> None:
    """The attempt fences here as well: the current one may have its picture already."""
    session = await to_be_cancelled(backend, attempt=2)

    assert await backend.attempts.release(session.id, attempt=1, delay=NO_DELAY) is None

    assert await backend.get(session.id) == session


async def test_completion_wins(backend: Backend) -> None:
    """A picture that is there is delivered and paid."""
    session = await to_be_cancelled(backend)

    assert await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))

    completed = await backend.get(session.id)
    assert completed.status is SessionStatus.COMPLETED
    assert completed.cancel_requested_at == session.cancel_requested_at
    assert await backend.money_of(session.id) == ["debit"]


async def test_every_failure_is_the_cancellation(backend: Backend) -> None:
    """Whatever else went wrong meanwhile, which is recorded all the same."""
    session = await to_be_cancelled(backend)

    assert await backend.attempts.fail(session.id, FAILURE, attempt=1, fault=FAULT)

    await require_cancelled(backend, session.id)
    assert len(await backend.reads.attempt_faults(session.id)) == 1


@pytest.mark.parametrize("attempt", [1, MAX_ATTEMPTS])
async def test_dead_lease_fails_it(backend: Backend, attempt: int) -> None:
    """Not before the lease has expired; then at once, whether or not attempts are left."""
    session = await to_be_cancelled(backend, attempt=attempt)
    too_early = await recover(backend)
    await backend.advance(LEASE + MOMENT)

    released, failed = await recover(backend)

    assert too_early == (0, [])
    assert (released, failed) == (0, [await backend.get(session.id)])
    await require_cancelled(backend, session.id)


async def test_dead_lease_is_not_released(backend: Backend) -> None:
    """Even if nothing has failed it yet."""
    session = await to_be_cancelled(backend)
    await backend.advance(LEASE + MOMENT)
    before = await backend.get(session.id)

    released = await backend.recovery.release_dead_leases(
        max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )

    assert released == 0
    assert await backend.get(session.id) == before


async def external(backend: Backend) -> UUID:
    """A session that an external consumer works on, and that is to be cancelled."""
    session_id = await backend.set_externally("processing")
    assert await backend.sessions.cancel(session_id) is not None
    return session_id


async def test_external_completion_wins(backend: Backend) -> None:
    """Of a consumer that never checks."""
    session_id = await external(backend)

    await backend.external_write(session_id, status="completed", generated_image_url=LINK)

    assert (await backend.get(session_id)).status is SessionStatus.COMPLETED
    assert await backend.money_of(session_id) == ["debit"]


async def test_external_silence_fails_it(backend: Backend) -> None:
    """After the time without a lease, not before."""
    session_id = await external(backend)
    await backend.advance(EXTERNAL_TIMEOUT - MOMENT)
    too_early = await recover(backend)
    await backend.advance(2 * MOMENT)

    await recover(backend)

    assert too_early == (0, [])
    await require_cancelled(backend, session_id)


@pytest.mark.parametrize("status", ["queued", "failed"])
async def test_external_end_is_the_cancellation(backend: Backend, status: str) -> None:
    """A consumer that gives the session back, or up, ends it. Recovery refunds it."""
    session_id = await external(backend)

    await backend.external_write(session_id, status=status)

    session = await backend.get(session_id)
    assert (session.status, session.failure) == (SessionStatus.FAILED, CANCELLED)
    assert await backend.attempts.claim(session_id, lease=LEASE) is None
    assert await backend.recovery.refund_missing(limit=10) == 1
    await require_cancelled(backend, session_id)


async def test_cancelled_session_is_final(backend: Backend) -> None:
    """Also for a consumer that gives it back later: the database says so."""
    session = await to_be_cancelled(backend)
    await backend.attempts.release(session.id, attempt=1, delay=NO_DELAY)

    with pytest.raises(IllegalTransition):
        await backend.external_write(session.id, status="queued")

    await require_cancelled(backend, session.id)


async def test_external_return_without_a_request_is_no_end(backend: Backend) -> None:
    """The session waits for another attempt."""
    session_id = await backend.set_externally("processing")

    await backend.external_write(session_id, status="queued")

    assert (await backend.get(session_id)).status is SessionStatus.QUEUED


@pytest.mark.parametrize("first", ["queued", "processing"])
@pytest.mark.parametrize("other", ["claim", "release", "complete", "fail", "cancel"])
async def test_cancel_beside_any_transition(backend: Backend, first: str, other: str) -> None:
    """Whichever comes first: the session is to be cancelled or has ended, is not queued, and its
    ledger matches."""
    if first == "queued":
        ids = [await backend.queued() for _ in range(10)]
    else:
        ids = [(await backend.claimed()).id for _ in range(10)]
    calls: dict[str, Callable[[UUID], Awaitable[object]]] = {
        "claim": lambda id_: backend.attempts.claim(id_, lease=LEASE),
        "release": lambda id_: backend.attempts.release(id_, attempt=1, delay=NO_DELAY),
        "complete": lambda id_: backend.attempts.complete(id_, attempt=1, picture=picture_of(id_)),
        "fail": lambda id_: backend.attempts.fail(id_, FAILURE, attempt=1),
        "cancel": backend.sessions.cancel,
    }

    await asyncio.gather(
        *(call(id_) for id_ in ids for call in (calls[other], backend.sessions.cancel))
    )

    for id_ in ids:
        session = await backend.get(id_)
        assert session.status is not SessionStatus.QUEUED
        assert session.status.is_final or session.cancel_requested_at is not None
        refunded = session.status is SessionStatus.FAILED
        assert await backend.money_of(id_) == ["debit", "refund"][: 1 + refunded]


@pytest.mark.parametrize("is_processed", [False, True])
async def test_cancellation_counts_against_its_caller(
    backend: Backend, *, is_processed: bool
) -> None:
    """As a refund that the owner and the shopper can cause at will. The client token's picture
    comes back, its submission does not."""
    shopper = Shopper(id="shopper-1", token_id=uuid4())
    budget = TokenBudget(
        store_id=STORE.id,
        shopper_id=shopper.id,
        pictures=3,
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )
    await backend.add_token(shopper.token_id, budget)
    await backend.credits.grant(STORE, 9, note="test")
    repo = backend.limited(AccountLimits(refunds_per_hour=1))
    asked = a_session(owner=STORE, shopper=shopper)
    await repo.create(asked, max_active=MANY)
    if is_processed:
        await backend.claim(asked.id)

    await backend.sessions.cancel(asked.id)
    if is_processed:
        await backend.attempts.release(asked.id, attempt=1, delay=NO_DELAY)

    left = await backend.budget_of(shopper.token_id)
    assert (left.used, left.submissions) == (0, 1)
    with pytest.raises(RateLimited, match="cancelled or rejected"):
        await repo.create(a_session(owner=STORE), max_active=MANY)
