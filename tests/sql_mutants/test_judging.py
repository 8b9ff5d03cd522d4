"""A verdict is about the mutant: not about a flaky test, nor one that never met the mutant."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.sql_mutants.judging import Attempt, Job, Laboratory, Verdict
from tests.sql_mutants.mutants import Mutant, statement_mutants

((MUTANT, _),) = statement_mutants("a.B", "DELETE FROM t WHERE a")
NO_SERVER: Any = None

GREEN = Attempt(used=True)
UNUSED = Attempt(used=False)


def red(test: str, *, used: bool = True) -> Attempt:
    return Attempt(red=test, why="assert False", used=used)


class Scripted(Laboratory):
    """Attempts that end as they are told. Which tests each of them ran is kept."""

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
def laboratory(request: pytest.FixtureRequest) -> Scripted:
    return Scripted(session=request.session, postgres=())


def verdict(laboratory: Scripted, *attempts: Attempt) -> Verdict:
    laboratory.script(*attempts)
    return laboratory.verdict(NO_SERVER, Job(mutant=MUTANT, tests=("a", "b", "c")))


def test_mutant_is_caught_by_a_test_that_is_red_twice(laboratory: Scripted) -> None:
    """The second time alone."""
    found = verdict(laboratory, red("b"), red("b"))

    assert (found.test, found.why) == ("b", "assert False")
    assert laboratory.ran == [("a", "b", "c"), ("b",)]


def test_flaky_test_catches_nothing(laboratory: Scripted) -> None:
    """The tests behind it may."""
    assert verdict(laboratory, red("a"), GREEN, red("c"), red("c")).test == "c"
    assert laboratory.ran == [("a", "b", "c"), ("a",), ("b", "c"), ("c",)]


def test_test_that_does_not_meet_the_mutant_catches_nothing(laboratory: Scripted) -> None:
    """It would be red without the mutant, too."""
    assert verdict(laboratory, red("c"), red("c", used=False)).test is None


def test_mutant_survives_green_tests(laboratory: Scripted) -> None:
    found = verdict(laboratory, GREEN)

    assert (found.test, found.why) == (None, "")


def test_survivor_that_no_test_met_is_told_apart(laboratory: Scripted) -> None:
    assert verdict(laboratory, UNUSED).why == "no test uses it"
