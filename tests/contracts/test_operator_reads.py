"""OperatorReadPort: what operators are shown of all owners' sessions, workers and books."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.causes import Cause, CauseKind
from domain.credits import Channel, Owner
from domain.errors import NotFound
from domain.ids import uuid7_floor
from domain.operator_ports import (
    BookCheck,
    CostKey,
    CostRow,
    Pause,
    SessionFilter,
    Snapshot,
    Switch,
    WorkerState,
)
from domain.sessions import CANCELLED, SessionStatus, Usage
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, FAULT, OTHER, STORE, USAGE, USER, picture_of

pytestmark = pytest.mark.anyio

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY = timedelta(days=1)
NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
QUEUED, PROCESSING, COMPLETED, FAILED = SessionStatus


@asynccontextmanager
async def ago(backend: Backend, age: timedelta) -> AsyncIterator[datetime]:
    """What is done within is ``age`` old afterwards. Yields that time."""
    at = backend.now() - age
    await backend.advance(-age)
    yield at
    await backend.advance(age)


def made_at(at: datetime) -> UUID:
    """A new UUIDv7 of that time."""
    return UUID(int=uuid7_floor(at).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1)


async def created(
    backend: Backend, *, age: timedelta = timedelta(0), owner: Owner = USER, **changes: Any
) -> UUID:
    """A queued session of this age. The id of a younger one is larger."""
    async with ago(backend, age) as at:
        return (await backend.created(owner, id=made_at(at), **changes)).session.id


async def completed(
    backend: Backend,
    *,
    age: timedelta,
    took: timedelta = SECOND,
    waited: timedelta = SECOND,
    owner: Owner = USER,
    usage: Usage | None = USAGE,
) -> UUID:
    """A session that was completed ``age`` ago."""
    session_id = await created(backend, age=age + took + waited, owner=owner)
    async with ago(backend, age + took):
        await backend.claim(session_id, lease=HOUR)
    async with ago(backend, age):
        assert await backend.attempts.complete(
            session_id, attempt=1, picture=picture_of(session_id, owner), usage=usage
        )
    return session_id


async def failed(
    backend: Backend, *, age: timedelta = timedelta(0), code: str = "EXPIRED", **changes: Any
) -> UUID:
    """A session that failed ``age`` ago."""
    session_id = await created(backend, age=age + SECOND, **changes)
    async with ago(backend, age):
        assert await backend.sessions.fail_queued(session_id, replace(FAILURE, code=code))
    return session_id


async def snapshot(backend: Backend) -> Snapshot:
    return await backend.operator_reads.snapshot()


async def listed(
    backend: Backend, *, limit: int = 100, before: UUID | None = None, **which: Any
) -> list[UUID]:
    sessions = await backend.operator_reads.sessions(
        SessionFilter(**which), limit=limit, before=before
    )
    return [session.id for session in sessions]


async def test_new_service_has_nothing(backend: Backend) -> None:
    """All counts are 0, and what was never measured is None. The time is the database's."""
    earliest = backend.now() - MINUTE

    found = await snapshot(backend)

    assert found == Snapshot(at=found.at, workers=[], pauses=[])
    assert earliest <= found.at <= backend.now() + MINUTE


async def test_unfinished_sessions_are_counted(backend: Backend) -> None:
    """Of all owners, with the creation of the oldest one that is queued."""
    await backend.in_every_status()
    oldest = await created(backend, age=HOUR, owner=OTHER)

    found = await snapshot(backend)

    assert (found.queued, found.processing) == (3, 2)
    assert found.oldest_queued_at == (await backend.get(oldest)).created_at


async def test_unconfirmed_sessions_are_counted_after_five_seconds(backend: Backend) -> None:
    """Only those that are queued."""
    confirmed, unknown = [await created(backend, age=6 * SECOND) for _ in range(2)]
    await backend.sessions.confirm([confirmed])
    await created(backend)
    await failed(backend, age=6 * SECOND)

    found = await snapshot(backend)

    assert (await backend.get(unknown)).confirmed is False
    assert found.unconfirmed == 1


async def test_dead_leases_are_counted(backend: Backend) -> None:
    """Of an expired lease; an external consumer has none."""
    await backend.set_externally("processing")
    await backend.claimed(lease=HOUR)
    await backend.claimed(lease=MINUTE)
    await backend.advance(2 * MINUTE)

    found = await snapshot(backend)

    assert (found.dead_leases, found.processing) == (1, 3)


async def test_owed_refunds_are_counted(backend: Backend) -> None:
    """Those of sessions that an external consumer failed, until recovery refunds them."""
    await failed(backend)
    async with ago(backend, HOUR):
        first = await backend.set_externally("failed")
    await backend.set_externally("failed")

    before = await snapshot(backend)
    await backend.recovery.refund_missing(limit=10)
    after = await snapshot(backend)

    assert before.owed_refunds == 2
    assert before.oldest_owed_at == (await backend.get(first)).completed_at
    assert (after.owed_refunds, after.oldest_owed_at) == (0, None)


async def test_windows_count_what_ended_within(backend: Backend) -> None:
    """A minute, a quarter of an hour, and a day."""
    for age in (30 * SECOND, 14 * MINUTE, 23 * HOUR, 25 * HOUR):
        await completed(backend, age=age)
    for age in (30 * SECOND, 2 * MINUTE, 16 * MINUTE, 25 * HOUR):
        await failed(backend, age=age)

    found = await snapshot(backend)

    windows = (found.last_minute, found.last_quarter, found.last_day)
    assert [(window.completed, window.failed) for window in windows] == [(1, 1), (2, 2), (3, 3)]


async def test_failures_are_counted_by_code(backend: Backend) -> None:
    """A code without a failure in a window is not in it; an external consumer may write any."""
    for code in ("EXPIRED", "EXPIRED", "CANCELLED"):
        await failed(backend, code=code)
    await failed(backend, code="MODERATION_BLOCKED", age=HOUR)
    await failed(backend, code="an external code", age=2 * DAY)
    unrefunded = await created(backend)
    await backend.external_write(unrefunded, status="failed")

    found = await snapshot(backend)

    recent = {"EXPIRED": 2, "CANCELLED": 1, "GENERATION_FAILED": 1}
    assert found.last_minute.by_code == recent
    assert found.last_day.by_code == recent | {"MODERATION_BLOCKED": 1}
    assert found.last_day.failed == 5


async def test_causes_of_failed_attempts_are_counted(backend: Backend) -> None:
    """Of a day, most frequent first, whatever became of the session; and of a quarter of an hour,
    so that what fails now is seen beside what failed more often before."""
    provider = replace(FAULT, cause=Cause(CauseKind.PROVIDER, "500 server_error"))
    for fault in (FAULT, provider, provider):
        await backend.released(fault)
    async with ago(backend, 16 * MINUTE):
        await backend.released(FAULT)
        await backend.released(FAULT)
    async with ago(backend, 25 * HOUR):
        await backend.released(replace(FAULT, cause=Cause(CauseKind.BUG, "KeyError")))

    found = await snapshot(backend)

    assert list(found.causes.items()) == [
        ("input 404 host=pictures.example", 3),
        ("provider 500 server_error", 2),
    ]
    assert list(found.recent_causes.items()) == [
        ("provider 500 server_error", 2),
        ("input 404 host=pictures.example", 1),
    ]


async def test_twenty_causes_are_enough(backend: Backend) -> None:
    """The most frequent ones."""
    for number in (*range(21), 20):
        cause = Cause(CauseKind.INPUT, f"host={number:02}")
        await backend.released(replace(FAULT, cause=cause))

    found = await snapshot(backend)

    assert list(found.causes) == [
        "input host=20",
        *[f"input host={number:02}" for number in range(19)],
    ]


async def test_waits_and_works_are_percentiles(backend: Backend) -> None:
    """Of sessions that were completed in the last hour, in seconds. One that an external consumer
    completed without a claim has neither."""
    for number in range(1, 4):
        await completed(backend, age=MINUTE, waited=number * 10 * SECOND, took=number * SECOND)
    await completed(backend, age=61 * MINUTE, waited=HOUR, took=HOUR)
    await backend.set_externally("completed")

    found = await snapshot(backend)

    # On PostgreSQL the steps of the example take milliseconds of their own.
    assert found.waits == pytest.approx((20, 29), abs=5)
    assert found.works == pytest.approx((2, 2.9), abs=0.9)


async def test_cost_of_today_is_summed(backend: Backend) -> None:
    """The day is that of UTC. What has no known cost counts as nothing."""
    now = backend.now()
    today = now - now.replace(hour=0, minute=0, second=0, microsecond=0)
    ids = [await completed(backend, age=age) for age in (timedelta(0), today + MINUTE, 2 * DAY)]
    await backend.finished(COMPLETED)

    found = await snapshot(backend)

    ends = [(await backend.get(session_id)).completed_at for session_id in ids]
    days = [end.date() for end in ends if end is not None]
    assert USAGE.estimated_cost_usd is not None
    assert found.spent_today_usd == USAGE.estimated_cost_usd * days.count(found.at.date())
    assert days.count(found.at.date()) < 2


def a_worker(**changes: Any) -> WorkerState:
    state = WorkerState(
        id=uuid4(),
        host="host-a",
        pid=7,
        version="1.0",
        started_at=datetime.fromisoformat("2026-01-01T00:00:00Z"),
        slots=4,
    )
    return replace(state, **changes)


async def test_workers_are_shown_latest_first(backend: Backend) -> None:
    """For a day after their last report, with all that they reported."""
    now = backend.now()
    full = a_worker(
        busy=3,
        draining=True,
        throttled_until=now + SECOND,
        limit_is_local=True,
        circuit_until=now + MINUTE,
        circuit_cause="provider 401 invalid_api_key",
        done=5,
        failed=6,
        seen_at=now - SECOND,
    )
    old, gone = a_worker(seen_at=now - 23 * HOUR), a_worker(seen_at=now - 25 * HOUR)
    for state in (old, full, gone):
        await backend.put_worker(state)

    found = await snapshot(backend)

    assert found.workers == [full, old]
    assert found.live_workers() == [full]


async def test_pauses_are_shown(backend: Backend) -> None:
    """The oldest first."""
    now = backend.now()
    pauses = [
        Pause(switch=switch, since=now - age, actor="cli:alice", reason="a deployment")
        for switch, age in ((Switch.WORKERS, MINUTE), (Switch.INTAKE, HOUR))
    ]
    for pause in pauses:
        await backend.put_pause(pause)

    assert (await snapshot(backend)).pauses == pauses[::-1]


async def test_check_of_the_books_is_shown(backend: Backend) -> None:
    check = BookCheck(
        at=backend.now(), took=timedelta(milliseconds=1_500), discrepancies=1, first="b2b:shop: -1"
    )
    await backend.put_check(check)

    assert (await snapshot(backend)).books == check


async def test_final_sessions_of_all_time_are_counted(backend: Backend) -> None:
    """Also a failed one that has no refund yet."""
    await completed(backend, age=40 * DAY)
    await backend.set_externally("completed")
    await failed(backend, age=40 * DAY, owner=OTHER)
    await backend.set_externally("failed")
    await created(backend)
    await backend.claimed()

    found = await snapshot(backend)

    assert (found.completed_total, found.failed_total) == (2, 2)


async def test_sessions_are_listed_newest_first_by_id(backend: Backend) -> None:
    """Those of all owners, complete, and only those with a smaller id than ``before``."""
    ids = [await created(backend, age=age * MINUTE, owner=USER) for age in (1, 2)]
    ids.append(await created(backend, age=3 * MINUTE, owner=STORE))
    await backend.claim(ids[0])

    found = await backend.operator_reads.sessions(SessionFilter(), limit=10)

    assert found == [await backend.get(session_id) for session_id in ids]
    assert await listed(backend, limit=2) == ids[:2]
    assert await listed(backend, before=ids[0]) == ids[1:]
    assert await listed(backend, before=ids[2]) == []


STATUSES = [
    (),
    (QUEUED,),
    (PROCESSING,),
    (COMPLETED,),
    (FAILED,),
    (QUEUED, PROCESSING),
    (COMPLETED, FAILED),
    (QUEUED, PROCESSING, COMPLETED, FAILED),
]


async def some_of_each_status(backend: Backend, owner: Owner) -> dict[UUID, SessionStatus]:
    """Newest first. Failures have different codes."""
    found = {}
    for number in range(8):
        age = (number + 2) * HOUR
        session_id = await created(backend, age=age, owner=owner)
        status = list(SessionStatus)[number % 4]
        if status is not QUEUED and status is not FAILED:
            await backend.claim(session_id)
        if status is COMPLETED:
            picture = picture_of(session_id, owner)
            await backend.attempts.complete(session_id, attempt=1, picture=picture)
        if status is FAILED:
            failure = CANCELLED if number < 4 else FAILURE
            await backend.sessions.fail_queued(session_id, failure)
        found[session_id] = status
    return found


@pytest.mark.parametrize("owner", [None, USER])
@pytest.mark.parametrize("statuses", STATUSES, ids=lambda some: "+".join(some) or "any")
async def test_sessions_of_statuses(
    backend: Backend, statuses: tuple[SessionStatus, ...], owner: Owner | None
) -> None:
    """Each page has the next ones of any of them. No status means every one."""
    ids = await some_of_each_status(backend, USER)
    await some_of_each_status(backend, OTHER) if owner else None

    found, before = [], None
    while page := await listed(backend, statuses=statuses, owner=owner, limit=3, before=before):
        found += page
        before = page[-1]

    assert found == [one for one, status in ids.items() if not statuses or status in statuses]


async def test_sessions_of_an_owner(backend: Backend) -> None:
    """Not those of the same id on the other channel."""
    ids = {owner: await created(backend, owner=owner) for owner in (USER, OTHER, NAMESAKE)}

    for owner, session_id in ids.items():
        assert await listed(backend, owner=owner) == [session_id]
    assert await listed(backend, owner=STORE) == []


async def test_owners_sessions_are_in_the_order_of_their_ids(backend: Backend) -> None:
    """Also where the database's clock saw them in another order: the processes that make the ids
    may differ by minutes."""
    now = backend.now()
    places = [110, -20, 0, 70, -50]
    ids = [
        (await backend.created(USER, id=made_at(now + place * SECOND))).session.id
        for place in places
    ]
    newest = sorted(ids, reverse=True)

    pages: list[UUID] = []
    while page := await listed(backend, owner=USER, limit=2, before=pages[-1] if pages else None):
        pages += page

    assert await listed(backend, owner=USER, limit=1) == newest[:1]
    assert pages == newest


async def test_sessions_with_an_error_code(backend: Backend) -> None:
    """Only failed sessions have one. Other filters count as well."""
    ids = [await failed(backend, age=age * HOUR, code="EXPIRED") for age in (1, 2)]
    others = await failed(backend, age=3 * HOUR, code="EXPIRED", owner=OTHER)
    await failed(backend, age=HOUR, code="CANCELLED")
    await created(backend, age=HOUR)

    assert await listed(backend, error_code="EXPIRED") == [*ids, others]
    assert await listed(backend, error_code="EXPIRED", limit=1, before=ids[0]) == [ids[1]]
    assert await listed(backend, error_code="EXPIRED", owner=USER) == ids
    assert await listed(backend, error_code="EXPIRED", statuses=(FAILED, QUEUED)) == [*ids, others]
    assert await listed(backend, error_code="EXPIRED", statuses=(QUEUED,)) == []
    assert await listed(backend, error_code="EXPIR") == []


def our_id(at: datetime, *, random: int = 0) -> str:
    """A request id of ours, as the API makes them."""
    return f"req_{uuid7_floor(at).int >> 80:012x}{random:012x}"


@pytest.mark.parametrize("away", [-110, 0, 110])
async def test_our_request_id_is_found_at_any_age(backend: Backend, away: int) -> None:
    """Even if the clocks of two processes are nearly two minutes apart."""
    age = 20 * DAY
    at = backend.now() - age
    request_id = our_id(at + away * SECOND)
    await created(backend, age=age, request_id=our_id(at, random=1))
    session_id = await created(backend, age=age, request_id=request_id)

    assert await listed(backend, request_id=request_id) == [session_id]


async def test_our_request_id_that_a_caller_sent_again_is_found_for_a_day(backend: Backend) -> None:
    """Like the caller's own, and together with the first session."""
    request_id = our_id(backend.now() - 10 * DAY)
    first = await created(backend, age=10 * DAY, request_id=request_id)
    later = await created(backend, age=HOUR, request_id=request_id)

    assert await listed(backend, request_id=request_id) == [later, first]
    assert await listed(backend, request_id=request_id, limit=1) == [later]


@pytest.mark.parametrize("request_id", ["order-7", "req_1", "req_ffffffffffffffffffffffff"])
async def test_callers_request_id_is_found_for_a_day(backend: Backend, request_id: str) -> None:
    """Or since the time asked for. Several sessions may have it."""
    ids = [await created(backend, age=age * HOUR, request_id=request_id) for age in (1, 2, 25, 49)]
    await created(backend, age=HOUR, request_id="another")

    assert await listed(backend, request_id=request_id) == ids[:2]
    since = backend.now() - 2 * DAY
    assert await listed(backend, request_id=request_id, since=since) == ids[:3]
    assert await listed(backend, request_id=request_id, limit=1, before=ids[0]) == [ids[1]]


async def test_all_filters_count_for_a_request_id(backend: Backend) -> None:
    """Owner, status, code and times."""
    request_id = our_id(backend.now() - HOUR)
    mine = await failed(backend, age=HOUR, request_id=request_id, code="EXPIRED")
    other = await created(backend, age=HOUR, request_id=request_id, owner=OTHER)
    asked: dict[str, Any] = {"request_id": request_id}

    assert set(await listed(backend, **asked)) == {mine, other}
    assert await listed(backend, **asked, owner=USER) == [mine]
    assert await listed(backend, **asked, statuses=(QUEUED,)) == [other]
    assert await listed(backend, **asked, error_code="EXPIRED") == [mine]
    assert await listed(backend, **asked, error_code="CANCELLED") == []
    assert await listed(backend, **asked, since=backend.now() - MINUTE) == []
    assert await listed(backend, **asked, until=backend.now() - 2 * HOUR) == []


@pytest.mark.parametrize(
    "which",
    [{}, {"statuses": (QUEUED,)}, {"statuses": (FAILED,)}, {"owner": USER}, {"error_code": "X"}],
    ids=["all", "queued", "failed", "owner", "code"],
)
async def test_times_bound_a_list(backend: Backend, which: dict[str, Any]) -> None:
    """From ``since`` until before ``until``, by when the id was made."""
    is_queued = which.get("statuses") == (QUEUED,)
    ids = [
        await created(backend, age=age * HOUR)
        if is_queued
        else await failed(backend, age=age * HOUR, code="X")
        for age in (1, 3, 5)
    ]
    since, until = (backend.now() - age * HOUR for age in (4, 2))

    assert await listed(backend, **which) == ids
    assert await listed(backend, **which, since=since) == ids[:2]
    assert await listed(backend, **which, until=until) == ids[1:]
    assert await listed(backend, **which, since=since, until=until) == [ids[1]]


async def test_file_has_everything_about_a_session(backend: Backend) -> None:
    """The session, its ledger entries in their order, and its failed attempts. Nothing of another
    one."""
    released = await backend.released(FAULT)
    await backend.claim(released.id)
    assert await backend.attempts.fail(released.id, FAILURE, attempt=2, fault=FAULT)
    await backend.released(FAULT)

    file = await backend.operator_reads.session_file(released.id)

    assert file.session == await backend.get(released.id)
    assert list(file.faults) == await backend.reads.attempt_faults(released.id)
    assert [fault.attempt for fault in file.faults] == [1, 2]
    assert [entry.kind for entry in file.entries] == ["debit", "refund"]
    assert list(file.entries) == [
        entry for entry in await backend.ledger() if entry.session_id == released.id
    ]


async def test_file_of_an_unknown_session_is_not_found(backend: Backend) -> None:
    with pytest.raises(NotFound):
        await backend.operator_reads.session_file(uuid4())


def a_usage(provider: str | None, cost: str | None, *, tokens: int = 1) -> Usage:
    return Usage(
        provider=provider,
        input_tokens=tokens,
        output_tokens=10 * tokens,
        estimated_cost_usd=None if cost is None else Decimal(cost),
    )


async def costs(
    backend: Backend,
    by: CostKey,
    *,
    since: timedelta = 3 * DAY,
    until: timedelta = timedelta(0),
    owner: Owner | None = None,
    limit: int = 100,
) -> list[CostRow]:
    """From ``since`` ago until before ``until`` ago."""
    now = backend.now() + MINUTE
    return await backend.operator_reads.costs(
        by, since=now - since, until=now - until, owner=owner, limit=limit
    )


async def test_costs_of_owners_are_summed(backend: Backend) -> None:
    """The largest cost first, then the most pictures, of each only what was completed."""
    for owner, usage in (
        (USER, a_usage("openai", "0.5")),
        (USER, a_usage("replicate", None, tokens=3)),
        (STORE, a_usage("openai", "0.7")),
        (OTHER, None),
        (NAMESAKE, None),
        (NAMESAKE, a_usage(None, "0")),
    ):
        await completed(backend, age=HOUR, owner=owner, usage=usage)
    await failed(backend, age=HOUR)
    await created(backend)

    found = await costs(backend, CostKey.OWNER)

    assert [(row.key, row.pictures, row.unpriced) for row in found] == [
        (str(STORE), 1, 0),
        (str(USER), 2, 1),
        (str(NAMESAKE), 2, 1),
        (str(OTHER), 1, 1),
    ]
    assert found[1] == CostRow(
        key=str(USER),
        pictures=2,
        unpriced=1,
        input_tokens=4,
        output_tokens=40,
        estimated_cost_usd=Decimal("0.5"),
    )
    assert await costs(backend, CostKey.OWNER, limit=1) == found[:1]
    assert await costs(backend, CostKey.OWNER, owner=USER) == [found[1]]
    assert await costs(backend, CostKey.OWNER, owner=Owner(channel=Channel.B2B, id="none")) == []


async def test_costs_of_providers_are_summed(backend: Backend) -> None:
    """What was made by an unknown one counts as well."""
    for owner, usage in (
        (USER, a_usage("openai", "0.5")),
        (USER, a_usage("replicate", "0.9")),
        (STORE, a_usage("openai", "0.7")),
        (USER, None),
    ):
        await completed(backend, age=HOUR, owner=owner, usage=usage)

    found = await costs(backend, CostKey.PROVIDER)
    of_owner = await costs(backend, CostKey.PROVIDER, owner=USER)

    assert [(row.key, row.pictures, row.estimated_cost_usd) for row in found] == [
        ("openai", 2, Decimal("1.2")),
        ("replicate", 1, Decimal("0.9")),
        ("unknown", 1, Decimal(0)),
    ]
    assert [row.key for row in of_owner] == ["replicate", "openai", "unknown"]


async def test_costs_are_those_of_the_time_of_completion(backend: Backend) -> None:
    """From ``since`` until before ``until``."""
    for age in (HOUR, 5 * HOUR, 9 * HOUR):
        await completed(backend, age=age, took=HOUR, waited=timedelta(0))

    found = {
        owner: await costs(backend, CostKey.OWNER, since=6 * HOUR, until=4 * HOUR, owner=owner)
        for owner in (None, USER)
    }

    assert [row.pictures for row in found[None]] == [1]
    assert found[USER] == found[None]


async def test_days_are_summed_as_a_whole(backend: Backend) -> None:
    """Newest first. A day that the times only touch is not cut."""
    ids = [await completed(backend, age=age) for age in (26 * HOUR, 50 * HOUR, 74 * HOUR)]
    ends = [end for one in ids if (end := (await backend.get(one)).completed_at) is not None]
    first, end = ends[2] + SECOND, ends[0] - SECOND

    for owner in (None, USER):
        found = await backend.operator_reads.costs(
            CostKey.DAY, since=first, until=end, owner=owner, limit=10
        )
        latest = await backend.operator_reads.costs(
            CostKey.DAY, since=first, until=end, owner=owner, limit=1
        )

        days = [at.astimezone(UTC).date().isoformat() for at in ends]
        assert [row.key for row in found] == [
            day for day, at in zip(days, ends, strict=True) if is_within_days(at, first, end)
        ]
        assert all(row.pictures == 1 for row in found)
        assert len(found) >= 1
        assert latest == found[:1]


def is_within_days(at: datetime, first: datetime, end: datetime) -> bool:
    return first.astimezone(UTC).date() <= at.astimezone(UTC).date() <= end.astimezone(UTC).date()


async def test_day_ends_at_midnight(backend: Backend) -> None:
    """Of UTC. Times until midnight have nothing of the day that begins then."""
    session_id = await completed(backend, age=26 * HOUR)
    at = (await backend.get(session_id)).completed_at
    assert at is not None
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    async def keys(since: datetime, until: datetime) -> list[str]:
        rows = await backend.operator_reads.costs(CostKey.DAY, since=since, until=until, limit=10)
        return [row.key for row in rows]

    assert await keys(midnight, midnight + SECOND) == [midnight.date().isoformat()]
    assert await keys(midnight - DAY, midnight) == []
    assert await keys(midnight + DAY - SECOND, midnight + DAY) == [midnight.date().isoformat()]
    assert await keys(midnight + DAY, midnight + 2 * DAY) == []


async def test_pace_counts_what_ended_in_each_step(backend: Backend) -> None:
    """From the first step until before the end of the last one, whenever a session began; steps in
    which none ended are there too."""
    for age in (30, 90, 95, 290, 330):
        await completed(backend, age=age * SECOND, took=HOUR)
    await failed(backend, age=100 * SECOND)
    since = backend.now() - 5 * MINUTE

    steps = await backend.operator_reads.pace(since=since, step=MINUTE, steps=4)

    assert [step.at for step in steps] == [since + index * MINUTE for index in range(4)]
    assert [(step.completed, step.failed) for step in steps] == [(1, 0), (0, 0), (0, 0), (2, 1)]


async def test_pace_has_a_bound(backend: Backend) -> None:
    """However many steps are asked for."""
    since = backend.now() - DAY

    assert len(await backend.operator_reads.pace(since=since, step=SECOND, steps=9_999)) == 200


async def test_lowest_balances_are_shown_smallest_first(backend: Backend) -> None:
    """Of accounts in use: that ever paid for a session, and are not suspended."""
    for owner, credits_ in ((USER, 5), (OTHER, 1), (STORE, 3)):
        await created(backend, owner=owner)
        await backend.credits.grant(owner, credits_, note="test")
    await created(backend, owner=NAMESAKE)
    await backend.set_account(NAMESAKE, suspended=True)
    unused = Owner(channel=Channel.B2B, id="unused")
    await backend.credits.grant(unused, 1, note="test")

    found = await backend.operator_reads.lowest_balances(limit=2)

    assert [account.balance for account in found] == [1, 3]
    assert found == [await backend.credits.account(owner) for owner in (OTHER, STORE)]
