"""Claims, renewals and completions that share a statement: each has the result that it would have
alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.coalescing import DEFAULT_LIMITS, BatchLimits
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import MAX_CLAIM_BATCH, PostgresSessionRepo
from domain.ports import Renewal
from tests.adapters.batching import (
    DEADLINE_SECONDS,
    Gated,
    together,
    waiting_for_a_lock,
)
from tests.contracts.backends import PostgresBackend
from tests.support.examples import LEASE, picture_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Gated]:
    database = Gated(postgres.url())
    database.gate.set()
    yield database
    await database.close()


@pytest.fixture
async def backend(database: Gated) -> PostgresBackend:
    backend = PostgresBackend(database)
    await backend.empty()
    return backend


async def test_session_is_claimed_once_per_batch(database: Gated, backend: PostgresBackend) -> None:
    """Also if several calls ask for it. A call without a session is tried again, alone."""
    first, second = await backend.queued(), await backend.queued()

    claims = await together(
        database,
        *(
            backend.attempts.claim(session_id, lease=LEASE)
            for session_id in (first, first, second, uuid4())
        ),
    )

    assert database.sizes() == [4, 1, 1]
    assert [claim and claim.id for claim in claims] == [first, None, second, None]
    assert [claim.attempt for claim in claims if claim] == [1, 1]


@pytest.mark.parametrize(
    ("limits", "step"), [(DEFAULT_LIMITS, MAX_CLAIM_BATCH), (BatchLimits(calls=3), 3)]
)
async def test_claims_and_completions_have_smaller_batches(
    database: Gated, backend: PostgresBackend, limits: BatchLimits, step: int
) -> None:
    """The database writes for some of a worker's slots while the others work."""
    repo = PostgresSessionRepo(database, batches=limits)
    ids = [await backend.queued() for _ in range(step + 2)]

    claims = await together(database, *(repo.claim(session_id, lease=LEASE) for session_id in ids))
    claimed_in = database.sizes()
    completed = await together(
        database, *(repo.complete(id_, attempt=1, picture=picture_of(id_)) for id_ in ids)
    )

    assert claimed_in == database.sizes() == [step, 2]
    assert [claim.id for claim in claims] == ids
    assert completed == [True] * len(ids)


def claim(repo: PostgresSessionRepo, session_id: UUID) -> Awaitable[object]:
    return repo.claim(session_id, lease=LEASE)


def renew(repo: PostgresSessionRepo, session_id: UUID) -> Awaitable[object]:
    return repo.renew(session_id, attempt=1, lease=LEASE)


def complete(repo: PostgresSessionRepo, session_id: UUID) -> Awaitable[object]:
    return repo.complete(session_id, attempt=1, picture=picture_of(session_id))


@pytest.mark.parametrize("call", [claim, renew, complete])
async def test_locked_session_delays_only_its_own_call(
    postgres: EmbeddedPostgres,
    database: Gated,
    backend: PostgresBackend,
    call: Callable[[PostgresSessionRepo, UUID], Awaitable[object]],
) -> None:
    """An external consumer may hold it for long. If the other calls waited, a worker would lose all
    its leases. Nor does a later batch wait, nor a call for a session that is locked for a shorter
    time."""
    ids = [await backend.queued() for _ in range(4)]
    if call is not claim:
        for session_id in ids:
            await backend.claim(session_id)
    repo = PostgresSessionRepo(database, batches=BatchLimits(in_flight=1))
    holder = Database(postgres.url(), limits=DatabaseLimits())
    lock = "SELECT FROM generation_sessions WHERE id = $1 FOR UPDATE"

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with holder.transaction() as long:
            await long.execute(lock, ids[0])
            async with holder.transaction() as short:
                await short.execute(lock, ids[1])
                database.gate.clear()
                held, held_shortly, free = [asyncio.ensure_future(call(repo, i)) for i in ids[:3]]
                await asyncio.sleep(0)
                database.gate.set()
                assert await free
                await waiting_for_a_lock(holder)
                assert await call(repo, ids[3])
                assert not held_shortly.done()
            assert await held_shortly
            assert not held.done()
        assert await held
    await holder.close()

    assert sorted(database.sizes()[-4:]) == [1, 1, 1, 3]


async def test_each_claim_of_a_batch_has_its_own_lease(
    database: Gated, backend: PostgresBackend
) -> None:
    ids = [await backend.queued() for _ in range(2)]

    claims = await together(
        database,
        backend.attempts.claim(ids[0], lease=LEASE),
        backend.attempts.claim(ids[1], lease=10 * LEASE),
    )

    short, long = (claim.lease_expires_at - claim.started_at for claim in claims)
    assert (short, long) == (LEASE, 10 * LEASE)


async def test_superseded_attempt_fails_alone(database: Gated, backend: PostgresBackend) -> None:
    """In a batch of renewals or completions its result is False, and the others are written."""
    stale = await backend.claimed(attempt=2)
    good = await backend.claimed()

    renewals = await together(
        database,
        backend.attempts.renew(stale.id, attempt=1, lease=10 * LEASE),
        backend.attempts.renew(good.id, attempt=1, lease=10 * LEASE),
        backend.attempts.renew(stale.id, attempt=2, lease=10 * LEASE),
    )
    completions = await together(
        database,
        backend.attempts.complete(stale.id, attempt=1, picture=picture_of(stale.id)),
        backend.attempts.complete(good.id, attempt=1, picture=picture_of(good.id)),
        backend.attempts.complete(uuid4(), attempt=1, picture=picture_of(uuid4())),
    )

    assert renewals == [None, Renewal.RENEWED, Renewal.RENEWED]
    assert completions == [False, True, False]
    assert (await backend.get(stale.id)).status == "processing"
    assert (await backend.get(good.id)).status == "completed"


async def test_processes_with_the_same_sessions_never_deadlock(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """They claim, renew and complete in opposite orders. Each session is claimed once."""
    ids = [await backend.queued() for _ in range(40)]
    async with AsyncExitStack() as stack:
        repos = []
        for _ in range(2):
            other = Database(postgres.url(), limits=DatabaseLimits(command_seconds=20))
            stack.push_async_callback(other.close)
            repos.append(PostgresSessionRepo(other))

        async def everywhere(call: Any) -> list[Any]:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.gather(
                    *(call(repos[0], session_id) for session_id in ids),
                    *(call(repos[1], session_id) for session_id in reversed(ids)),
                )

        claims = await everywhere(lambda repo, id_: repo.claim(id_, lease=LEASE))
        renewed = await everywhere(lambda repo, id_: repo.renew(id_, attempt=1, lease=LEASE))
        done = await everywhere(
            lambda repo, id_: repo.complete(id_, attempt=1, picture=picture_of(id_))
        )

    assert Counter(claim.id for claim in claims if claim) == Counter(ids)
    assert renewed == [Renewal.RENEWED] * 80
    assert sum(done) == 40
