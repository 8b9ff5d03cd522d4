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
from tests.bench import growth, operations, report, streams, webhooks
from tests.bench.figures import Finding, Round, Row, Sample
from tests.bench.load import Void, default_generator
from tests.bench.slots import FULL, QUICK, ROWS, SLOTS, WARM_UP, Sizes, Slots
from tests.bench.soak import soak
from tests.bench.stage import Stage

SOAK, GROWTH, STREAMS, WEBHOOKS = "soak", "growth", "streams", "webhooks"
OPERATIONS = "operations"
ALONE = (SOAK, GROWTH, STREAMS, WEBHOOKS, OPERATIONS)
Found = tuple[list[Finding], Sequence[Round]]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure wearon against baselines that are measured in the same run. Exits with"
        " 1 if a measurement is void; a missed aim is only reported.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller sizes: less than two minutes")
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*names, *ALONE],
        default=names,
        help=f"rows to measure: {', '.join(names)}; or, alone, one of {', '.join(ALONE)}",
    )
    add("--rounds", type=int, metavar="N", help="number of rounds; each round measures every row")
    add("--seconds", type=float, metavar="S", help="duration of each load, or of the whole soak")
    add("--tasks", type=int, metavar="N", help="number of tasks for the worker")
    add(
        "--generator",
        choices=["wrk", "own"],
        default=default_generator(),
        help="load generator (default: %(default)s)",
    )
    add(
        "--callers",
        choices=["stores", "users", "both"],
        default="stores",
        help="who submits: stores with API keys, which are looked up in PostgreSQL, or users with"
        " JWTs (default: %(default)s)",
    )
    add(
        "--data-dir",
        type=Path,
        default=Path(".wearon/bench"),
        metavar="DIR",
        help="folder for the servers' data during the run, on a real disk (default: %(default)s)",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="file for the results of all rounds (default: DIR/bench.json)",
    )
    add(
        "--chart",
        type=Path,
        metavar="FILE",
        help="file for an SVG chart (default: DIR/bench.svg)",
    )
    for name, default, meaning in (
        ("--sessions", 1_000_000, "sessions of one owner"),
        ("--ledger", 10_000_000, "ledger entries in all"),
        ("--waiting", 100_000, "queued sessions"),
        ("--times", 40, "repetitions of each operation in a round"),
    ):
        add(name, type=int, default=default, metavar="N", help=f"{GROWTH}: {meaning}")
    add(
        "--accounts",
        type=int,
        default=200_000,
        metavar="N",
        help=f"{OPERATIONS}: accounts without a session",
    )
    add("--pooled", action="store_true", help=f"{OPERATIONS}: as behind a transaction pooler")
    options = parser.parse_args(arguments)
    if len(options.only) > 1 and {*ALONE} & {*options.only}:
        parser.error(f"each of {', '.join(ALONE)} runs alone")
    options.json = options.json or options.data_dir / "bench.json"
    options.chart = options.chart or options.data_dir / "bench.svg"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the results and write the files. Returns the exit code."""
    options = _options(arguments)
    started_at = time.monotonic()
    stage = Stage(options.data_dir, callers=options.callers)
    try:
        with closing(stage):
            stage.open()
            facts = report.machine() | stage.facts() | {"load generator": options.generator}
            report.print_facts(facts)
            findings, rounds = _measure(stage, options)
    except (Void, EmbeddedUnavailable) as error:
        sys.stderr.write(f"void: {error}\n")
        return 1
    facts["duration, s"] = round(time.monotonic() - started_at)
    report.print_slots(rounds)
    report.print_findings(findings)
    document = report.as_document(facts, findings, rounds)
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    options.chart.write_text(report.chart(findings))
    sys.stdout.write(
        f"took {facts['duration, s']} s; all rounds: {options.json}, chart: {options.chart}\n"
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
    if options.only == [STREAMS]:
        return streams.run(stage)
    if options.only == [WEBHOOKS]:
        return webhooks.run(stage)
    if options.only == [OPERATIONS]:
        return operations.run(
            stage,
            sessions=options.sessions,
            accounts=options.accounts,
            rounds=options.rounds or 5,
            times=options.times,
            pooled=options.pooled,
        )
    rows = [row for row in ROWS if row.name in options.only]
    return _in_rounds(stage, rows, _sizes(options), tool=options.generator)


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else FULL
    wanted = {name: getattr(options, name) for name in ("rounds", "seconds", "tasks")}
    return replace(sizes, **{name: value for name, value in wanted.items() if value is not None})


def _in_rounds(stage: Stage, rows: Sequence[Row], sizes: Sizes, *, tool: str) -> Found:
    """Measure all slots of the rows in each round, after a warm-up that does not count."""
    needed = {slot for row in rows for slot in row.slots}
    slots = Slots(stage, sizes, tool=tool)
    for slot in WARM_UP:
        if slot in needed:
            _show_progress(f"warming up: {slot}")
            slots.run(slot)
    rounds: list[dict[str, Sample]] = []
    for number in range(1, sizes.rounds + 1):
        round_: dict[str, Sample] = {}
        for slot in SLOTS:
            if slot in needed:
                _show_progress(f"round {number} of {sizes.rounds}: {slot}")
                round_[slot] = slots.run(slot)
        rounds.append(round_)
    _show_progress("")
    return [row.judge(rounds) for row in rows], rounds


def _show_progress(text: str) -> None:
    """Overwrite one line of a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that all processes are stopped.
    sys.exit(main())
