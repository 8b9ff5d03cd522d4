"""Ids that tell when they were made."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.ids import END_OF_TIME, FIRST_ID, LAST_ID, created_by, uuid7_floor, uuid7_time
from entrypoints.http.request_info import new_request_id

AT = datetime(2026, 11, 28, 14, 21, 13, 123_000, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def test_floor_is_between_the_ids_of_two_milliseconds() -> None:
    """Every UUIDv7 of the earlier one is smaller, none of the later one is."""
    floor = uuid7_floor(AT)

    assert uuid7_time(floor) == AT
    assert uuid7_time(UUID(int=floor.int - 1)) == AT - MILLISECOND
    assert uuid7_floor(AT + timedelta(microseconds=999)) == floor
    assert uuid7_floor(AT + MILLISECOND) > floor


def test_floor_is_that_of_real_ids() -> None:
    """As they are made for sessions."""
    before = datetime.now(UTC)

    id_ = uuid7()

    assert uuid7_floor(before) <= id_ < uuid7_floor(datetime.now(UTC) + MILLISECOND)


@pytest.mark.parametrize("at", [datetime.min.replace(tzinfo=UTC), END_OF_TIME])
def test_every_time_has_a_floor(at: datetime) -> None:
    """A time before 1970 has the smallest id."""
    assert FIRST_ID <= uuid7_floor(at) < LAST_ID


def test_every_id_has_a_time() -> None:
    """Also one that no clock ever made."""
    assert uuid7_time(FIRST_ID) == datetime(1970, 1, 1, tzinfo=UTC)
    assert uuid7_time(LAST_ID) == END_OF_TIME


def test_our_request_id_tells_its_time() -> None:
    """To the millisecond."""
    before = datetime.now(UTC)

    at = created_by(new_request_id())

    assert at is not None
    assert before - MILLISECOND < at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "request_id",
    [
        "order-7",
        "req_1",
        "",
        "req_ffffffffffff000000000000",
        "req_000000000001000000000000",
        "req_019aca5e7d2300000000000",
        "req_019aca5e7d230000000000000",
        "req_019ACA5E7D23000000000000",
        " req_019aca5e7d23000000000000",
    ],
)
def test_any_other_request_id_tells_no_time(request_id: str) -> None:
    """Neither a caller's nor a random one of an earlier version."""
    assert created_by(request_id) is None


def test_example_of_our_request_id_tells_a_time() -> None:
    """The one that the malformed ones differ from."""
    assert created_by("req_019aca5e7d23000000000000") is not None
