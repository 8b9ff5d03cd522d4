"""How values look on a page."""

from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from markupsafe import Markup, escape

from domain.credits import Channel

NOTHING = "\u2013"
"""Stands for a value that there is not."""


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at: datetime) -> str:
    """Day and time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%b %d %H:%M:%S")


def day(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d")


def seconds(value: float | None) -> str:
    """A duration to the precision that matters: ``0.42 s``, ``12.3 s``, ``4 min 10 s``."""
    if value is None:
        return NOTHING
    if value >= 100:
        return span(value)
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def span(value: float | None) -> str:
    """A duration in its two largest units."""
    if value is None:
        return NOTHING
    whole = max(0, int(value))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def grouped(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def signed(value: int) -> str:
    """With a true minus, which is as wide as the plus."""
    return f"+{value:,}" if value > 0 else f"{value:,}".replace("-", "\u2212")


def dollars(value: Decimal | str | None) -> str:
    if value is None:
        return NOTHING
    amount = Decimal(value)
    return f"${amount:,.4f}" if 0 < amount < Decimal("0.1") else f"${amount:,.2f}"


def short(text: object, length: int) -> str:
    """At most ``length`` characters."""
    whole = str(text)
    return whole if len(whole) <= length else whole[: length - 1] + "…"


def short_id(value: UUID) -> str:
    """The beginning tells the time, the end tells ids of the same time apart."""
    return f"{str(value)[:8]}…{str(value)[-4:]}"


def share(count: int, counts: Collection[int]) -> str:
    """The length of a bar, in percent of the longest one."""
    return f"{100 * count / max(1, *counts):.1f}"


def subject_path(subject: str) -> str | None:
    """The page of what an audit entry or a cost row is about, if there is one."""
    kind, _, rest = subject.partition(":")
    if kind in {channel.value for channel in Channel} and rest:
        return f"/console/owners/{kind}/{rest}"
    if kind == "session" and rest:
        return f"/console/sessions/{rest}"
    return None


def with_code(text: str) -> Markup:
    """What stands in backticks as code; everything is escaped."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


FILTERS = (
    iso, clock, day, seconds, span, grouped, signed, dollars, short, short_id, share, subject_path,
    with_code,
)  # fmt: skip
