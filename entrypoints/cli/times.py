"""Times on the command line: ISO 8601, or how long ago."""

import re
from datetime import UTC, datetime, timedelta

import rich_click as click

_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType[datetime]):
    """``2026-11-28T14:00`` (UTC unless it says otherwise), or ``90m``, ``24h``, ``7d`` ago."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """The moment."""
        if isinstance(value, datetime):
            return value
        try:
            return moment(str(value), now=datetime.now(UTC))
        except (ValueError, OverflowError):
            problem = f"{value!r} is neither a time like 2026-11-28T14:00 nor 90m, 24h or 7d."
            self.fail(problem, param, ctx)


def moment(text: str, *, now: datetime) -> datetime:
    """Raises ``ValueError`` and ``OverflowError``."""
    if found := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
