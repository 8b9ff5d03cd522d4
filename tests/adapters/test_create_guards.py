"""What a submission decides, and what it looks at, by each of the statements that create sessions:
alone or with others, at once or after another transaction let go of the account."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, Owner
from domain.ports import Receipt
from tests.adapters.batching import calls_of
from tests.contracts.backends import PostgresBackend
from tests.support.examples import MANY, OTHER, USER, a_session, picture_of

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 20.0
NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
NOBODY = Owner(channel=Channel.B2C, id="nobody")
NEIGHBOURS = (NAMESAKE, OTHER)
"""The same id on the other channel, and another id on the same one."""
FUNCTIONS = ("key_is_taken", "count_unfinished")


class Gated(Database):
    """Holds statements back until the gate opens, so that calls share one. Of each it keeps by how
    many calls it was shared, and how often it called each of ``FUNCTIONS``."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url}&track_functions=pl", limits=DatabaseLimits(command_seconds=10))
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent: list[tuple[int, tuple[int, ...]]] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        await self.gate.wait()
        size = calls_of(arguments)
        async with self.transaction() as connection:
            before = await _calls(connection)
            rows = await connection.fetch(sql, *arguments)
            after = await _calls(connection)
        self.sent.append((size, tuple(a - b for a, b in zip(after, before, strict=True))))
        return rows


async def _calls(connection: Connection) -> list[int]:
    sql = "SELECT coalesce(pg_stat_get_xact_function_calls($1::text::regproc), 0)"
    return [await connection.fetchval(sql, name) for name in FUNCTIONS]


@pytest.fixture
async def plain(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    yield database
    await database.close()


@pytest.fixture
async def gated(postgres: EmbeddedPostgres) -> AsyncIterator[Gated]:
    database = Gated(postgres.url())
    yield database
    await database.close()


@pytest.fixture
async def backend(plain: Database) -> PostgresBackend:
    """Neighbours have unfinished sessions, one of them with the key that USER is going to use."""
    backend = PostgresBackend(plain)
    await backend.empty()
    for owner in NEIGHBOURS:
        await backend.credits.grant(owner, 9, note="test")
        for number in range(5):
            key = "k" if number == 0 else None
            session = a_session(owner=owner, idempotency_key=key)
            await backend.sessions.create(session, max_active=MANY)
    return backend


async def submitted(
    gated: Gated, holder: Database, asks: Sequence[tuple[Owner, str | None, int]], *, held: bool
) -> list[str]:
    """What came of calls in one statement; ``held``: of one that had to wait for the account, and
    held no other account meanwhile."""
    sessions = PostgresBackend(gated).sessions
    gated.gate.clear()
    gated.sent.clear()
    tasks = [
        asyncio.ensure_future(
            sessions.create(a_session(owner=owner, idempotency_key=key), max_active=max_active)
        )
        for owner, key, max_active in asks
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        if held:
            async with holder.transaction() as transaction:
                await transaction.execute(f"SELECT FROM credit_accounts {OF_USER} FOR UPDATE")
                gated.gate.set()
                await _waiting(holder)
                free = await holder.fetch("SELECT FROM credit_accounts FOR UPDATE SKIP LOCKED")
                assert len(free) == len(NEIGHBOURS)
        gated.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [_kind(outcome) for outcome in outcomes]


OF_USER = f"WHERE channel = 'b2c' AND owner_id = '{USER.id}'"


async def _waiting(database: Database) -> None:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while await database.fetch_value(sql) != 1:
        pass


def _kind(outcome: object) -> str:
    if isinstance(outcome, Receipt):
        return "replayed" if outcome.replayed else "created"
    return type(outcome).__name__


Before = Callable[[PostgresBackend], Awaitable[object]]


async def _nothing(_: PostgresBackend) -> None:
    pass


async def _a_key(backend: PostgresBackend) -> None:
    session = a_session(idempotency_key="k")
    await backend.sessions.create(session, max_active=MANY)


async def _two_unfinished(backend: PostgresBackend) -> None:
    for _ in range(2):
        await backend.sessions.create(a_session(), max_active=MANY)


async def _three_completed(backend: PostgresBackend) -> None:
    """None of them is unfinished, but so far the account says that three may be."""
    sessions = [a_session() for _ in range(3)]
    for session in sessions:
        await backend.sessions.create(session, max_active=MANY)
    for session in sessions:
        await backend.claim(session.id)
        await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``asks``: keys and bounds. ``account``: its balance, debits, sessions, and how many may be
    unfinished. ``calls``: of each of ``FUNCTIONS``, if it matters how many."""

    credits: int = 3
    before: Before = _nothing
    asks: tuple[tuple[str | None, int], ...]
    outcomes: tuple[str, ...]
    account: tuple[int, int, int, int]
    calls: tuple[int, int] | None = None


NEW = (None, MANY)
CASES = {
    "one": Case(asks=(NEW,), outcomes=("created",), account=(2, 1, 1, 1), calls=(0, 0)),
    "two": Case(asks=(NEW, NEW), outcomes=("created",) * 2, account=(1, 2, 2, 2), calls=(0, 0)),
    "a new key": Case(
        asks=(("k", MANY),), outcomes=("created",), account=(2, 1, 1, 1), calls=(1, 0)
    ),
    "a new key twice": Case(
        asks=(("k", MANY), ("k", MANY)), outcomes=("created", "replayed"), account=(2, 1, 1, 1)
    ),
    "a known key": Case(
        before=_a_key, asks=(("k", MANY),), outcomes=("replayed",), account=(2, 1, 1, 1)
    ),
    "a known key and none": Case(
        before=_a_key,
        asks=(("k", MANY), NEW),
        outcomes=("replayed", "created"),
        account=(1, 2, 2, 2),
    ),
    "no place": Case(
        before=_two_unfinished, asks=((None, 2),), outcomes=("TooManyActive",), account=(1, 2, 2, 2)
    ),
    "no place, and the last credit": Case(
        before=_two_unfinished,
        asks=((None, 2), NEW),
        outcomes=("TooManyActive", "created"),
        account=(0, 3, 3, 3),
    ),
    "more than places": Case(
        asks=((None, 2),) * 3,
        outcomes=("created", "created", "TooManyActive"),
        account=(1, 2, 2, 2),
    ),
    "no credit": Case(
        credits=2,
        before=_two_unfinished,
        asks=(NEW,),
        outcomes=("InsufficientCredits",),
        account=(0, 2, 2, 2),
    ),
    "more than credits": Case(
        credits=2,
        asks=(NEW,) * 3,
        outcomes=("created", "created", "InsufficientCredits"),
        account=(0, 2, 2, 2),
    ),
    "a place of what ended": Case(
        credits=5,
        before=_three_completed,
        asks=((None, 3),),
        outcomes=("created",),
        account=(1, 4, 4, 1),
        calls=(0, 1),
    ),
    "places of what ended": Case(
        credits=5,
        before=_three_completed,
        asks=((None, 3), (None, 3)),
        outcomes=("created", "created"),
        account=(0, 5, 5, 2),
        calls=(0, 1),
    ),
    "a place anyway": Case(
        credits=5,
        before=_three_completed,
        asks=(NEW,),
        outcomes=("created",),
        account=(1, 4, 4, 4),
        calls=(0, 0),
    ),
    "places anyway": Case(
        credits=5,
        before=_three_completed,
        asks=(NEW, NEW),
        outcomes=("created", "created"),
        account=(0, 5, 5, 5),
        calls=(0, 0),
    ),
}


async def _accounts(database: Database) -> dict[tuple[str, str], tuple[int, ...]]:
    rows = await database.fetch(
        "SELECT channel, owner_id, balance, total_debited, sessions_created, unfinished_at_most"
        " FROM credit_accounts"
    )
    return {(row["channel"], row["owner_id"]): tuple(row)[2:] for row in rows}


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("name", CASES)
async def test_submission_is_decided_by_its_own_account(
    gated: Gated, plain: Database, backend: PostgresBackend, name: str, *, held: bool
) -> None:
    """By its balance, its keys and its unfinished sessions, which are looked at only if they may
    decide something; and it changes no other account."""
    case = CASES[name]
    await backend.credits.grant(USER, case.credits, note="test")
    await case.before(backend)
    before = await _accounts(plain)

    outcomes = await submitted(gated, plain, [(USER, *ask) for ask in case.asks], held=held)

    assert tuple(outcomes) == case.outcomes
    assert [size for size, _ in gated.sent] == [len(case.asks)] * (2 if held else 1)
    assert await _accounts(plain) == before | {("b2c", USER.id): case.account}
    assert case.calls is None or gated.sent[-1][1] == case.calls


async def test_owners_of_one_statement_pay_each_for_itself(
    gated: Gated, plain: Database, backend: PostgresBackend
) -> None:
    """Also a store and a user of the same id, with the same key; the statement decides them all."""
    await backend.credits.grant(USER, 3, note="test")
    before = await _accounts(plain)

    outcomes = await submitted(
        gated,
        plain,
        [(USER, "n", MANY), (NAMESAKE, "n", MANY), (OTHER, "n", MANY), (USER, None, MANY)],
        held=False,
    )

    assert outcomes == ["created"] * 4
    assert [size for size, _ in gated.sent] == [4]
    assert await _accounts(plain) == {
        **before,
        ("b2c", USER.id): (1, 2, 2, 2),
        ("b2b", USER.id): (3, 6, 6, 6),
        ("b2c", OTHER.id): (3, 6, 6, 6),
    }
    assert await backend.credits.audit(limit=10) == []


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("count", [1, 2])
async def test_owner_without_an_account_gets_nothing(
    gated: Gated, plain: Database, count: int
) -> None:
    """Alone or twice at once: neither statement fails."""
    before = await _accounts(plain)

    outcomes = await submitted(gated, plain, [(NOBODY, None, MANY)] * count, held=False)

    assert outcomes == ["InsufficientCredits"] * count
    assert [size for size, _ in gated.sent] == [count, count]
    assert await _accounts(plain) == before
