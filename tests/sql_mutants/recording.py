"""Which test sends which statements, so that a mutant runs only the tests that can notice it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.sql_mutants.boundary import sent_by_product
from tests.sql_mutants.mutants import Mutant

PLAN_SUITES = ("tests/adapters/test_plans.py",)
"""They run last, because a guard that changes the result of a statement needs a test of the
result."""

_WRAPPED = re.compile(r"(?:PREPARE \w+ AS|EXPLAIN(?: \([^)]*\))?)\s*", re.IGNORECASE)
_STATEMENT = re.compile(r"\s*(?:WITH|SELECT|INSERT|UPDATE|DELETE)\s")
_WRITES = r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+{}\b"
_CALLS = r"\b{} ?\("
_READS_DEFINITIONS = re.compile(r"\bpg_get_(?:function|trigger|constraint|index)def\b|\bprosrc\b")


@dataclass(slots=True, kw_only=True)
class TestRun:
    """``sent``: places in ``Recording.statements``."""

    __test__ = False

    seconds: float = 0.0
    sent: set[int] = field(default_factory=set)


@dataclass(kw_only=True)
class Recording:
    """``by_product``: the places of the product's statements. ``red``: tests that fail without a
    mutant."""

    statements: list[str] = field(default_factory=list)
    by_product: set[int] = field(default_factory=set)
    tests: dict[str, TestRun] = field(default_factory=dict)
    red: list[str] = field(default_factory=list)

    def product_statements(self) -> list[str]:
        return [self.statements[i] for i in sorted(self.by_product) if guards(self.statements[i])]

    def tests_for(self, mutant: Mutant) -> list[str]:
        """The nearest first: tests that send few other statements, or that write the table by
        their own SQL. Among those the fastest first."""
        if mutant.objects:
            names = f"(?:{'|'.join(map(re.escape, mutant.objects))})"
            writing = re.compile(_WRITES.format(names))
            using = self._matching(writing) | self._matching(re.compile(_CALLS.format(names)))
            using -= self._matching(_READS_DEFINITIONS)
            near = self._matching(writing, only=self._places - self.by_product)
            return sorted(using, key=lambda test: self._distance(test, test not in near))
        places = {i for i, sql in enumerate(self.statements) if carries(sql, mutant.before)}
        sending = {test for test, run in self.tests.items() if not places.isdisjoint(run.sent)}
        return sorted(sending, key=lambda test: self._distance(test, self._width(test)))

    @cached_property
    def _places(self) -> set[int]:
        return set(range(len(self.statements)))

    def _matching(self, pattern: re.Pattern[str], only: set[int] | None = None) -> set[str]:
        candidates = self._places if only is None else only
        places = {i for i in candidates if pattern.search(self.statements[i])}
        return {test for test, run in self.tests.items() if not places.isdisjoint(run.sent)}

    def _width(self, test: str) -> int:
        return len(self.tests[test].sent & self.by_product)

    def _distance(self, test: str, rank: int) -> tuple[bool, int, float]:
        return test.startswith(PLAN_SUITES), rank, self.tests[test].seconds


def guards(sql: str) -> bool:
    """Whether this is a statement on rows, rather than a setting or a migration."""
    return _STATEMENT.match(sql) is not None and ";" not in sql


def carries(sent: str, statement: str) -> bool:
    """Whether ``sent`` is the statement, or prepares or explains it."""
    if not sent.endswith(statement):
        return False
    wrapped = sent[: len(sent) - len(statement)]
    return not wrapped or _WRAPPED.fullmatch(wrapped) is not None


class Recorder:
    """Records each statement under the test that runs."""

    count = 0

    def __init__(self) -> None:
        self.recording = Recording()
        self.test: str | None = None
        self._places: dict[str, int] = {}

    def intercept(self, sql: str, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        recording = self.recording
        place = self._places.setdefault(sql, len(recording.statements))
        if place == len(recording.statements):
            recording.statements.append(sql)
        if place not in recording.by_product and sent_by_product():
            recording.by_product.add(place)
        if self.test is not None:
            recording.tests.setdefault(self.test, TestRun()).sent.add(place)
        return sql, arguments

    def took(self, test: str, seconds: float) -> None:
        if test in self.recording.tests:
            self.recording.tests[test].seconds += seconds


class Translator:
    """Sends a mutant in place of its statement, also if a test passes the statement as an argument.

    ``count``: of the replaced statements; for a mutant of the schema, of all statements.
    """

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.count = 0

    def intercept(self, sql: str, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        before, after = self.mutant.before, self.mutant.after
        if self.mutant.ddl:
            self.count += 1
            return sql, arguments
        if carries(sql, before):
            self.count += 1
            sql = sql[: len(sql) - len(before)] + after
        return sql, tuple(after if argument == before else argument for argument in arguments)


def named(statements: Iterable[str], constants: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Statements with their names in the modules of the adapters, else with their first words.

    Includes the statements that no test sends, because their guards are untested. Excludes parts
    of other statements, and templates.
    """
    names = {sql: name for name, sql in constants}
    sent = list(statements)
    unsent = [
        sql
        for sql in names
        if guards(sql) and "{" not in sql and not any(sql in other for other in sent)
    ]
    return {
        sql: names.get(sql, f"statement {' '.join(sql.split())[:60]!r}") for sql in (*sent, *unsent)
    }
