"""The outbox: what is written, and how it is taken out. Every adapter keeps the same promises."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from domain.endpoints import (
    MAX_ATTEMPTS_SHOWN,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    WebhookEvent,
)
from domain.sessions import SessionStatus
from domain.submission import NOT_PUSHED
from domain.webhook_ports import Turn
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, STORE, USER
from tests.support.webhooks import (
    TURN,
    a_result,
    added,
    an_attempt,
    an_outcome,
    deliveries_of,
)

pytestmark = pytest.mark.anyio

SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
FAILING = {"attempt": an_attempt(500), "status": DeliveryStatus.PENDING}


async def claim(backend: Backend, *, limit: int = 100) -> list[Turn]:
    return await backend.webhooks.claim(limit=limit, window=8, lease=TURN)


async def due_tests(backend: Backend, endpoint: Endpoint, count: int = 1) -> list[Any]:
    """The ids of new deliveries, in the order in which they are due."""
    ids = []
    for _ in range(count):
        ids.append(uuid7())
        await backend.webhooks.add_test(ids[-1], endpoint.id, endpoint.owner)
        await backend.advance(timedelta(milliseconds=1))
    return ids


# What is written.


@pytest.mark.parametrize("status", [SessionStatus.COMPLETED, SessionStatus.FAILED])
@pytest.mark.parametrize("by", ["us", "an external consumer"])
async def test_end_of_a_session_is_told(backend: Backend, status: SessionStatus, by: str) -> None:
    """To each endpoint of its owner that asks for it, once."""
    one, other = await added(backend.webhooks), await added(backend.webhooks)
    foreign = await added(backend.webhooks, STORE)
    event = WebhookEvent(f"generation.{status}")
    await added(backend.webhooks, events=frozenset(WebhookEvent) - {event, WebhookEvent.TEST})

    if by == "us":
        session_id = (await backend.finished(status)).id
    else:
        session_id = await backend.set_externally(status)
        await backend.external_write(session_id, processing_time_ms=7)
    await backend.recovery.refund_missing(limit=100)

    for endpoint in (one, other):
        (delivery,) = await deliveries_of(backend.webhooks, endpoint)
        assert (delivery.event, delivery.session_id) == (event, session_id)
        assert (delivery.status, delivery.attempt_count) == (DeliveryStatus.PENDING, 0)
    assert await deliveries_of(backend.webhooks, foreign) == []
    assert len(await claim(backend)) == 2


async def test_session_that_was_begun_before_the_endpoint_is_told(backend: Backend) -> None:
    """Whatever its status, and also the first one after it."""
    queued, claimed = await backend.queued(), await backend.claimed()
    ended = await backend.finished(SessionStatus.FAILED)
    endpoint = await added(backend.webhooks)
    new = await backend.queued()

    await backend.sessions.fail_queued(queued, FAILURE)
    await backend.attempts.fail(claimed.id, FAILURE, attempt=1)
    await backend.sessions.fail_queued(new, FAILURE)

    told = [one.session_id for one in await deliveries_of(backend.webhooks, endpoint)]
    assert sorted(told, key=str) == sorted([queued, claimed.id, new], key=str)
    assert ended.id not in told


async def test_sessions_that_recovery_ends_are_told(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    await backend.queued()
    await backend.claimed(lease=SECOND)
    await backend.advance(MINUTE)

    await backend.recovery.fail_expired(FAILURE, older_than=SECOND, limit=9)
    await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=MINUTE, limit=9
    )

    assert len(await deliveries_of(backend.webhooks, endpoint)) == 2


@pytest.mark.parametrize("found_by_recovery", [False, True])
async def test_undone_submission_is_not_told(backend: Backend, found_by_recovery: bool) -> None:
    """Its caller was told that there is no session. But recovery may find one that was accepted
    by a process that died before it confirmed it."""
    endpoint = await added(backend.webhooks)
    session_id = await backend.queued()
    if found_by_recovery:
        await backend.advance(MINUTE)
        await backend.recovery.claim_overdue(created_before=None, again_after=SECOND, limit=9)

    assert await backend.sessions.fail_queued(session_id, NOT_PUSHED, undo=not found_by_recovery)

    assert len(await deliveries_of(backend.webhooks, endpoint)) == found_by_recovery


async def test_disabled_endpoint_keeps_what_happens(backend: Backend) -> None:
    """It is sent once the endpoint is enabled."""
    endpoint = await added(backend.webhooks)
    await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))
    await backend.finished(SessionStatus.COMPLETED)

    while_disabled = await claim(backend)
    await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=True))

    (turn,) = await claim(backend)
    assert (while_disabled, len(turn.due)) == ([], 1)


# How it is taken out.


async def test_turn_has_what_sending_needs(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    session = await backend.finished(SessionStatus.COMPLETED)
    await backend.advance(MINUTE)

    (turn,) = await claim(backend)

    (due,) = turn.due
    (delivery,) = await deliveries_of(backend.webhooks, endpoint)
    assert turn.endpoint == await backend.webhooks.get(endpoint.id, USER)
    assert (turn.window, turn.waiting) == (1, False)
    assert (due.id, due.event, due.session_id) == (delivery.id, delivery.event, session.id)
    assert (due.created_at, due.failed_attempts) == (delivery.created_at, 0)
    assert MINUTE <= due.age < 2 * MINUTE
    (found,) = await backend.webhooks.sessions([session.id, uuid7()])
    assert found == await backend.get(session.id)


async def test_endpoint_has_one_turn_at_a_time(backend: Backend) -> None:
    """Until it is settled, or its lease ends. Then the same delivery comes again."""
    await due_tests(backend, endpoint := await added(backend.webhooks))

    (first,) = await claim(backend)
    meanwhile = await claim(backend)
    await backend.advance(TURN)
    (second,) = await claim(backend)

    assert meanwhile == []
    assert first.endpoint.id == second.endpoint.id == endpoint.id
    assert [due.id for due in first.due] == [due.id for due in second.due]
    assert second.number > first.number


async def test_concurrent_claims_share_the_endpoints(backend: Backend) -> None:
    for _ in range(12):
        await due_tests(backend, await added(backend.webhooks))

    claimed = await asyncio.gather(*(claim(backend, limit=4) for _ in range(6)))
    rest = await claim(backend)

    ids = [turn.endpoint.id for turns in (*claimed, rest) for turn in turns]
    assert len(set(ids)) == len(ids) == 12
    assert all(len(turns) <= 4 for turns in claimed)


async def test_turns_go_around(backend: Backend) -> None:
    """Endpoints that always have something due do not keep the others from their turns."""
    endpoints = [await added(backend.webhooks) for _ in range(3)]
    for endpoint in endpoints:
        await due_tests(backend, endpoint, 9)

    seen = set()
    for _ in range(5):
        (turn,) = await claim(backend, limit=1)
        seen.add(turn.endpoint.id)
        await backend.webhooks.settle(a_result(turn))

    assert seen == {endpoint.id for endpoint in endpoints}


async def test_turn_has_a_window_of_deliveries_those_due_first(backend: Backend) -> None:
    ids = await due_tests(backend, await added(backend.webhooks), 4)

    (first,) = await claim(backend)
    assert await backend.webhooks.settle(a_result(first, window=2))
    (second,) = await claim(backend)
    assert await backend.webhooks.settle(a_result(second, window=2))
    (third,) = await claim(backend)

    assert [due.id for turn in (first, second, third) for due in turn.due] == ids
    assert [len(turn.due) for turn in (first, second, third)] == [1, 2, 1]
    assert [turn.waiting for turn in (first, second, third)] == [True, True, False]
    assert [turn.window for turn in (first, second, third)] == [1, 2, 2]


async def test_paused_endpoint_is_probed_once_the_pause_ends(backend: Backend) -> None:
    """With a single delivery, whatever its backlog and its window."""
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint, 5)
    (turn,) = await claim(backend)
    outcome = an_outcome(turn.due[0].id, **FAILING)
    await backend.webhooks.settle(a_result(turn, outcome, window=4, failures=1, paused_for=MINUTE))

    meanwhile = await claim(backend)
    await backend.advance(MINUTE)
    (probe,) = await claim(backend)

    assert (meanwhile, len(probe.due), probe.waiting) == ([], 1, True)
    assert probe.endpoint.failures == 1
    assert probe.endpoint.failing_since is not None
    await backend.webhooks.settle(a_result(probe, window=4))
    (after,) = await claim(backend)
    assert len(after.due) == 4
    assert (after.endpoint.failures, after.endpoint.failing_since) == (0, None)


@pytest.mark.parametrize("reason", DisabledReason)
async def test_only_a_failing_endpoint_is_probed(backend: Backend, reason: DisabledReason) -> None:
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint, 2)
    (turn,) = await claim(backend)
    disable = None if reason is DisabledReason.OWNER else reason
    await backend.webhooks.settle(
        a_result(
            turn,
            an_outcome(turn.due[0].id, **FAILING),
            failures=1,
            paused_for=MINUTE,
            disable=disable,
        )
    )
    if reason is DisabledReason.OWNER:
        await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))

    before = await claim(backend)
    await backend.advance(MINUTE)
    after = await claim(backend)

    assert before == []
    assert len(after) == (reason is DisabledReason.FAILING)


@pytest.mark.parametrize("reason", DisabledReason)
async def test_success_enables_a_failing_endpoint_only(
    backend: Backend, reason: DisabledReason
) -> None:
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint, 3)
    (turn,) = await claim(backend)
    if reason is DisabledReason.OWNER:
        await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))
    else:
        await backend.webhooks.settle(a_result(turn, disable=reason, failures=1))
        turn = replace(turn, number=turn.number)

    before = await backend.webhooks.get(endpoint.id, USER)
    if reason is DisabledReason.FAILING:
        (turn,) = await claim(backend)
    await backend.webhooks.settle(a_result(turn, enable=True))

    after = await backend.webhooks.get(endpoint.id, USER)
    assert before.disabled_reason is reason
    assert after.disabled_reason is (None if reason is DisabledReason.FAILING else reason)
    assert (after.disabled_at is None) == (reason is DisabledReason.FAILING)


async def test_endpoint_disabled_by_its_owner_stays_so(backend: Backend) -> None:
    """Also if a turn that was begun before finds it gone."""
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint)
    (turn,) = await claim(backend)
    await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))

    await backend.webhooks.settle(a_result(turn, disable=DisabledReason.GONE))

    after = await backend.webhooks.get(endpoint.id, USER)
    assert after.disabled_reason is DisabledReason.OWNER


async def test_failing_endpoint_that_is_gone_is_probed_no_more(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint, 3)
    for reason in (DisabledReason.FAILING, DisabledReason.GONE):
        (turn,) = await claim(backend)
        await backend.webhooks.settle(a_result(turn, disable=reason, failures=1))

    assert (await backend.webhooks.get(endpoint.id, USER)).disabled_reason is DisabledReason.GONE
    assert await claim(backend) == []


@pytest.mark.parametrize(
    "status", [DeliveryStatus.DELIVERED, DeliveryStatus.FAILED, DeliveryStatus.PENDING]
)
async def test_outcome_is_recorded(backend: Backend, status: DeliveryStatus) -> None:
    endpoint = await added(backend.webhooks)
    (delivery_id,) = await due_tests(backend, endpoint)
    (turn,) = await claim(backend)
    attempt = an_attempt(None, error="host name not found", duration_ms=345, response="")
    outcome = an_outcome(delivery_id, attempt=attempt, status=status, again_after=MINUTE)

    assert await backend.webhooks.settle(a_result(turn, outcome))

    delivery = await backend.webhooks.delivery(delivery_id, USER)
    assert (delivery.status, delivery.attempt_count, delivery.attempts) == (status, 1, (attempt,))
    assert (delivery.next_attempt_at is not None) == (status is DeliveryStatus.PENDING)
    before = await claim(backend)
    await backend.advance(MINUTE)
    after = await claim(backend)
    assert before == []
    assert [turn.due[0].failed_attempts for turn in after] == (
        [1] if status is DeliveryStatus.PENDING else []
    )


async def test_newest_attempts_are_shown(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    (delivery_id,) = await due_tests(backend, endpoint)
    for number in range(MAX_ATTEMPTS_SHOWN + 2):
        (turn,) = await claim(backend)
        failing = FAILING | {"attempt": an_attempt(500, duration_ms=number)}
        await backend.webhooks.settle(a_result(turn, an_outcome(delivery_id, **failing)))

    (delivery,) = await deliveries_of(backend.webhooks, endpoint)

    assert delivery.attempt_count == MAX_ATTEMPTS_SHOWN + 2
    assert [one.duration_ms for one in delivery.attempts] == list(
        range(MAX_ATTEMPTS_SHOWN + 1, 1, -1)
    )


async def test_late_turn_changes_no_newer_one(backend: Backend) -> None:
    """Its lease had ended. Its attempt is recorded, and what it delivered."""
    endpoint = await added(backend.webhooks)
    one, other = await due_tests(backend, endpoint, 2)
    (late,) = await claim(backend)
    await backend.webhooks.settle(a_result(late, an_outcome(one, **FAILING), window=2))
    (late,) = await claim(backend)
    assert {due.id for due in late.due} == {one, other}
    await backend.advance(TURN)
    (newer,) = await claim(backend)

    outcomes = (an_outcome(one), an_outcome(other, **(FAILING | {"again_after": DAY})))
    settled = await backend.webhooks.settle(
        a_result(late, *outcomes, window=8, failures=5, paused_for=DAY, disable=DisabledReason.GONE)
    )

    assert not settled
    assert (await backend.webhooks.get(endpoint.id, USER)) == newer.endpoint
    assert [d.status for d in await deliveries_of(backend.webhooks, endpoint)] == [
        DeliveryStatus.PENDING,
        DeliveryStatus.DELIVERED,
    ]
    assert [d.attempt_count for d in await deliveries_of(backend.webhooks, endpoint)] == [1, 2]
    assert await claim(backend) == []
    assert await backend.webhooks.settle(a_result(newer, an_outcome(other)))


async def test_delivered_delivery_stays_so(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    (delivery_id,) = await due_tests(backend, endpoint)
    (late,) = await claim(backend)
    await backend.advance(TURN)
    (newer,) = await claim(backend)
    await backend.webhooks.settle(a_result(newer))

    await backend.webhooks.settle(a_result(late, an_outcome(delivery_id, **FAILING)))

    (delivery,) = await deliveries_of(backend.webhooks, endpoint)
    assert (delivery.status, delivery.attempt_count) == (DeliveryStatus.DELIVERED, 2)


async def test_enabling_ends_the_turn(backend: Backend) -> None:
    """The turn records only what it delivered, and another one may begin at once."""
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint)
    (turn,) = await claim(backend)

    await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=True))
    (newer,) = await claim(backend)

    outcome = an_outcome(turn.due[0].id, **(FAILING | {"again_after": DAY}))
    assert not await backend.webhooks.settle(a_result(turn, outcome, paused_for=DAY))
    assert await backend.webhooks.settle(a_result(newer))


async def test_disabling_ends_the_turn(backend: Backend) -> None:
    """What it could not deliver is kept, even if that was the last try."""
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint)
    (turn,) = await claim(backend)

    await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))

    last = an_outcome(turn.due[0].id, **(FAILING | {"status": DeliveryStatus.FAILED}))
    assert not await backend.webhooks.settle(a_result(turn, last, failures=1))
    (delivery,) = await deliveries_of(backend.webhooks, endpoint)
    assert (delivery.status, delivery.attempt_count) == (DeliveryStatus.PENDING, 1)


async def test_turns_are_settled_together(backend: Backend) -> None:
    """Each with its own outcomes, even if one of them is late."""
    endpoints = [await added(backend.webhooks) for _ in range(6)]
    for endpoint in endpoints:
        await due_tests(backend, endpoint)
    turns = await claim(backend)
    late = replace(turns[0], number=0)

    settled = await asyncio.gather(
        *(backend.webhooks.settle(a_result(turn)) for turn in (late, *turns[1:]))
    )

    assert settled == [False, *[True] * 5]
    for endpoint in endpoints:
        (delivery,) = await deliveries_of(backend.webhooks, endpoint)
        assert (delivery.status, delivery.attempt_count) == (DeliveryStatus.DELIVERED, 1)


async def test_deleted_endpoint_is_settled_without_effect(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    await due_tests(backend, endpoint)
    (turn,) = await claim(backend)
    await backend.webhooks.delete(endpoint.id, USER)

    assert not await backend.webhooks.settle(a_result(turn))
