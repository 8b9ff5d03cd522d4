"""Ids that tell when they were made: UUIDv7 (RFC 9562) and our own request ids."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

CLOCK_SKEW = timedelta(minutes=2)
"""How far the clock of a process, which ids are made by, may be from the database's."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_BITS_BELOW_TIME = 80
_LAST_MILLISECOND = 2**48 - 1
END_OF_TIME = datetime.max.replace(tzinfo=UTC)

_OUR_REQUEST_ID = re.compile(r"req_([0-9a-f]{12})[0-9a-f]{12}")
_OURS_BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
_OURS_END = datetime(2100, 1, 1, tzinfo=UTC)
"""Request ids of earlier versions are random. One in a hundred of those seems to be from between
these two times."""

FIRST_ID = UUID(int=0)
LAST_ID = UUID(int=2**128 - 1)


def uuid7_floor(at: datetime) -> UUID:
    """No UUIDv7 made at ``at`` or later is smaller, and all made in an earlier millisecond are."""
    milliseconds = (at - _EPOCH) // _MILLISECOND
    return UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << _BITS_BELOW_TIME)


def uuid7_time(id_: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond; the end of time if that is later."""
    milliseconds = id_.int >> _BITS_BELOW_TIME
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return END_OF_TIME


def created_by(request_id: str) -> datetime | None:
    """When a request id of ours was made: ``req_``, 12 hexadecimal digits of milliseconds and 12
    random ones. None for any other id."""
    ours = _OUR_REQUEST_ID.fullmatch(request_id)
    if ours is None:
        return None
    at = uuid7_time(UUID(int=int(ours[1], 16) << _BITS_BELOW_TIME))
    return at if _OURS_BEGAN <= at < _OURS_END else None
