"""The number of statements and Redis commands per operation, counted where they are sent.

It reveals a query in a loop, a second round trip or a repeated command long before a benchmark.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from adapters.auth.api_keys import key_sha256, new_api_key
from adapters.changes.redis import RedisChanges
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres import database as database_module
from config.closing import close
from config.container import Container, replace
from config.loading import load_settings
from domain.callers import Caller
from domain.errors import Refused
from domain.generation import Outcome
from domain.ports import ApiKey
from domain.sessions import ErrorCode, GenerationSession
from domain.submission import Submission, SubmissionPolicy
from domain.tasks import GenerationTask
from entrypoints.http.server import readiness_checks
from tests.contracts.backends import PostgresBackend
from tests.contracts.operating import a_worker_state
from tests.support.clock import START
from tests.support.examples import STORE, USER, a_request
from tests.support.images import FakePictureFetcher, FakePictureGenerator
from tests.support.service import INPUTS

pytestmark = pytest.mark.anyio

OWN_PAGES = frozenset({"http://127.0.0.1:8000"})

OF_A_CONNECTION = {"client|setinfo", "client", "hello", "select", "auth", "ping"}
"""Commands that a client sends once per connection."""
OURS = {"info", "config|resetstat", "flushall"}
NOT_WAITED_FOR = {"publish"}
"""One message has the changes of some time, so the number says nothing about one call."""
CONFIRMED_AT_ONCE = 500


class CountingConnection(database_module._Connection):
    """Records the text of every statement."""

    sent: list[str]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.add_query_logger(lambda query: self.sent.append(query.query))


@dataclass
class Costs:
    """A whole service on real servers, and the statements and commands sent to them."""

    container: Container
    redis: Redis
    generator: FakePictureGenerator
    sent: list[str] = field(default_factory=list)

    async def reset(self) -> None:
        self.sent.clear()
        await self.redis.config_resetstat()

    async def commands(self) -> dict[str, int]:
        """The number of each command since ``reset``, except for those of new clients."""
        stats: dict[str, Any] = await self.redis.info("commandstats")
        ignored = OF_A_CONNECTION | OURS | NOT_WAITED_FOR
        counts = Counter({name.removeprefix("cmdstat_"): of["calls"] for name, of in stats.items()})
        return {name: counts[name] for name in counts if name not in ignored}

    async def spent(self) -> tuple[int, dict[str, int]]:
        """The statements and commands since ``reset``."""
        return len(self.sent), await self.commands()

    async def submitted(self, **changes: Any) -> GenerationSession:
        await self.container.accounts().grant(USER, 1, note="test")
        receipt = await self.container.submission().submit(a_request(USER, **changes))
        session: GenerationSession = receipt.session
        return session

    async def popped(self) -> GenerationTask:
        task = await self.container.queue().pop(timeout_seconds=1)
        assert isinstance(task, GenerationTask)
        return task


@pytest.fixture
async def costs(
    postgres: EmbeddedPostgres,
    valkey: EmbeddedValkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Costs]:
    """A service with open connections and empty counters."""
    monkeypatch.setattr(database_module, "_Connection", CountingConnection)
    container = Container(
        settings=load_settings(
            {
                "DATABASE_URL": postgres.url(),
                "REDIS_URL": valkey.url,
                "WEARON_ENVIRONMENT": "development",
                "WEARON_STORAGE": "memory",
                "WEARON_DATA_DIR": str(tmp_path),
                "WEARON_JWT_SECRET": "j" * 32,
                "WEARON_SIGNING_SECRET": "s" * 32,
            }
        )
    )
    generator = FakePictureGenerator()
    replace(container.generator, generator)
    replace(container.fetcher, FakePictureFetcher(INPUTS))
    redis = Redis.from_url(valkey.url)
    costs = Costs(container=container, redis=redis, generator=generator)
    monkeypatch.setattr(CountingConnection, "sent", costs.sent, raising=False)
    await PostgresBackend(container.database()).empty()
    await redis.flushall()
    try:
        # Each connection looks up unknown types once.
        for refusals in ([], [Refused("no", code=ErrorCode.MODERATION_BLOCKED)]):
            generator.outcomes = [*refusals]
            await costs.submitted()
            await container.generation().run(await costs.popped())
        await container.submission().confirm_pushed()
        await container.recovery().run_once()
        await costs.reset()
        yield costs
    finally:
        await redis.aclose()
        await close(container)


async def test_submission(costs: Costs) -> None:
    """Charging and recording are one statement. The push is one command."""
    await costs.container.accounts().grant(USER, 1, note="test")
    await costs.reset()

    await costs.container.submission().submit(a_request(USER, idempotency_key="k"))

    assert await costs.spent() == (1, {"lpush": 1})


async def test_replay(costs: Costs) -> None:
    """The CREATE statement, and the one that reads the earlier session."""
    await costs.submitted(idempotency_key="k")
    await costs.reset()

    await costs.container.submission().submit(a_request(USER, idempotency_key="k"))

    assert await costs.spent() == (2, {})


async def test_submission_publishes_nothing(costs: Costs) -> None:
    """Clients that wait find a new session by themselves."""
    changes = costs.container.changes()
    assert isinstance(changes, RedisChanges)
    if changes._sender is not None:  # Of an earlier test.
        await changes._sender
    await costs.submitted()

    assert (changes._unsent, changes._sender) == ({}, None)


async def test_replay_while_the_queue_is_full(costs: Costs) -> None:
    """Only the statement that reads the earlier session."""
    container = costs.container
    submission = Submission(
        sessions=container.sessions(),
        reads=container.sessions(),
        queue=container.queue(),
        policy=SubmissionPolicy(max_waiting=0),
        new_id=uuid4,
        clock=container.clock(),
    )
    await costs.submitted(idempotency_key="k")
    await container.submission().confirm_pushed()
    await costs.reset()

    receipt = await submission.submit(a_request(USER, idempotency_key="k"))

    assert receipt.replayed
    assert await costs.spent() == (1, {})


async def test_confirm_and_measure(costs: Costs) -> None:
    """Many sessions are confirmed by one statement."""
    for _ in range(3):
        await costs.submitted()
    await costs.reset()

    await costs.container.submission().confirm_pushed()
    await costs.container.submission().measure_queue()

    assert await costs.spent() == (1, {"llen": 1})


async def test_pauses_are_read_by_one_statement(costs: Costs) -> None:
    """Each API process reads them every two seconds."""
    await costs.container.pauses().paused()
    await costs.reset()

    await costs.container.pauses().paused()

    assert await costs.spent() == (1, {})


async def test_confirm_many(costs: Costs) -> None:
    """One statement per five hundred sessions."""
    submission = costs.container.submission()
    submission._unconfirmed = dict.fromkeys(uuid4() for _ in range(2 * CONFIRMED_AT_ONCE + 1))

    await submission.confirm_pushed()

    assert await costs.spent() == (3, {})


async def test_authentication(costs: Costs) -> None:
    """A store's key is looked up once per cache lifetime. A user's token needs no look-up."""
    key, user = new_api_key(), UUID(USER.id)
    await costs.container.api_keys().add(
        ApiKey(id=uuid4(), owner=STORE, key_sha256=key_sha256(key), label="test", created_at=START)
    )
    now, day = costs.container.clock()(), timedelta(days=1)
    token = costs.container.user_token()(user, now=now, lifetime=day)
    await costs.reset()

    assert await costs.container.authenticate()(token) == Caller(
        owner=USER, origins=OWN_PAGES, any_origin=True
    )
    assert await costs.spent() == (0, {})
    for _ in range(3):
        assert await costs.container.authenticate()(key) == Caller(owner=STORE, origins=OWN_PAGES)
    assert await costs.spent() == (1, {})


async def test_get_session(costs: Costs) -> None:
    """One statement; for a queued session another one for its position."""
    session = await costs.submitted()
    await costs.reset()

    await costs.container.views().get(session.id, USER)
    waiting = await costs.spent()
    await costs.container.generation().run(await costs.popped())
    await costs.reset()
    await costs.container.views().get(session.id, USER)

    assert waiting == (2, {})
    assert await costs.spent() == (1, {})


@pytest.mark.parametrize("count", [1, 7])
async def test_lists(costs: Costs, count: int) -> None:
    """The number of items does not matter."""
    for _ in range(count):
        await costs.submitted()
    await costs.reset()

    await costs.container.sessions().history(USER, status=None, limit=20, after=None)
    await costs.container.sessions().stats(USER)
    await costs.container.accounts().ledger(USER, limit=20, before_id=None)
    await costs.container.accounts().account(USER)

    assert await costs.spent() == (4, {})


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (None, Outcome.COMPLETED),
        (Refused("no", code=ErrorCode.MODERATION_BLOCKED), Outcome.FAILED),
    ],
)
async def test_task(costs: Costs, made: Refused | None, outcome: Outcome) -> None:
    """One command to pop it, one statement to claim it, one to settle it, even a failure with its
    refund."""
    await costs.submitted()
    costs.generator.outcomes = [] if made is None else [made]
    await costs.reset()

    ended = await costs.container.generation().run(await costs.popped())

    assert ended is outcome
    assert await costs.spent() == (2, {"brpop": 1})


async def test_task_of_a_final_session(costs: Costs) -> None:
    """The claim, the claim that waits for a lock, and whether there is such a session."""
    await costs.submitted()
    task = await costs.popped()
    await costs.container.generation().run(task)
    await costs.container.queue().push(task)
    await costs.reset()

    ended = await costs.container.generation().run(await costs.popped())

    assert ended is Outcome.SKIPPED
    assert await costs.spent() == (3, {"brpop": 1})


async def test_cancel(costs: Costs) -> None:
    """Read, then fail with the refund."""
    session = await costs.submitted()
    await costs.reset()

    await costs.container.submission().cancel(session.id, USER)

    assert await costs.spent() == (2, {})


async def test_idle_recovery_run(costs: Costs) -> None:
    """One statement per step, and a look at the oldest task. Old uploads and client tokens are
    searched for now and then."""
    await costs.container.recovery().run_once()
    await costs.reset()

    await costs.container.recovery().run_once()

    assert await costs.spent() == (6, {"lindex": 1})


async def test_check_of_the_queue(costs: Costs) -> None:
    """Two commands, which change nothing, for all who ask within a second."""
    check = readiness_checks(costs.container.repositories(), costs.container.queue())["queue"]
    for _ in range(3):
        await check()

    assert await costs.spent() == (0, {"llen": 1, "lpushx": 1})


async def test_look_for_a_due_check_of_the_books(costs: Costs) -> None:
    """One statement, for each worker and look."""
    await costs.container.books().run_once()
    await costs.reset()

    assert await costs.container.books().run_once() is None
    assert await costs.spent() == (1, {})


@pytest.mark.parametrize("with_spending", [False, True])
async def test_report_of_a_worker(costs: Costs, with_spending: bool) -> None:
    """One statement writes it and reads what the worker has to know."""
    state = a_worker_state(uuid4())
    await costs.container.repositories().workers.report(state, with_spending=with_spending)
    await costs.reset()

    await costs.container.repositories().workers.report(state, with_spending=with_spending)

    assert await costs.spent() == (1, {})


async def test_every_statement_and_command_is_counted(costs: Costs) -> None:
    """Also within a transaction, and also a failing one."""
    async with costs.container.database().transaction() as connection:
        await connection.execute("SELECT 1")
        await connection.fetch("SELECT 1")
    await costs.container.database().fetch_value("SELECT 1")
    await costs.redis.lpush("counted", "1")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await costs.container.database().fetch("no SQL")

    assert [text.split(";")[0] for text in costs.sent] == [
        "BEGIN ISOLATION LEVEL READ COMMITTED",
        *["SELECT 1"] * 2,
        "COMMIT",
        "SELECT 1",
        "no SQL",
    ]
    assert await costs.commands() == {"lpush": 1}
