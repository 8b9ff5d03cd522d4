"""The contract of ``WorkerRepoPort``."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from domain.operator_ports import Controls, Switch
from domain.sessions import Usage
from tests.contracts.backends import Backend
from tests.contracts.operating import Operating, a_worker_state, operating_on
from tests.support.examples import FAILURE, picture_of

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
MANY = 100


@pytest.fixture
async def operating(backend: Backend) -> Operating:
    return await operating_on(backend)


async def completed(backend: Backend, cost: str | None) -> UUID:
    """Complete a session whose picture has cost this much."""
    session = await backend.claimed()
    price = None if cost is None else Decimal(cost)
    usage = Usage(input_tokens=1, output_tokens=1, estimated_cost_usd=price)
    assert await backend.attempts.complete(
        session.id, attempt=1, picture=picture_of(session.id), usage=usage
    )
    return session.id


async def away_from_midnight(backend: Backend) -> None:
    """Wait until the day (UTC) has some seconds left, so that a test is within one day."""
    left = datetime.combine(
        backend.now().date() + DAY, datetime.min.time()
    ) - backend.now().replace(tzinfo=None)
    if left < 20 * SECOND:
        await asyncio.sleep(left.total_seconds())


async def test_report_is_kept_as_given_and_seen_now(operating: Operating) -> None:
    now = operating.backend.now()
    state = a_worker_state(
        uuid4(),
        busy=3,
        draining=True,
        throttled_until=now,
        limit_is_local=True,
        circuit_until=now,
        circuit_cause="provider 401 invalid_api_key",
        done=7,
        failed=2,
    )

    await operating.workers.report(state)

    (kept,) = await operating.states()
    assert kept.seen_at is not None
    assert abs(kept.seen_at - now) < 60 * SECOND
    assert replace(kept, seen_at=None) == state


async def test_report_replaces_the_earlier_one(operating: Operating) -> None:
    """All of it that changes: what is over by now is gone."""
    state, now = a_worker_state(uuid4()), operating.backend.now()
    await operating.workers.report(
        replace(
            state,
            busy=2,
            draining=True,
            throttled_until=now,
            limit_is_local=True,
            circuit_until=now,
            circuit_cause="storage timeout",
        )
    )
    (before,) = await operating.states()
    await operating.advance(7 * SECOND)
    later = replace(state, slots=5, busy=1, done=1, failed=1)
    await operating.workers.report(later)

    (kept,) = await operating.states()
    assert replace(kept, seen_at=None) == later
    assert kept.seen_at is not None
    assert before.seen_at is not None
    assert kept.seen_at >= before.seen_at


async def test_workers_are_kept_apart(operating: Operating) -> None:
    ids = sorted(uuid4() for _ in range(3))
    for number, worker_id in enumerate(ids):
        await operating.workers.report(a_worker_state(worker_id, done=number))

    kept = [(each.id, each.done) for each in await operating.states()]
    assert kept == [(worker_id, number) for number, worker_id in enumerate(ids)]


async def test_report_tells_that_nothing_is_paused(operating: Operating) -> None:
    """A pause of the intake is none of the workers' business."""
    await operating.pause(Switch.INTAKE, actor="cli:ann@host", reason="flood")

    assert await operating.workers.report(a_worker_state(uuid4())) == Controls()


async def test_report_tells_of_the_pause(operating: Operating) -> None:
    pause = await operating.pause(Switch.WORKERS, actor="cli:ann@host", reason="bad pictures")

    assert await operating.workers.report(a_worker_state(uuid4())) == Controls(paused=pause)


async def test_spending_is_summed_if_asked_for(operating: Operating) -> None:
    """Pictures without an estimated cost, and failures, add nothing."""
    await away_from_midnight(operating.backend)
    await completed(operating.backend, "0.04")
    await completed(operating.backend, "0.065")
    await completed(operating.backend, None)
    failed = await operating.backend.claimed()
    await operating.backend.attempts.fail(failed.id, FAILURE, attempt=1)
    state = a_worker_state(uuid4())

    asked = await operating.workers.report(state, with_spending=True)
    not_asked = await operating.workers.report(state)

    assert asked.spent_today_usd == Decimal("0.105")
    assert not_asked.spent_today_usd is None


async def test_spending_begins_at_midnight(operating: Operating) -> None:
    """A session may have been created the day before."""
    await away_from_midnight(operating.backend)
    midnight = operating.backend.now().replace(hour=0, minute=0, second=0, microsecond=0)
    for at in (midnight - SECOND, midnight):
        await operating.completed_at(await completed(operating.backend, "0.04"), at)

    controls = await operating.workers.report(a_worker_state(uuid4()), with_spending=True)

    assert controls.spent_today_usd == Decimal("0.04")


async def test_nothing_spent_is_zero(operating: Operating) -> None:
    controls = await operating.workers.report(a_worker_state(uuid4()), with_spending=True)

    assert controls.spent_today_usd == 0


async def test_worker_that_leaves_is_forgotten(operating: Operating) -> None:
    leaving, staying = uuid4(), uuid4()
    for worker_id in (leaving, staying):
        await operating.workers.report(a_worker_state(worker_id))

    assert await operating.workers.leave(leaving)
    assert not await operating.workers.leave(leaving)
    assert [each.id for each in await operating.states()] == [staying]


async def test_silent_workers_are_forgotten_in_batches(operating: Operating) -> None:
    """Those that have reported lately are kept, however long ago they started."""
    for _ in range(3):
        await operating.workers.report(a_worker_state(uuid4()))
    await operating.advance(DAY + 60 * SECOND)
    alive = uuid4()
    await operating.workers.report(a_worker_state(alive))

    counts = [await operating.workers.forget(older_than=DAY, limit=2) for _ in range(3)]

    assert counts == [2, 1, 0]
    assert [each.id for each in await operating.states()] == [alive]


async def test_worker_is_not_forgotten_too_early(operating: Operating) -> None:
    await operating.workers.report(a_worker_state(uuid4()))
    await operating.advance(DAY - 60 * SECOND)

    assert await operating.workers.forget(older_than=DAY, limit=MANY) == 0


async def test_forgotten_worker_that_reports_is_known_again(operating: Operating) -> None:
    """A process that was frozen for a day goes on."""
    state = a_worker_state(uuid4())
    await operating.workers.report(state)
    await operating.workers.leave(state.id)

    await operating.workers.report(state)

    assert len(await operating.states()) == 1
