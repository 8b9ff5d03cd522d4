"""What an operator checks before a start, and at night: each part on its own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from domain.errors import Unavailable, WearonError, WorkFailed

CHECK_SECONDS = 5.0
"""How long each check may take; they run at the same time."""
MAX_SKEW = timedelta(seconds=2)
"""A clock that is further off is worth a warning: leases and links are measured on two clocks."""
MAX_USABLE_SKEW = timedelta(seconds=60)
"""Ids tell their time: lookups by time allow for two minutes between the clocks."""


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a check: a sentence, and what to do unless all is well; without secrets."""

    subject: str
    level: Level
    sentence: str
    advice: str = ""


Check = Callable[[], Awaitable[Sequence[Finding]]]


def ok(subject: str, sentence: str) -> Finding:
    return Finding(subject=subject, level=Level.OK, sentence=sentence)


def warning(subject: str, sentence: str, advice: str) -> Finding:
    return Finding(subject=subject, level=Level.WARNING, sentence=sentence, advice=advice)


def failed(subject: str, sentence: str, advice: str) -> Finding:
    return Finding(subject=subject, level=Level.FAILED, sentence=sentence, advice=advice)


async def examine(
    checks: Mapping[str, tuple[Check, str]], *, seconds: float = CHECK_SECONDS
) -> list[Finding]:
    """Run all checks at once. The key of a check is its subject; its advice is given if the check
    cannot be done. Whatever a check raises is a finding, and stops no other check."""
    results = await asyncio.gather(
        *(_bounded(check, seconds) for check, _ in checks.values()), return_exceptions=True
    )
    found: list[Finding] = []
    for (subject, (_, advice)), result in zip(checks.items(), results, strict=True):
        if isinstance(result, BaseException):
            found.append(failed(subject, _reason(result, seconds), advice))
        else:
            found += result
    return found


async def _bounded(check: Check, seconds: float) -> Sequence[Finding]:
    async with asyncio.timeout(seconds):
        return await check()


def _reason(error: BaseException, seconds: float) -> str:
    """Of an error that is not ours only the type: its text may have anything in it."""
    match error:
        case Unavailable():
            message, detail = str(error).rstrip("."), error.cause.detail.rstrip(".")
            return f"{message}." if message == detail else f"{message}: {detail}."
        case WorkFailed():
            return f"No answer: {error.cause}."
        case WearonError():
            return f"{error}."
        case TimeoutError():
            return f"No answer within {seconds:g} s."
    return f"The check failed with {type(error).__name__}."


def clock_finding(
    subject: str, theirs: datetime, *, asked_at: datetime, answered_at: datetime
) -> Finding:
    """How far a server's clock is from ours, as far as that is certain: the answer was made at some
    moment between question and answer."""
    late, early = asked_at - theirs, theirs - answered_at
    skew = max(late, early, timedelta())
    if skew <= MAX_SKEW:
        return ok(subject, f"At most {MAX_SKEW.total_seconds():g} s from this machine's.")
    direction = "behind" if late > early else "ahead of"
    sentence = f"{skew.total_seconds():.1f} s {direction} this machine's."
    advice = "Synchronise the clocks (NTP) on both machines."
    if skew <= MAX_USABLE_SKEW:
        return warning(subject, sentence, advice)
    return failed(subject, sentence, advice)
