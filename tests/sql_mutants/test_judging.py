"""A verdict is about the mutant, not about a flaky test or one that does not use the mutant."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.sql_mutants.judging import Attempt, Job, MutantRunner, Verdict
from tests.sql_mutants.mutants import Mutant, statement_mutants

((MUTANT, _),) = statement_mutants("a.B", "DELETE FROM t WHERE a")
NO_SERVER: Any = None

GREEN = Attempt(used=True)
UNUSED = Attempt(used=False)


def red(test: str, *, used: bool = True) -> Attempt:
    return Attempt(red=test, why="assert False", used=used)


class Scripted(MutantRunner):
    """Attempts with scripted outcomes. Keeps the tests of each."""

    def script(self, *attempts: Attempt) -> None:
        self.attempts = list(attempts)
        self.ran: list[tuple[str, ...]] = []

    def attempt(
        self,
        server: Any,  # noqa: ARG002 - the real one's
        mutant: Mutant | None,  # noqa: ARG002 - the real one's
        tests: Sequence[str],
    ) -> Attempt:
        self.ran.append(tuple(tests))
        return self.attempts.pop(0)


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Scripted:
    return Scripted(session=request.session, postgres=())


def verdict(runner: Scripted, *attempts: Attempt) -> Verdict:
    runner.script(*attempts)
    return runner.verdict(NO_SERVER, Job(mutant=MUTANT, tests=("a", "b", "c")))


def test_mutant_is_caught_by_a_test_that_is_red_twice(runner: Scripted) -> None:
    """The second time alone."""
    found = verdict(runner, red("b"), red("b"))

    assert (found.test, found.why) == ("b", "assert False")
    assert runner.ran == [("a", "b", "c"), ("b",)]


def test_flaky_test_catches_nothing(runner: Scripted) -> None:
    """The tests behind it may."""
    assert verdict(runner, red("a"), GREEN, red("c"), red("c")).test == "c"
    assert runner.ran == [("a", "b", "c"), ("a",), ("b", "c"), ("c",)]


def test_unused_mutant_is_not_caught(runner: Scripted) -> None:
    """The test would be red without it, too."""
    assert verdict(runner, red("c"), red("c", used=False)).test is None


def test_mutant_survives_green_tests(runner: Scripted) -> None:
    found = verdict(runner, GREEN)

    assert (found.test, found.why) == (None, "")


def test_verdict_tells_that_no_test_uses_the_mutant(runner: Scripted) -> None:
    assert verdict(runner, UNUSED).why == "no test uses it"
