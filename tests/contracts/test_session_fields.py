"""Every field of a session is stored, compared and protected, on every adapter.

The fields are discovered: a new one makes these tests fail until it is handled everywhere.
"""

from dataclasses import MISSING, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.callers import Shopper
from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused, IllegalTransition
from domain.plans import TokenBudget
from domain.sessions import (
    Blame,
    Failure,
    GenerationInput,
    GenerationSession,
    SessionStatus,
    Usage,
)
from tests.contracts.backends import Backend
from tests.support.examples import FAULT, LEASE, MANY, TRACEPARENT, a_session, picture_of
from tests.support.filling import filled, variations

pytestmark = pytest.mark.anyio

OWNER = filled(Owner)
INPUT = filled(GenerationInput)
USAGE, FAILURE = filled(Usage), filled(Failure)
JOB, LINK = "provider-job", "https://elsewhere.example/picture.png"
VARIATIONS = dict(variations(INPUT))


def a_filled_session(**changes: Any) -> GenerationSession:
    """A new session; all that its creator decides is filled."""
    values = {"owner": OWNER, "request_id": "req-7", "input": INPUT, "idempotency_key": "key-7"}
    values |= {"traceparent": TRACEPARENT}
    return a_session(**values | changes)


async def created(backend: Backend, **changes: Any) -> GenerationSession:
    session = a_filled_session(**changes)
    await backend.credits.grant(session.owner, 1, note="test")
    return (await backend.sessions.create(session, max_active=MANY)).session


async def completed(backend: Backend, session: GenerationSession) -> GenerationSession:
    """The session after a life that left a trace in every field that completion allows."""
    await backend.claim(session.id)
    assert await backend.attempts.record_job(session.id, attempt=1, job=JOB)
    await backend.advance(timedelta(seconds=1))
    picture = picture_of(session.id, OWNER)
    assert await backend.attempts.complete(session.id, attempt=1, picture=picture, usage=USAGE)
    await backend.external_write(session.id, generated_image_url=LINK)
    assert await backend.sessions.confirm([session.id]) == 0
    assert await backend.recovery.mark_images_deleted([session.id]) == 1
    return await backend.get(session.id)


async def test_creation_stores_every_field_of_the_input(backend: Backend) -> None:
    """The receipt shows the session exactly as it is read afterwards, with the creator's values."""
    session = await created(backend)

    assert session == await backend.get(session.id)
    assert session == a_filled_session(id=session.id, created_at=session.created_at)


async def test_every_field_of_a_session_is_stored(backend: Backend) -> None:
    """Over the lives of a claimed, a failed, a completed and two released sessions every field has
    had a value other than its default, and the values are those that were written."""
    released = [
        await backend.released(replace(FAULT, blame=blame))
        for blame in (Blame.SESSION, Blame.PROVIDER)
    ]
    processing = await backend.claim((await created(backend, idempotency_key="key-8")).id)
    cancelled = await backend.sessions.cancel(processing.id)
    assert cancelled is not None
    failing = await created(backend, idempotency_key="key-9")
    assert await backend.sessions.fail_queued(failing.id, FAILURE)
    failed = await backend.get(failing.id)
    done = await completed(backend, await created(backend))
    erased = await completed(backend, await created(backend, idempotency_key="key-10"))
    assert await backend.erasure.erase([erased.id]) == 1
    erased = await backend.get(erased.id)

    assert (done.owner, done.input, done.request_id) == (OWNER, INPUT, "req-7")
    assert (done.picture, done.usage) == (picture_of(done.id, OWNER), USAGE)
    assert done.idempotency_key == "key-7"
    assert (done.provider_job, done.generated_image_url) == (JOB, LINK)
    assert failed.failure == FAILURE
    assert (processing.status, failed.status, done.status) == (
        SessionStatus.PROCESSING,
        SessionStatus.FAILED,
        SessionStatus.COMPLETED,
    )
    lives = (processing, cancelled, failed, done, erased, *released, await of_shopper(backend))
    unset = [
        field.name
        for field in fields(GenerationSession)
        if field.default is not MISSING
        and all(getattr(life, field.name) == field.default for life in lives)
    ]
    assert unset == []


async def of_shopper(backend: Backend) -> GenerationSession:
    """A session that a shopper of a store requested."""
    shopper, store = Shopper(id="shopper-1", token_id=uuid4()), Owner(channel=Channel.B2B, id="s-1")
    budget = TokenBudget(
        store_id=store.id,
        shopper_id=shopper.id,
        pictures=1,
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )
    await backend.add_token(shopper.token_id, budget)
    session = await created(backend, owner=store, shopper=shopper)
    assert session.shopper == shopper
    return await backend.get(session.id)


async def test_every_read_returns_every_field(backend: Backend) -> None:
    """Each statement that returns sessions has a row mapping of its own to get wrong."""
    session = await completed(backend, await created(backend))

    assert await backend.reads.get(session.id, OWNER) == session
    for owner in (None, OWNER):
        assert await backend.reads.history(owner, status=None, limit=9, after=None) == [session]
    replay = await backend.sessions.find_replay(a_filled_session())
    assert replay is not None
    assert replay.session == session


async def test_every_claim_returns_every_field(backend: Backend) -> None:
    """Recovery and workers get what is stored."""
    queued = await created(backend)
    await backend.advance(2 * LEASE)
    (overdue,) = await backend.recovery.claim_overdue(
        created_before=None, again_after=LEASE, limit=9
    )
    assert overdue == await backend.get(queued.id)
    assert await backend.claim(queued.id) == await backend.get(queued.id)
    await backend.advance(2 * LEASE)
    (failed,) = await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=LEASE, limit=9
    )
    assert failed == await backend.get(queued.id)
    await backend.advance(2 * LEASE)
    (expired,) = await backend.recovery.claim_expired_images(
        older_than=LEASE, again_after=LEASE, limit=9
    )
    assert expired == await backend.get(queued.id)
    assert expired.input == INPUT


@pytest.mark.parametrize("place", VARIATIONS)
async def test_replay_is_compared_in_every_field_of_the_input(backend: Backend, place: str) -> None:
    """Under the same key another value in one place is another request: refused, not charged."""
    session = await created(backend)
    other = a_filled_session(input=VARIATIONS[place])
    ledger = await backend.ledger(OWNER)

    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.create(other, max_active=MANY)
    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.find_replay(other)

    assert await backend.get(session.id) == session
    assert await backend.ledger(OWNER) == ledger


async def test_equal_input_is_a_replay(backend: Backend) -> None:
    """Whatever the copy's own id and correlation id."""
    session = await created(backend)

    receipt = await backend.sessions.create(a_filled_session(request_id="req-8"), max_active=MANY)

    assert (receipt.replayed, receipt.session) == (True, session)


@pytest.mark.parametrize("name", [field.name for field in fields(GenerationInput)])
async def test_no_field_of_the_input_can_be_overwritten(backend: Backend, name: str) -> None:
    """It is what was paid for, so the database refuses even an external consumer's SQL."""
    session = await created(backend)
    others = [getattr(other, name) for other in VARIATIONS.values()]
    other = next(other for other in reversed(others) if other != getattr(INPUT, name))

    with pytest.raises(IllegalTransition):
        await backend.external_write_input(session.id, name, other)

    assert await backend.get(session.id) == session
