"""``python -m tests.bench``: see ``--help``."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from adapters.embedded.processes import EmbeddedUnavailable
from tests.bench import growth, report
from tests.bench.figures import Finding, Round, Row, Sample
from tests.bench.load import Void, generator
from tests.bench.slots import FULL, QUICK, ROWS, SLOTS, WARM_UP, Sizes, Slots
from tests.bench.soak import soak
from tests.bench.stage import Stage

SOAK, GROWTH = "soak", "growth"
Found = tuple[list[Finding], Sequence[Round]]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure wearon against floors that are measured in the same run. Exits 1"
        " where what was measured is void; an aim that was missed is only said.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller sizes, under two minutes")
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*names, SOAK, GROWTH],
        default=names,
        help=f"of {', '.join(names)}; {SOAK} and {GROWTH} run only when they are named, alone",
    )
    add("--rounds", type=int, metavar="N", help="turns of all measures")
    add("--seconds", type=float, metavar="S", help="of each load; of the whole soak")
    add("--tasks", type=int, metavar="N", help="tasks to drain")
    add(
        "--generator",
        choices=["wrk", "own"],
        default=generator(),
        help="what puts the load on: %(default)s",
    )
    add(
        "--callers",
        choices=["stores", "users", "both"],
        default="stores",
        help="who submits: stores by API keys, which PostgreSQL is asked for, or users by JWT",
    )
    add(
        "--data-dir",
        type=Path,
        default=Path(".wearon/bench"),
        metavar="DIR",
        help="where the servers keep their data while they run; a real disk",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="where all rounds are written; DIR/bench.json by default",
    )
    add(
        "--chart",
        type=Path,
        metavar="FILE",
        help="where an SVG is written; DIR/bench.svg by default",
    )
    add("--sessions", type=int, default=1_000_000, metavar="N", help=f"{GROWTH}: of one owner")
    add("--ledger", type=int, default=10_000_000, metavar="N", help=f"{GROWTH}: entries in all")
    add("--waiting", type=int, default=100_000, metavar="N", help=f"{GROWTH}: tasks that wait")
    add("--times", type=int, default=40, metavar="N", help=f"{GROWTH}: in each round")
    options = parser.parse_args(arguments)
    if len(options.only) > 1 and {SOAK, GROWTH} & set(options.only):
        parser.error(f"{SOAK} and {GROWTH} run alone")
    options.json = options.json or options.data_dir / "bench.json"
    options.chart = options.chart or options.data_dir / "bench.svg"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write. Returns the exit code."""
    options = _options(arguments)
    began = time.monotonic()
    stage = Stage(options.data_dir, callers=options.callers)
    try:
        with closing(stage):
            stage.open()
            facts = report.machine() | stage.facts() | {"load by": options.generator}
            report.print_facts(facts)
            findings, rounds = _measure(stage, options)
    except (Void, EmbeddedUnavailable) as error:
        sys.stderr.write(f"void: {error}\n")
        return 1
    facts["took, s"] = round(time.monotonic() - began)
    report.print_slots(rounds)
    report.print_findings(findings)
    document = report.as_document(facts, findings, rounds)
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    options.chart.write_text(report.chart(findings))
    sys.stdout.write(
        f"took {facts['took, s']} s; all rounds: {options.json}, a chart: {options.chart}\n"
    )
    return 0


def _measure(stage: Stage, options: argparse.Namespace) -> Found:
    if options.only == [SOAK]:
        return soak(stage, seconds=options.seconds or 600)
    if options.only == [GROWTH]:
        size = growth.Size(
            sessions=options.sessions, ledger=options.ledger, waiting=options.waiting
        )
        return growth.run(stage, size, rounds=options.rounds or 15, times=options.times)
    rows = [row for row in ROWS if row.name in options.only]
    return _in_rounds(stage, rows, _sizes(options), tool=options.generator)


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else FULL
    wanted = {name: getattr(options, name) for name in ("rounds", "seconds", "tasks")}
    return replace(sizes, **{name: value for name, value in wanted.items() if value is not None})


def _in_rounds(stage: Stage, rows: Sequence[Row], sizes: Sizes, *, tool: str) -> Found:
    """All slots of the rows by turns, after one turn that counts for nothing."""
    needed = {slot for row in rows for slot in row.slots}
    slots = Slots(stage, sizes, tool=tool)
    for slot in WARM_UP:
        if slot in needed:
            _say(f"warming up: {slot}")
            slots.run(slot)
    rounds: list[dict[str, Sample]] = []
    for number in range(1, sizes.rounds + 1):
        round_: dict[str, Sample] = {}
        for slot in SLOTS:
            if slot in needed:
                _say(f"round {number} of {sizes.rounds}: {slot}")
                round_[slot] = slots.run(slot)
        rounds.append(round_)
    _say("")
    return [row.judge(rounds) for row in rows], rounds


def _say(what: str) -> None:
    """One line that is written over, for whoever watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
        sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    sys.exit(main())
