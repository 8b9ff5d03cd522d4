"""A run over many mutants: skips known verdicts, and prints the survivors."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.sql_mutants.equivalents import Equivalent
from tests.sql_mutants.judging import Job, Verdict
from tests.sql_mutants.mutants import Mutant, Refused
from tests.sql_mutants.recording import PLAN_SUITES, Recording
from tests.sql_mutants.state import Known, State

Judge = Callable[[Sequence[Job]], Iterator[tuple[Job, Verdict]]]
Print = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """``sources``: the hash of the code that the verdicts are about. ``is_whole``: whether these
    are all mutants, so that an equivalent that matches none is out of date."""

    mutants: Sequence[Mutant]
    refused: Sequence[Refused] = ()
    equivalents: Sequence[Equivalent] = ()
    is_whole: bool = True
    recording: Recording
    state: State
    sources: str
    judge: Judge
    print: Print
    verdicts: dict[Mutant, Verdict] = field(default_factory=dict)

    def run(self) -> int:
        """The exit code: 0 if every mutant was caught and every equivalent matched one."""
        excused = {m for m in self.mutants if any(e.covers(m) for e in self.equivalents)}
        judged = [mutant for mutant in self.mutants if mutant not in excused]
        for mutant in judged:
            known = self.state.verdict(mutant, self.sources)
            if known is not None:
                self.verdicts[mutant] = known
        if self.verdicts:
            self.print(f"{len(self.verdicts)} verdicts are known from an earlier run")
        self._judge([mutant for mutant in judged if mutant not in self.verdicts])
        return self._report(excused)

    def _judge(self, mutants: Sequence[Mutant]) -> None:
        jobs = [
            Job(
                mutant=mutant,
                tests=self.state.in_order(mutant, self.recording.tests_for(mutant)),
            )
            for mutant in mutants
        ]
        for number, (job, verdict) in enumerate(self.judge(jobs), 1):
            self.verdicts[job.mutant] = verdict
            self.state.known[job.mutant.key] = Known(sources=self.sources, verdict=verdict)
            self.state.save()
            self.print(f"[{number}/{len(jobs)}] {job.mutant.title}\n    {_outcome(job, verdict)}")

    def _report(self, excused: set[Mutant]) -> int:
        survivors = [mutant for mutant, verdict in self.verdicts.items() if verdict.test is None]
        for mutant in survivors:
            self.print(f"\nSURVIVED {mutant.title}\n{_difference(mutant)}")
        unreadable = self._report_refused()
        unused = self._report_equivalents()
        by_plan = [
            mutant
            for mutant, verdict in self.verdicts.items()
            if verdict.test is not None and verdict.test.startswith(PLAN_SUITES)
        ]
        for mutant in by_plan:
            self.print(f"only a plan shows {mutant.title}")
        self._print_table(excused)
        return 1 if survivors or unreadable or unused else 0

    def _report_refused(self) -> int:
        """Print them, and return the number of those that are no target of ON CONFLICT, without
        which the server would not know what to do."""
        for each in self.refused:
            self.print(f"\nPostgreSQL refuses {each.mutant.title}: {each.message}")
        return sum(each.mutant.kind != "ON CONFLICT" for each in self.refused)

    def _report_equivalents(self) -> int:
        """Print them, and return the number of those that match no mutant."""
        unused = 0
        for equivalent in self.equivalents:
            count = sum(equivalent.covers(mutant) for mutant in self.mutants)
            if count == 0 and not self.is_whole:
                continue
            unused += count == 0
            self.print(
                f"\nequivalent, {count} mutant(s): {equivalent.now}:"
                f" {equivalent.reason}" + ("" if count else "\n  MATCHES NO MUTANT: remove it")
            )
        return unused

    def _print_table(self, excused: set[Mutant]) -> None:
        kinds = Counter(mutant.kind for mutant in self.mutants)
        caught = Counter(
            mutant.kind for mutant, verdict in self.verdicts.items() if verdict.test is not None
        )
        equivalent = Counter(mutant.kind for mutant in excused)
        self.print(f"\n{'':26}{'mutants':>9}{'caught':>9}{'equivalent':>12}{'survived':>10}")
        for kind in sorted(kinds):
            row = (kinds[kind], caught[kind], equivalent[kind])
            self.print(_row(kind, *row))
        total = (kinds.total(), caught.total(), equivalent.total())
        self.print(_row("all", *total))


def _row(kind: str, mutants: int, caught: int, equivalent: int) -> str:
    survived = mutants - caught - equivalent
    return f"{kind:26}{mutants:9}{caught:9}{equivalent:12}{survived:10}"


def _outcome(job: Job, verdict: Verdict) -> str:
    if verdict.test is None:
        why = f": {verdict.why}" if verdict.why else ""
        return f"SURVIVED {len(job.tests)} tests in {verdict.seconds:.1f} s{why}"
    return f"caught in {verdict.seconds:.1f} s by {verdict.test}: {verdict.why[:150]}"


def _difference(mutant: Mutant) -> str:
    before, after = mutant.before.splitlines(), mutant.after.splitlines()
    return "\n".join(list(difflib.unified_diff(before, after, lineterm="", n=2))[2:])
