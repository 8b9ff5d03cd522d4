"""``python -m tests.sql_mutants``: can the tests of the SQL fail?

Each mutant drops one guard of a statement or of the schema, and a test on PostgreSQL has to go red.
Exits 1 if one survives, 2 if a test is red without a mutant.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.sql_mutants.campaign import Campaign
from tests.sql_mutants.constants import constants
from tests.sql_mutants.equivalents import EQUIVALENTS
from tests.sql_mutants.judging import TEMPLATE, MutantRunner
from tests.sql_mutants.mutants import Chosen, Mutant, Refused, accepted, schema_mutants
from tests.sql_mutants.recording import Recording, named
from tests.sql_mutants.state import State, hash_of_sources
from tests.support import servers

SUITES = ("tests/contracts", "tests/adapters", "tests/entrypoints")
FIXTURE = "postgres"
"""The fixture of the PostgreSQL server that the tests share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    suites: tuple[str, ...]
    state: Path
    workers: int
    only: re.Pattern[str]
    sample: int | None

    @property
    def is_whole(self) -> bool:
        return self.suites == SUITES and not self.only.pattern and self.sample is None

    def chooses(self, mutant: Mutant) -> bool:
        return self.only.search(f"{mutant.title} {mutant.before}") is not None


class Plugin:
    """A pytest plugin that runs the campaign in place of the collected tests."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.exit_code = 2

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if _uses_postgres(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with ExitStack() as stack:
            started = [stack.enter_context(servers.postgres()) for _ in range(self.options.workers)]
            runner = MutantRunner(session=session, postgres=started)
            runner.prepare()
            self.exit_code = _run(runner, self.options)
        return True


def _uses_postgres(item: pytest.Item) -> bool:
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    return FIXTURE in fixtures or FIXTURE in item.nodeid


def _run(runner: MutantRunner, options: Options) -> int:
    state, sources = State.load(options.state), hash_of_sources()
    recorded = f"{sources} {' '.join(options.suites)}"
    if state.recorded != recorded:
        _print(f"Recording what {len(runner.session.items)} tests send")
        state.recording, state.recorded = runner.record(), recorded
        state.save()
    recording = runner.recording = state.recording
    if recording.red:
        _print("Red without a mutant:", *recording.red)
        return 2
    url = runner.postgres[0].url(TEMPLATE)
    mutants, refused = asyncio.run(_mutants(url, recording, options.chooses))
    if options.sample is not None:
        mutants = mutants[:: -(-len(mutants) // options.sample) or 1]
    return Campaign(
        mutants=mutants,
        refused=refused,
        equivalents=EQUIVALENTS,
        is_whole=options.is_whole,
        recording=recording,
        state=state,
        sources=sources,
        judge=runner.judge,
        print=_print,
    ).run()


async def _mutants(
    url: str, recording: Recording, chosen: Chosen
) -> tuple[list[Mutant], list[Refused]]:
    """Mutants of all statements and of the schema, by whether PostgreSQL accepts them."""
    connection = await asyncpg.connect(url)
    try:
        mutants, refused = await schema_mutants(connection, chosen)
        statements = named(recording.product_statements(), constants())
        for sql, place in sorted(statements.items(), key=lambda pair: pair[::-1]):
            taken, not_taken = await accepted(connection, place, sql, chosen)
            mutants += taken
            refused += not_taken
    finally:
        await connection.close()
    return mutants, refused


def _print(*lines: str) -> None:
    print("\n  ".join(lines), flush=True)  # noqa: T201 - a command line tool


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.sql_mutants")
    parser.add_argument("suites", nargs="*", help="files or folders of tests (default: all)")
    parser.add_argument("--only", default="", help="a pattern in a mutant's name or statement")
    parser.add_argument("--sample", type=int, help="run this many, spread over all")
    parser.add_argument("--workers", type=int, default=2, help="servers, and tests at once (2)")
    parser.add_argument("--state", type=Path, default=Path(".wearon/sql-mutants.json"))
    chosen = parser.parse_args(arguments)
    return Options(
        suites=tuple(chosen.suites or SUITES),
        state=chosen.state,
        workers=chosen.workers,
        only=re.compile(chosen.only),
        sample=chosen.sample,
    )


def main(arguments: Sequence[str]) -> int:
    plugin = Plugin(options := _options(arguments))
    failed = pytest.main(["-qq", "-s", "--no-summary", *options.suites], plugins=[plugin])
    return plugin.exit_code if failed in (0, pytest.ExitCode.NO_TESTS_COLLECTED) else int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
