"""Mutants that no test can catch, for they change nothing, each with the reason."""

from dataclasses import dataclass

from tests.sql_mutants.mutants import Mutant


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalent:
    """``within``: part of the name or text of what is mutated; white space does not matter."""

    within: str
    dropped: str
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        text = _flat(f"{mutant.place} {mutant.before}")
        return _flat(self.dropped) == _flat(mutant.dropped) and _flat(self.within) in text


def _flat(text: str) -> str:
    return " ".join(text.split())


EQUIVALENTS: tuple[Equivalent, ...] = ()
