"""Mutants that no test can catch, for they change nothing, each with the reason."""

from dataclasses import dataclass

from tests.sql_mutants.mutants import Mutant


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalent:
    """``now``: what the mutant says in place of what was ``within`` the text before; only the
    mutant says so. White space does not matter."""

    now: str
    within: str = ""
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        before, after = _flat(mutant.before), _flat(mutant.after)
        now = _flat(self.now)
        return now in after and now not in before and _flat(self.within) in before


def _flat(text: str) -> str:
    return " ".join(text.split())


EQUIVALENTS: tuple[Equivalent, ...] = ()
