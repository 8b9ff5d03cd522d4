"""A session's life: which changes of status exist, and what each one notes."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused, IllegalTransition
from domain.sessions import Accessory, ErrorCode, Failure, GenerationSession, SessionStatus
from tests.support.clock import START
from tests.support.examples import (
    BAG,
    FAILURE,
    HAT,
    LEASE,
    MODEL_URL,
    OUTFIT_URL,
    STORE,
    STORED_PICTURE,
    USER,
    a_session,
)

LATER = START + timedelta(seconds=2.5)

CHANGES: dict[str, Callable[[GenerationSession], GenerationSession]] = {
    "claimed": lambda session: session.claimed(now=LATER, lease=LEASE),
    "released": lambda session: session.released(),
    "completed": lambda session: session.completed(STORED_PICTURE, now=LATER),
    "failed": lambda session: session.failed(FAILURE, now=LATER),
}
LEGAL = {
    (SessionStatus.QUEUED, "claimed"): SessionStatus.PROCESSING,
    (SessionStatus.QUEUED, "failed"): SessionStatus.FAILED,
    (SessionStatus.PROCESSING, "released"): SessionStatus.QUEUED,
    (SessionStatus.PROCESSING, "completed"): SessionStatus.COMPLETED,
    (SessionStatus.PROCESSING, "failed"): SessionStatus.FAILED,
}
ILLEGAL = [pair for pair in product(SessionStatus, CHANGES) if pair not in LEGAL]


@pytest.mark.parametrize(("before", "change"), LEGAL)
def test_a_legal_change_leads_to_its_status(before: SessionStatus, change: str) -> None:
    """The five changes that ``SessionStatus`` tells of exist."""
    session = a_session(status=before)

    assert CHANGES[change](session).status is LEGAL[before, change]


@pytest.mark.parametrize(("before", "change"), ILLEGAL)
def test_no_other_change_exists(before: SessionStatus, change: str) -> None:
    """Whatever is not among them raises, so also every change of a final status."""
    session = a_session(status=before)

    with pytest.raises(IllegalTransition, match=before):
        CHANGES[change](session)


@pytest.mark.parametrize(
    ("status", "is_final"),
    [("queued", False), ("processing", False), ("completed", True), ("failed", True)],
)
def test_final_statuses(status: str, *, is_final: bool) -> None:
    """``completed`` and ``failed`` are final."""
    assert SessionStatus(status).is_final is is_final


def test_a_claim_counts_and_dates_the_attempt() -> None:
    """A claim has the next attempt number, a lease from now on, and proves the push."""
    claimed = a_session(attempt=1).claimed(now=LATER, lease=LEASE)

    assert claimed.attempt == 2
    assert claimed.lease_expires_at == LATER + LEASE
    assert claimed.started_at == LATER
    assert claimed.confirmed


def test_a_released_session_waits_as_before() -> None:
    """A release gives up the lease; the attempt stays counted and the push proven."""
    released = a_session().claimed(now=START, lease=LEASE).released()

    assert released.lease_expires_at is None
    assert released.attempt == 1
    assert released.confirmed


def test_a_completed_session_tells_what_came_out_and_when() -> None:
    """Completion keeps the picture, the time and how long the last attempt took."""
    first = a_session().claimed(now=START - timedelta(minutes=5), lease=LEASE)
    completed = (
        first.released().claimed(now=START, lease=LEASE).completed(STORED_PICTURE, now=LATER)
    )

    assert completed.picture == STORED_PICTURE
    assert completed.completed_at == LATER
    assert completed.processing_time_ms == 2500
    assert completed.lease_expires_at is None


def test_a_session_without_a_start_took_no_time() -> None:
    """A consumer that is not ours may not note when it began."""
    session = a_session(status=SessionStatus.PROCESSING, started_at=None)

    assert session.completed(STORED_PICTURE, now=LATER).processing_time_ms == 0


@pytest.mark.parametrize("status", [SessionStatus.QUEUED, SessionStatus.PROCESSING])
def test_a_failed_session_tells_why_and_when(status: SessionStatus) -> None:
    """Failure keeps its reason and the time, and gives up the lease."""
    session = a_session(status=status, lease_expires_at=START + LEASE)

    failed = session.failed(FAILURE, now=LATER)

    assert failed.failure == FAILURE
    assert failed.completed_at == LATER
    assert failed.lease_expires_at is None


@pytest.mark.parametrize("code", ErrorCode)
def test_a_failed_session_keeps_its_key_unless_it_was_never_queued(code: ErrorCode) -> None:
    """Who was answered 503 may ask again with the key; whoever was answered 202 is told the end."""
    session = a_session(idempotency_key="k")

    failed = session.failed(Failure(code=code, message=""), now=LATER)

    assert failed.idempotency_key == (None if code == "QUEUE_UNAVAILABLE" else "k")


def test_the_same_request_may_be_repeated() -> None:
    """With another id, time and correlation id, and whatever became of the first."""
    wanted = {"outfit_image_url": OUTFIT_URL, "accessories": (HAT, BAG), "prompt": "In the rain"}
    session = a_session(**wanted).claimed(now=START, lease=LEASE)

    session.check_replay(a_session(**wanted, request_id="req_2", created_at=LATER))


@pytest.mark.parametrize(
    "other",
    [
        {"model_image_url": OUTFIT_URL},
        {"outfit_image_url": None},
        {"accessories": (BAG, HAT)},
        {"accessories": (HAT,)},
        {"accessories": (replace(HAT, type="cap"), BAG)},
        {"outfit_image_url": None, "accessories": (Accessory(type="", url=OUTFIT_URL), HAT, BAG)},
        {"prompt": "In the sun"},
    ],
)
def test_another_request_is_no_repetition(other: dict[str, Any]) -> None:
    """Whatever makes another picture; the same pictures in other places do."""
    wanted = {"outfit_image_url": OUTFIT_URL, "accessories": (HAT, BAG), "prompt": "In the rain"}

    with pytest.raises(IdempotencyKeyReused):
        a_session(**wanted).check_replay(a_session(**wanted | other))


@pytest.mark.parametrize(
    ("outfit", "accessories", "expected"),
    [
        (None, (), [MODEL_URL]),
        (OUTFIT_URL, (), [MODEL_URL, OUTFIT_URL]),
        (None, (HAT,), [MODEL_URL, HAT.url]),
        (OUTFIT_URL, (HAT, BAG), [MODEL_URL, OUTFIT_URL, HAT.url, BAG.url]),
        (OUTFIT_URL, (BAG, HAT), [MODEL_URL, OUTFIT_URL, BAG.url, HAT.url]),
    ],
)
def test_pictures_come_in_the_order_of_the_contract(
    outfit: str | None, accessories: tuple[Accessory, ...], expected: list[str]
) -> None:
    """The model is first, then the outfit if given, then accessories in the order given."""
    session = a_session(outfit_image_url=outfit, accessories=accessories)

    assert list(session.input.image_urls) == expected


@pytest.mark.parametrize(
    ("owner", "prefix"),
    [(STORE, f"stores/{STORE.id}/generated/"), (USER, f"generated/{USER.id}/")],
)
def test_a_picture_belongs_under_its_owner(owner: Owner, prefix: str) -> None:
    """The object key begins with the owner's place, stores apart from users."""
    session = a_session(owner=owner)

    assert session.object_prefix == f"{prefix}{session.id}"


def test_a_store_and_a_user_of_the_same_id_share_no_place() -> None:
    """Whatever ids owners choose, their channels keep their pictures apart."""
    session = a_session()
    prefixes = {
        a_session(id=session.id, owner=Owner(channel=channel, id="same")).object_prefix
        for channel in Channel
    }

    assert len(prefixes) == 2
