"""The state of a run, kept in a file, from which the next run resumes."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from tests.sql_mutants.judging import Verdict
from tests.sql_mutants.mutants import Mutant
from tests.sql_mutants.recording import PLAN_SUITES, Recording

REPOSITORY = Path(__file__).parents[2]
_SOURCES = ("adapters", "config", "domain", "entrypoints", "tests")


@dataclass(slots=True, kw_only=True)
class Known:
    """A verdict, and the hash of the sources that it is about."""

    sources: str
    verdict: Verdict


@dataclass(slots=True, kw_only=True)
class State:
    """``recorded`` names the sources and suites of the recording."""

    path: Path
    recorded: str = ""
    recording: Recording = field(default_factory=Recording)
    known: dict[str, Known] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """An empty one if there is no file."""
        if not path.exists():
            return cls(path=path)
        return msgspec.json.decode(path.read_bytes(), type=cls, dec_hook=_path)

    def save(self) -> None:
        """Replace the file atomically."""
        self.path.parent.mkdir(exist_ok=True)
        unfinished = self.path.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.encode(self, enc_hook=str))
        unfinished.replace(self.path)

    def verdict(self, mutant: Mutant, sources: str) -> Verdict | None:
        """The known verdict if it is about these sources."""
        known = self.known.get(mutant.key)
        return known.verdict if known is not None and known.sources == sources else None

    def in_order(self, mutant: Mutant, tests: Iterable[str]) -> tuple[str, ...]:
        """The tests, first of all the one that caught the mutant in other sources: but no test of
        plans, because a new test may show what the guard is for."""
        known = self.known.get(mutant.key)
        catcher = None if known is None else known.verdict.test
        if catcher is not None and catcher.startswith(PLAN_SUITES):
            catcher = None
        return tuple(sorted(tests, key=lambda test: test != catcher))


def _path(_: type, value: object) -> Path:
    return Path(str(value))


def hash_of_sources() -> str:
    """Of everything that a verdict depends on, except for this package."""
    found = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in (".py", ".sql") and not path.is_relative_to(Path(__file__).parent):
                found.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
