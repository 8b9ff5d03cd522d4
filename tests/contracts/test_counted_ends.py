"""Each session that an adapter ends is counted once, by the status and code in its row."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

import pytest

from domain.sessions import GenerationSession
from domain.submission import NOT_PUSHED
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, FAULT, LEASE, picture_of

pytestmark = pytest.mark.anyio

MAX_ATTEMPTS = 3
EXTERNAL_TIMEOUT = timedelta(minutes=15)
QUEUE_TTL = timedelta(hours=1)
NO_DELAY = timedelta(0)

End: TypeAlias = Callable[[Backend, UUID], Awaitable[object]]
Begin: TypeAlias = Callable[[Backend], Awaitable[UUID]]


async def queued(backend: Backend) -> UUID:
    return await backend.queued()


async def unconfirmed(backend: Backend) -> UUID:
    return (await backend.created(idempotency_key="key-1")).session.id


async def claimed(backend: Backend) -> UUID:
    return (await backend.claimed()).id


async def to_be_cancelled(backend: Backend) -> UUID:
    session = await backend.claimed()
    await backend.sessions.cancel(session.id)
    return session.id


async def complete(backend: Backend, session_id: UUID) -> bool:
    picture = picture_of(session_id)
    return await backend.attempts.complete(session_id, attempt=1, picture=picture)


async def fail(backend: Backend, session_id: UUID) -> str | None:
    return await backend.attempts.fail(session_id, FAILURE, attempt=1, fault=FAULT)


async def release(backend: Backend, session_id: UUID) -> object:
    return await backend.attempts.release(session_id, attempt=1, delay=NO_DELAY, fault=FAULT)


async def fail_queued(backend: Backend, session_id: UUID) -> bool:
    return await backend.sessions.fail_queued(session_id, FAILURE)


async def undo(backend: Backend, session_id: UUID) -> object:
    return await backend.sessions.undo_many([session_id], NOT_PUSHED)


async def cancel(backend: Backend, session_id: UUID) -> object:
    return await backend.sessions.cancel(session_id)


async def expire(backend: Backend, _: UUID) -> int:
    await backend.advance(2 * QUEUE_TTL)
    return await backend.recovery.fail_expired(FAILURE, older_than=QUEUE_TTL, limit=10)


async def fail_dead(backend: Backend, _: UUID) -> list[GenerationSession]:
    await backend.advance(2 * LEASE)
    return await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )


FAILED = ("failed", FAILURE.code)
CANCELLED = ("failed", "CANCELLED")
ENDS: dict[str, tuple[Begin, End, tuple[str, str]]] = {
    "complete": (claimed, complete, ("completed", "")),
    "complete although to be cancelled": (to_be_cancelled, complete, ("completed", "")),
    "fail": (claimed, fail, FAILED),
    "fail what is to be cancelled": (to_be_cancelled, fail, CANCELLED),
    "release what is to be cancelled": (to_be_cancelled, release, CANCELLED),
    "fail_queued": (queued, fail_queued, FAILED),
    "undo_many": (unconfirmed, undo, ("failed", NOT_PUSHED.code)),
    "cancel": (queued, cancel, CANCELLED),
    "fail_expired": (queued, expire, FAILED),
    "fail_dead_leases": (claimed, fail_dead, FAILED),
    "fail_dead_leases of what is to be cancelled": (to_be_cancelled, fail_dead, CANCELLED),
}


@pytest.mark.parametrize("name", ENDS)
async def test_end_is_counted_as_it_is_in_the_row(backend: Backend, name: str) -> None:
    """Once, also if the same call is repeated."""
    begin, end, counted = ENDS[name]
    session_id = await begin(backend)
    before = dict(backend.ended)

    await end(backend, session_id)
    await end(backend, session_id)

    assert before == {}
    assert backend.ended == {counted: 1}
    session = await backend.get(session_id)
    code = "" if session.failure is None else session.failure.code
    assert (session.status.value, code) == counted


@pytest.mark.parametrize("name", ENDS)
async def test_one_end_of_many_is_counted(backend: Backend, name: str) -> None:
    """Of concurrent calls for one session, one has ended it."""
    begin, end, counted = ENDS[name]
    session_id = await begin(backend)

    await asyncio.gather(*(end(backend, session_id) for _ in range(4)))

    assert backend.ended == {counted: 1}


async def test_release_is_no_end(backend: Backend) -> None:
    session_id = await claimed(backend)

    await release(backend, session_id)

    assert backend.ended == {}


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_external_end_is_not_counted(backend: Backend, status: str) -> None:
    """Neither when it is written, nor when recovery refunds it."""
    session_id = await backend.set_externally(status)

    await backend.recovery.refund_missing(limit=10)
    await fail_queued(backend, session_id)

    assert backend.ended == {}
