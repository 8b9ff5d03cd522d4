"""A session's life: the transitions that exist, and what each one records."""

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
    "released": lambda session: session.released(now=START),
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
def test_legal_transition(before: SessionStatus, change: str) -> None:
    """The five transitions of ``SessionStatus`` exist."""
    session = a_session(status=before)

    assert CHANGES[change](session).status is LEGAL[before, change]


@pytest.mark.parametrize(("before", "change"), ILLEGAL)
def test_illegal_transition(before: SessionStatus, change: str) -> None:
    """Every other transition raises, including all from a final status."""
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


def test_claim_starts_the_next_attempt() -> None:
    """It has the next attempt number and a lease from now on, and it confirms the push."""
    claimed = a_session(attempt=1).claimed(now=LATER, lease=LEASE)

    assert claimed.attempt == 2
    assert claimed.lease_expires_at == LATER + LEASE
    assert claimed.started_at == LATER
    assert claimed.confirmed


def test_release_clears_the_lease() -> None:
    """The attempt still counts, and the push stays confirmed."""
    released = a_session().claimed(now=START, lease=LEASE).released(now=START)

    assert released.lease_expires_at is None
    assert released.attempt == 1
    assert released.confirmed


def test_completion_records_picture_time_and_duration() -> None:
    """The duration is that of the last attempt. The lease is cleared."""
    first = a_session().claimed(now=START - timedelta(minutes=5), lease=LEASE)
    completed = (
        first.released(now=START)
        .claimed(now=START, lease=LEASE)
        .completed(STORED_PICTURE, now=LATER)
    )

    assert completed.picture == STORED_PICTURE
    assert completed.completed_at == LATER
    assert completed.processing_time_ms == 2500
    assert completed.lease_expires_at is None


def test_duration_without_a_start_is_zero() -> None:
    """An external consumer may not write ``started_at``."""
    session = a_session(status=SessionStatus.PROCESSING, started_at=None)

    assert session.completed(STORED_PICTURE, now=LATER).processing_time_ms == 0


@pytest.mark.parametrize("status", [SessionStatus.QUEUED, SessionStatus.PROCESSING])
def test_failure_records_reason_and_time(status: SessionStatus) -> None:
    """The lease is cleared."""
    session = a_session(status=status, lease_expires_at=START + LEASE)

    failed = session.failed(FAILURE, now=LATER)

    assert failed.failure == FAILURE
    assert failed.completed_at == LATER
    assert failed.lease_expires_at is None


@pytest.mark.parametrize("frees_key", [False, True])
@pytest.mark.parametrize("code", ErrorCode)
def test_failed_session_keeps_its_key_unless_it_is_undone(
    code: ErrorCode, *, frees_key: bool
) -> None:
    """Whatever its code: recovery fails a session that was never pushed, and its key may have been
    answered 202."""
    session = a_session(idempotency_key="k")

    failed = session.failed(Failure(code=code, message=""), now=LATER, frees_key=frees_key)

    assert failed.idempotency_key == (None if frees_key else "k")


def test_equal_input_is_a_replay() -> None:
    """Whatever its id, time and correlation id, and whatever the state of the session."""
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
def test_other_input_is_no_replay(other: dict[str, Any]) -> None:
    """Any difference counts, even the same pictures in other places."""
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
def test_input_pictures_are_in_the_order_of_the_contract(
    outfit: str | None, accessories: tuple[Accessory, ...], expected: list[str]
) -> None:
    """The model, the outfit if given, and the accessories in the order given."""
    session = a_session(outfit_image_url=outfit, accessories=accessories)

    assert list(session.input.image_urls) == expected


@pytest.mark.parametrize(
    ("owner", "prefix"),
    [(STORE, f"stores/{STORE.id}/generated/"), (USER, f"generated/{USER.id}/")],
)
def test_object_prefix_starts_with_the_owner(owner: Owner, prefix: str) -> None:
    """Stores and users have separate folders."""
    session = a_session(owner=owner)

    assert session.object_prefix == f"{prefix}{session.id}"


def test_store_and_user_with_the_same_id_share_no_prefix() -> None:
    """Their channels keep their pictures apart."""
    session = a_session()
    prefixes = {
        a_session(id=session.id, owner=Owner(channel=channel, id="same")).object_prefix
        for channel in Channel
    }

    assert len(prefixes) == 2
