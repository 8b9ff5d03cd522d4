"""Creations that share a statement: each has the result that it would have alone."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.coalescing import BatchLimits
from adapters.embedded.postgres import PORT, EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InsufficientCredits, TooManyActive
from domain.ports import Receipt
from domain.recovery import Recovery, RecoveryPolicy
from domain.sessions import GenerationSession
from tests.adapters.batching import (
    DEADLINE_SECONDS,
    Gated,
    books_balance,
    kinds,
    together,
    waiting_for_a_lock,
)
from tests.contracts.backends import PostgresBackend
from tests.support.clock import utc_now
from tests.support.examples import (
    FAILURE,
    LEASE,
    MANY,
    NO_TOKENS,
    NO_WEBHOOKS,
    NO_WORKERS,
    OTHER,
    STORE,
    USER,
    a_session,
    an_input,
    picture_of,
)
from tests.support.proxy import HOST, Proxy

pytestmark = pytest.mark.anyio

NO_STORAGE = InMemoryPictureStorage(
    signer=UrlSigner(base_url="", secret=b"", lifetime=LEASE, clock=utc_now)
)
WITHOUT_ACCOUNT = Owner(channel=Channel.B2B, id="without-account")


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


async def test_each_creation_of_a_batch_has_its_own_outcome(
    database: Gated, backend: PostgresBackend
) -> None:
    """Whatever the others' outcome. The first ones get the credits."""
    await backend.credits.grant(USER, 4, note="test")
    await backend.credits.grant(STORE, 2, note="test")
    earlier = a_session(idempotency_key="earlier")
    await backend.sessions.create(earlier, max_active=MANY)
    new = a_session(idempotency_key="new")

    def create(session: GenerationSession, max_active: int = MANY) -> Any:
        return backend.sessions.create(session, max_active=max_active)

    outcomes = await together(
        database,
        create(a_session()),
        create(a_session(owner=WITHOUT_ACCOUNT)),
        create(replace(earlier, id=uuid4())),
        create(replace(earlier, id=uuid4(), input=an_input(prompt="something else"))),
        create(a_session(owner=OTHER)),
        create(new),
        create(replace(new, id=uuid4())),
        create(replace(new, id=uuid4(), input=an_input(prompt="something else"))),
        create(a_session(owner=STORE), 1),
        create(a_session(owner=STORE), 1),
        create(a_session()),
        create(a_session()),
    )

    assert kinds(outcomes) == [
        "created",
        "InsufficientCredits",
        "replayed",
        "IdempotencyKeyReused",
        "InsufficientCredits",
        "created",
        "replayed",
        "IdempotencyKeyReused",
        "created",
        "TooManyActive",
        "created",
        "InsufficientCredits",
    ]
    assert database.sizes() == [12, 1, 1]
    assert [outcomes[place].credits_remaining for place in (0, 5, 10, 8)] == [2, 1, 0, 1]
    assert outcomes[2].session.id == earlier.id
    assert outcomes[6].session.id == new.id
    assert [await backend.balance(owner) for owner in (USER, STORE)] == [0, 1]
    await books_balance(backend, database)


@pytest.mark.parametrize(
    ("more", "max_active", "error"),
    [(0, MANY, InsufficientCredits), (5, 1, TooManyActive)],
)
async def test_copies_of_a_refused_request_are_refused_alike(
    database: Gated, backend: PostgresBackend, more: int, max_active: int, error: type
) -> None:
    """None of them gets the key."""
    await backend.credits.grant(USER, 1 + more, note="test")
    await backend.sessions.create(a_session(), max_active=MANY)
    session = a_session(idempotency_key="k")
    copies = [replace(session, id=uuid4()) for _ in range(9)]

    outcomes = await together(
        database, *(backend.sessions.create(copy, max_active=max_active) for copy in copies)
    )

    assert [type(outcome) for outcome in outcomes] == [error] * 9
    assert database.sizes() == [9]


async def test_each_creation_of_a_batch_has_its_own_limit(
    database: Gated, backend: PostgresBackend
) -> None:
    """The limit is checked against the actual number of unfinished sessions, not against its upper
    bound."""
    await backend.credits.grant(USER, 9, note="test")
    for _ in range(3):
        done = (await backend.sessions.create(a_session(), max_active=MANY)).session
        await backend.claim(done.id)
        await backend.attempts.complete(done.id, attempt=1, picture=picture_of(done.id))

    outcomes = await together(
        database,
        backend.sessions.create(a_session(), max_active=2),
        backend.sessions.create(a_session(), max_active=MANY),
    )

    assert kinds(outcomes) == ["created", "created"]


@pytest.mark.parametrize("seed", range(10))
async def test_batch_of_one_is_decided_like_a_larger_batch(
    database: Gated, backend: PostgresBackend, seed: int
) -> None:
    """Its statement is another one, with the same results. Two owners make the same requests, one
    alone, the other beside an owner without an account."""
    chance = random.Random(seed)
    await backend.credits.grant(USER, 6, note="test")
    await backend.credits.grant(OTHER, 6, note="test")

    def ask(owner: Owner, key: str | None, max_active: int) -> Any:
        session = a_session(owner=owner, idempotency_key=key)
        return backend.sessions.create(session, max_active=max_active)

    for _ in range(20):
        key, max_active = chance.choice([None, None, "a", "b"]), chance.randint(1, 6)
        alone = await together(database, ask(USER, key, max_active))
        beside = await together(
            database, ask(OTHER, key, max_active), ask(WITHOUT_ACCOUNT, None, MANY)
        )
        assert kinds(alone) == kinds(beside[:1])
        if isinstance(alone[0], Receipt):
            assert alone[0].credits_remaining == beside[0].credits_remaining
            assert alone[0].session.created_at < beside[0].session.created_at
            end = chance.choice(["", "failed", "completed", "completed"])
            for session_id in (alone[0].session.id, beside[0].session.id):
                if end == "failed":
                    await backend.sessions.fail_queued(session_id, FAILURE)
                if end == "completed":
                    await backend.attempts.claim(session_id, lease=LEASE)
                    owner = (await backend.get(session_id)).owner
                    await backend.attempts.complete(
                        session_id, attempt=1, picture=picture_of(session_id, owner)
                    )

    mine, theirs = [
        await database.fetch_row(
            "SELECT balance, total_debited, sessions_created, unfinished_at_most"
            " FROM credit_accounts WHERE owner_id = $1",
            owner.id,
        )
        for owner in (USER, OTHER)
    ]
    assert mine == theirs
    await books_balance(backend, database)


async def test_invalid_call_fails_alone(database: Gated, backend: PostgresBackend) -> None:
    """PostgreSQL rejects text with NUL. The other calls of the batch succeed."""
    await backend.credits.grant(USER, 5, note="test")

    outcomes = await together(
        database,
        backend.sessions.create(a_session(), max_active=MANY),
        backend.sessions.create(a_session(prompt="\x00"), max_active=MANY),
        backend.sessions.create(a_session(), max_active=MANY),
    )

    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], asyncpg.PostgresError)
    assert await backend.balance() == 3
    await books_balance(backend, database)


@pytest.mark.parametrize("calls", [1, 8])
async def test_concurrent_processes_over_few_accounts(
    postgres: EmbeddedPostgres, backend: PostgresBackend, database: Gated, calls: int
) -> None:
    """Three processes, with and without batching: no deadlock, and every credit is spent exactly
    once."""
    owners = [Owner(channel=Channel.B2B, id=f"store-{number}") for number in range(4)]
    for owner in owners:
        await backend.credits.grant(owner, 40, note="test")
    async with AsyncExitStack() as stack:
        repos = []
        for _ in range(3):
            other = Database(postgres.url(), limits=DatabaseLimits(command_seconds=20))
            stack.push_async_callback(other.close)
            limits = BatchLimits(calls=calls, in_flight=2)
            repos.append(PostgresSessionRepo(other, batches=limits))
        chance = random.Random(1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            outcomes = await asyncio.gather(
                *(
                    chance.choice(repos).create(
                        a_session(owner=owners[number % 4]), max_active=MANY
                    )
                    for number in range(200)
                ),
                return_exceptions=True,
            )

    assert Counter(kinds(outcomes)) == {"created": 160, "InsufficientCredits": 40}
    assert [await backend.balance(owner) for owner in owners] == [0] * 4
    await books_balance(backend, database)


async def test_locked_account_delays_only_its_owner(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The other calls of the batch are answered, also an owner whose account was locked for a
    shorter time. The owner's own calls keep their order."""
    for owner in (USER, OTHER, STORE):
        await backend.credits.grant(owner, 3, note="test")
    holder = Database(postgres.url(), limits=DatabaseLimits())
    lock = "SELECT FROM credit_accounts WHERE owner_id = $1 FOR UPDATE"

    def create(owner: Owner) -> asyncio.Task[Receipt]:
        session = a_session(owner=owner)
        return asyncio.create_task(backend.sessions.create(session, max_active=MANY))

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with holder.transaction() as long:
            await long.execute(lock, USER.id)
            async with holder.transaction() as short:
                await short.execute(lock, OTHER.id)
                held = [create(USER), create(OTHER), create(USER)]
                free = create(STORE)
                await free
                held.append(create(USER))
                assert not any(task.done() for task in held)
            await held[1]
            await create(STORE)
            assert not any(held[place].done() for place in (0, 2, 3))
        receipts = [await held[place] for place in (0, 2, 3)]
    await holder.close()

    assert [receipt.credits_remaining for receipt in receipts] == [2, 1, 0]


async def test_locked_account_of_a_lone_call_delays_no_later_batch(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The call waits apart from the batches."""
    for owner in (USER, STORE):
        await backend.credits.grant(owner, 1, note="test")
    repo = PostgresSessionRepo(backend._database, batches=BatchLimits(in_flight=1))
    holder = Database(postgres.url(), limits=DatabaseLimits())

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with holder.transaction() as transaction:
            await transaction.execute(
                "SELECT FROM credit_accounts WHERE owner_id = $1 FOR UPDATE", USER.id
            )
            held = asyncio.create_task(repo.create(a_session(), max_active=MANY))
            await waiting_for_a_lock(holder)
            await repo.create(a_session(owner=STORE), max_active=MANY)
            assert not held.done()
        receipt = await held
    await holder.close()

    assert receipt.credits_remaining == 0


@pytest.mark.parametrize("seed", range(5))
async def test_counters_of_the_accounts_are_correct(  # noqa: C901 - many things happen
    database: Gated, backend: PostgresBackend, seed: int
) -> None:
    """After any transitions: the upper bound is never below the number of unfinished sessions, the
    limit is kept, and the counters match the rows."""
    chance = random.Random(seed)
    owners = [USER, OTHER, STORE]
    for owner in owners:
        await backend.credits.grant(owner, 1_000, note="test")
    ids: list[UUID] = []

    async def create() -> None:
        owner = chance.choice(owners)
        session = a_session(owner=owner)
        stats = await backend.reads.stats(owner)
        try:
            await backend.sessions.create(session, max_active=6)
        except TooManyActive:
            assert stats.queued + stats.processing == 6
        else:
            assert stats.queued + stats.processing < 6
            ids.append(session.id)

    async def claim() -> None:
        await backend.attempts.claim(chance.choice(ids), lease=LEASE)

    async def complete() -> None:
        id_ = chance.choice(ids)
        owner = (await backend.get(id_)).owner
        await backend.attempts.complete(id_, attempt=1, picture=picture_of(id_, owner))

    async def fail() -> None:
        if chance.choice([True, False]):
            await backend.sessions.fail_queued(chance.choice(ids), FAILURE)
        else:
            await backend.attempts.fail(chance.choice(ids), FAILURE, attempt=1)

    async def release() -> None:
        await backend.attempts.release(chance.choice(ids), attempt=1, delay=timedelta(0))

    async def fail_externally() -> None:
        queued = "SELECT id FROM generation_sessions WHERE status = 'queued' LIMIT 1"
        session_id = await database.fetch_value(queued)
        if session_id is not None:
            await backend.external_write(session_id, status="failed")

    async def recover() -> None:
        await backend.recovery.refund_missing(limit=2)

    steps = [create] * 6 + [claim] * 5 + [complete] * 2 + [fail, release, fail_externally, recover]
    await create()
    for _ in range(120):
        await chance.choice(steps)()

    await backend.recovery.refund_missing(limit=1_000)
    await books_balance(backend, database)
    for owner in owners:
        rows = await database.fetch(
            "SELECT status, count(*) FROM generation_sessions WHERE owner_id = $1 GROUP BY 1",
            owner.id,
        )
        stats = await backend.reads.stats(owner)
        counted = {row["status"]: row["count"] for row in rows}
        assert {status: getattr(stats, status) for status in counted} == counted
        assert sum(counted.values()) == (
            stats.queued + stats.processing + stats.completed + stats.failed
        )


async def test_failed_session_without_its_refund_counts_as_failed(
    backend: PostgresBackend,
) -> None:
    """At once, and still once after its refund."""
    session_id = await backend.queued()
    await backend.external_write(session_id, status="failed")

    owed = await backend.reads.stats(USER)
    await backend.recovery.refund_missing(limit=1)
    refunded = await backend.reads.stats(USER)

    assert owed == refunded
    assert (owed.failed, owed.completed) == (1, 0)


async def test_upper_bound_is_recounted_at_the_limit(
    database: Gated, backend: PostgresBackend
) -> None:
    """Ending a session does not lower it."""
    await backend.credits.grant(USER, 10, note="test")
    noted = []
    for _ in range(5):
        session = (await backend.sessions.create(a_session(), max_active=3)).session
        noted.append(await database.fetch_value("SELECT unfinished_at_most FROM credit_accounts"))
        await backend.claim(session.id)
        await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))

    assert noted == [1, 2, 3, 1, 2]


async def test_batch_of_unknown_outcome_is_not_retried(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """Each caller gets DatabaseUnavailable."""
    await backend.credits.grant(USER, 5, note="test")
    slow = Gated(postgres.url(), command_seconds=0.3)
    repo = PostgresSessionRepo(slow)
    async with backend._database.transaction() as blocker:
        await blocker.execute("LOCK TABLE generation_sessions IN EXCLUSIVE MODE")

        outcomes = await together(
            slow, *(repo.create(a_session(), max_active=MANY) for _ in range(3))
        )
    await slow.close()

    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
    assert slow.sizes() == [3]


@pytest.mark.parametrize("committed", [True, False])
async def test_batch_whose_connection_is_lost(
    postgres: EmbeddedPostgres, backend: PostgresBackend, *, committed: bool
) -> None:
    """Before or after its commit: each caller gets DatabaseUnavailable, nothing is retried, and
    recovery refunds every credit, because no caller was told of a session."""
    await backend.credits.grant(USER, 3, note="test")
    await backend.credits.grant(STORE, 3, note="test")
    async with Proxy(postgres.sockets / f".s.PGSQL.{PORT}").running() as proxy:
        database = Gated(f"postgresql://wearon@{HOST}:{proxy.port}/wearon")
        repo = PostgresSessionRepo(database)
        calls = [
            repo.create(a_session(owner=owner), max_active=MANY) for owner in (USER, STORE) * 3
        ]

        if committed:
            proxy.lose_replies(a_session().input.prompt.encode(), cut=True)
            outcomes = await together(database, *calls)
        else:
            async with backend._database.transaction() as blocker:
                await blocker.execute("LOCK TABLE generation_sessions IN EXCLUSIVE MODE")
                batch = asyncio.create_task(together(database, *calls))
                await waiting_for_a_lock(backend._database)
                await proxy.cut()
                outcomes = await batch
        await database.close()
    created = await backend._database.fetch_value("SELECT count(*) FROM generation_sessions")
    await backend.advance(timedelta(hours=1))
    recovery = Recovery(
        sessions=backend.sessions,
        recovery_repo=backend.recovery,
        queue=InMemoryTaskQueue(clock=utc_now),
        storage=NO_STORAGE,
        uploads=NO_STORAGE,
        tokens=NO_TOKENS,
        webhooks=NO_WEBHOOKS,
        workers=NO_WORKERS,
        policy=RecoveryPolicy(),
        new_id=uuid4,
        clock=utc_now,
    )
    await recovery.run_once()

    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 6
    assert database.sizes() == [6]
    assert created == (6 if committed else 0)
    assert [await backend.balance(owner) for owner in (USER, STORE)] == [3, 3]
    await books_balance(backend, backend._database)
