"""The doctor: checks run apart from each other, and each in a bounded time."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from domain.causes import Cause, CauseKind
from domain.doctor import Check, Finding, Level, clock_finding, examine, ok
from domain.errors import DatabaseUnavailable, NotFound, ProviderUnavailable
from tests.support.clock import START


async def healthy() -> Sequence[Finding]:
    return [ok("healthy", "Fine.")]


async def hangs() -> Sequence[Finding]:
    await asyncio.Event().wait()
    return []


def raises(error: Exception) -> Check:
    async def check() -> Sequence[Finding]:
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (
            raises(DatabaseUnavailable("No answer", cause=Cause(CauseKind.DATABASE, "refused"))),
            "No answer: refused.",
        ),
        (raises(DatabaseUnavailable("Run `wearon migrate`")), "Run `wearon migrate`."),
        (
            raises(
                ProviderUnavailable(
                    "The credit was refunded", cause=Cause(CauseKind.PROVIDER, "timeout")
                )
            ),
            "No answer: provider timeout.",
        ),
        (raises(NotFound("No such picture")), "No such picture."),
        (raises(ValueError("postgresql://user:hunter2@host")), "The check failed with ValueError."),
        (hangs, "No answer within 0.05 s."),
    ],
)
def test_failing_check_stops_no_other(check: Check, sentence: str) -> None:
    """It becomes a finding with its advice. The text of an error that is not ours is left out,
    because it may have a secret."""
    checks = {"broken": (check, "Fix it."), "healthy": (healthy, "")}

    found = asyncio.run(examine(checks, seconds=0.05))

    broken, fine = found
    assert (broken.subject, broken.level, broken.sentence, broken.advice) == (
        "broken", Level.FAILED, sentence, "Fix it."
    )  # fmt: skip
    assert fine.level is Level.OK


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (-63, Level.FAILED, "61.0 s behind"),
        (-61, Level.WARNING, "59.0 s behind"),
        (-5, Level.WARNING, "3.0 s behind"),
        (-4, Level.OK, "At most 2 s"),
        (0, Level.OK, "At most 2 s"),
        (4, Level.OK, "At most 2 s"),
        (5, Level.WARNING, "3.0 s ahead of"),
        (63, Level.FAILED, "61.0 s ahead of"),
    ],
)
def test_clock_is_judged_as_far_as_is_certain(seconds: float, level: Level, words: str) -> None:
    """The answer took four seconds, and the server read its clock at any moment of them: up to two
    before or after the middle, START."""
    half = timedelta(seconds=2)

    found = clock_finding(
        "clock", START + timedelta(seconds=seconds), asked_at=START - half, answered_at=START + half
    )

    assert found.level is level
    assert words in found.sentence
