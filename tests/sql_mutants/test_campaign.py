"""A run over mutants reports the survivors, and resumes where an earlier run stopped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sql_mutants.__main__ import SUITES
from tests.sql_mutants.campaign import Campaign
from tests.sql_mutants.equivalents import Equivalent
from tests.sql_mutants.judging import Job, Verdict
from tests.sql_mutants.mutants import Mutant, Refused, statement_mutants
from tests.sql_mutants.recording import (
    PLAN_SUITES,
    Recording,
    TestRun,
    Translator,
    carries,
    named,
)
from tests.sql_mutants.state import REPOSITORY, Known, State

SQL = "UPDATE pictures SET seen = true WHERE id = $1 AND owner_id = $2 AND NOT seen"
MUTANTS = [mutant for mutant, _ in statement_mutants("pictures.SEE", SQL)]
ON_TABLE = Mutant(
    place="trigger on pictures",
    kind="TRIGGER",
    dropped="all",
    before="CREATE",
    after="",
    ddl=("DROP",),
    objects=("pictures",),
)


class FakeTests:
    """Tests that notice some mutants. Keeps the jobs that were judged."""

    def __init__(self, *caught: str, stop_after: int | None = None) -> None:
        self.caught = caught
        self.stop_after = stop_after
        self.jobs: list[Job] = []

    def judge(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Verdict]]:
        for job in jobs:
            if self.stop_after is not None and len(self.jobs) == self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            test = job.tests[-1] if job.mutant.dropped in self.caught else None
            yield job, Verdict(test=test, why="", seconds=0.1)

    def judged(self) -> list[str]:
        return [job.mutant.dropped for job in self.jobs]


PLAN = f"{PLAN_SUITES[0]}::p"
NOTICING = ("id = $1", "owner_id = $2", "NOT seen")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def recording() -> Recording:
    return Recording(
        statements=[SQL, "INSERT INTO pictures VALUES ($1)"],
        by_product={0},
        tests={
            "tests/a.py::a": TestRun(sent={0}, seconds=0.1),
            "tests/a.py::b": TestRun(sent={0, 1}, seconds=0.2),
        },
    )


def run(
    tests: FakeTests,
    path: Path,
    *equivalents: Equivalent,
    refused: Sequence[Refused] = (),
    sources: str = "1",
) -> tuple[int, str]:
    """The exit code and what was printed."""
    printed: list[str] = []
    campaign = Campaign(
        mutants=MUTANTS,
        refused=refused,
        equivalents=equivalents,
        recording=recording(),
        state=State.load(path),
        sources=sources,
        judge=tests.judge,
        print=printed.append,
    )
    return campaign.run(), "\n".join(printed)


def test_a_suite_that_never_goes_red_is_reported(path: Path) -> None:
    """Each mutant with its SQL."""
    exit_code, printed = run(FakeTests(), path)

    assert exit_code == 1
    assert printed.count("\nSURVIVED pictures.SEE: WHERE without ") == 3
    assert "+UPDATE pictures SET seen = true WHERE id = $1 AND (owner_id = $2 OR true)" in printed


def test_one_survivor_is_enough_to_fail(path: Path) -> None:
    """However many mutants are caught."""
    exit_code, printed = run(FakeTests("id = $1", "NOT seen"), path)

    assert exit_code == 1
    assert printed.count("\nSURVIVED ") == 1


def test_a_suite_that_notices_everything_passes(path: Path) -> None:
    """The table has a row for each kind."""
    exit_code, printed = run(FakeTests(*NOTICING), path)

    assert exit_code == 0
    assert [line.split() for line in printed.splitlines()[-2:]] == [
        ["WHERE", "3", "3", "0", "0"],
        ["all", "3", "3", "0", "0"],
    ]


def test_interrupted_run_is_resumed(path: Path) -> None:
    """Earlier verdicts count, also those of survivors, until the sources change."""
    first, second = FakeTests("NOT seen", stop_after=1), FakeTests(*NOTICING)
    with pytest.raises(KeyboardInterrupt):
        run(first, path)

    exit_code, printed = run(second, path)

    assert first.judged() == ["id = $1"]
    assert second.judged() == ["owner_id = $2", "NOT seen"]
    assert exit_code == 1
    assert "SURVIVED pictures.SEE: WHERE without id = $1" in printed


def test_other_sources_are_judged_anew(path: Path) -> None:
    """First by the test that caught the mutant before, unless it tests a plan."""
    run(FakeTests(*NOTICING), path)
    state = State.load(path)
    by_plan = Verdict(test=PLAN, why="", seconds=0.1)
    state.known[MUTANTS[1].key] = Known(sources="1", verdict=by_plan)
    state.save()

    again = FakeTests(*NOTICING)
    run(again, path, sources="2")

    assert again.judged() == list(NOTICING)
    assert again.jobs[0].tests == ("tests/a.py::b", "tests/a.py::a")
    assert again.jobs[1].tests == ("tests/a.py::a", "tests/a.py::b")


@pytest.mark.parametrize(("kind", "exit_code"), [("ON CONFLICT", 0), ("WHERE", 1)])
def test_mutant_that_the_server_refuses_is_printed(path: Path, kind: str, exit_code: int) -> None:
    """Only a target of ON CONFLICT may be needed; of others the text was not understood."""
    refused = Refused(mutant=replace(MUTANTS[0], kind=kind), message="syntax error")

    found, printed = run(FakeTests(*NOTICING), path, refused=[refused])

    assert found == exit_code
    assert f"PostgreSQL refuses pictures.SEE: {kind} without id = $1: syntax error" in printed


def test_suites_exist() -> None:
    """So that a renamed one is not forgotten here."""
    assert all((REPOSITORY / suite).exists() for suite in (*SUITES, *PLAN_SUITES))


def test_an_equivalent_mutant_is_not_judged(path: Path) -> None:
    """It is printed with its reason."""
    equivalent = Equivalent(within="SET seen", now="(NOT  seen OR true)", reason="same row")
    tests = FakeTests(*NOTICING)

    exit_code, printed = run(tests, path, equivalent)

    assert exit_code == 0
    assert tests.judged() == ["id = $1", "owner_id = $2"]
    assert "equivalent, 1 mutant(s): (NOT  seen OR true): same row" in printed


def test_equivalent_without_a_mutant_fails(path: Path) -> None:
    """The code it was about is gone."""
    gone = Equivalent(within="SET seen", now="(hidden OR true)", reason="same row")

    exit_code, printed = run(FakeTests(*NOTICING), path, gone)

    assert exit_code == 1
    assert "MATCHES NO MUTANT" in printed


def test_the_tests_of_a_statement_are_those_that_send_it() -> None:
    """First those that send few other statements, last those of plans."""
    sent = recording()
    sent.tests |= {
        PLAN: TestRun(sent={2}),
        "tests/a.py::c": TestRun(sent={1}),
        "tests/a.py::d": TestRun(sent={0, 3}, seconds=0.5),
    }
    sent.statements += [f"PREPARE asked AS {SQL}", "SELECT FROM others WHERE a"]
    sent.by_product.add(3)

    assert sent.tests_for(MUTANTS[0]) == [
        "tests/a.py::a",
        "tests/a.py::b",
        "tests/a.py::d",
        PLAN,
    ]


def test_the_tests_of_a_table_are_those_that_use_it() -> None:
    """Only those that write it, first by SQL of their own; none that reads definitions."""
    sent = recording()
    sent.statements += ["SELECT pg_get_triggerdef(oid) FROM pg_trigger", "TRUNCATE pictures"]
    sent.tests |= {"tests/a.py::c": TestRun(sent={0, 2}), "tests/a.py::d": TestRun(sent={3})}

    assert sent.tests_for(ON_TABLE) == ["tests/a.py::b", "tests/a.py::a"]


def test_a_mutant_is_sent_in_place_of_its_statement() -> None:
    """Also if it is prepared or explained, or is an argument; not within another statement."""
    mutant = MUTANTS[0]
    send = Translator(mutant).intercept

    assert send(SQL, (1, SQL)) == (mutant.after, (1, mutant.after))
    assert send(f"EXPLAIN (FORMAT JSON) {SQL}", ()) == (
        f"EXPLAIN (FORMAT JSON) {mutant.after}",
        (),
    )
    for other in (f"{SQL} AND big", f"WITH a AS (SELECT) {SQL}"):
        assert send(other, ()) == (other, ())
        assert not carries(other, SQL)


def test_unsent_statement_has_mutants() -> None:
    """Unless it is a part of a sent one, or a template."""
    template, unsent = "SELECT FROM t WHERE {guard}", "DELETE FROM t WHERE a"
    constants = [("m.A", SQL), ("m.B", SQL[:40]), ("m.C", template), ("m.D", unsent)]

    assert named([SQL, "SELECT 1 WHERE a"], constants) == {
        SQL: "m.A",
        "SELECT 1 WHERE a": "statement 'SELECT 1 WHERE a'",
        unsent: "m.D",
    }
