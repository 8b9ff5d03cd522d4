"""What a page is asked for in its URL."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

from domain.accounts import owner_named
from domain.credits import Channel, Owner
from domain.errors import InvalidInput
from entrypoints.http.inputs import AnyRequest

SPANS: Mapping[str, tuple[str, timedelta | None]] = {
    "": ("any time", None),
    "1h": ("1 hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(days=1)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
}


def text_of(request: AnyRequest, name: str) -> str:
    return str(request.query_params.get(name, "")).strip()


def owner_of(text: str) -> Owner | None:
    """``b2b:ID`` or ``b2c:UUID``; an id alone is a store's. Raises ``InvalidInput``."""
    if not text:
        return None
    channel, colon, owner_id = text.partition(":")
    if not colon or channel not in {each.value for each in Channel}:
        return Owner(channel=Channel.B2B, id=text)
    return owner_named(Channel(channel), owner_id)


def id_of(text: str, *, field: str) -> UUID | None:
    """Raises ``InvalidInput``."""
    try:
        return UUID(text) if text else None
    except ValueError as error:
        raise InvalidInput(field, "must be a UUID") from error


def number_of(text: str, *, field: str) -> int | None:
    """Raises ``InvalidInput``."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 18):
        raise InvalidInput(field, "must be a number")
    return int(text)


def since_of(text: str, now: datetime) -> datetime | None:
    """Raises ``InvalidInput``."""
    if text not in SPANS:
        raise InvalidInput("since", f"must be one of {', '.join(SPANS)}")
    span = SPANS[text][1]
    return None if span is None else now - span


def query_with(current: Mapping[str, str]) -> Callable[..., str]:
    """What builds the query of a link: the current one with changes, without empty values."""

    def build(**changes: object) -> str:
        values = {**current, **{name: str(value) for name, value in changes.items()}}
        return urlencode({name: value for name, value in values.items() if value})

    return build
