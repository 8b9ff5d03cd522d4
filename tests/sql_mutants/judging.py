"""Runs tests on mutants, each time in a fork of the process that has collected the tests, on a new
copy of the migrated database."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import asyncpg
import pytest

from adapters.embedded.postgres import DATABASE, EmbeddedPostgres
from tests.sql_mutants.boundary import intercepted
from tests.sql_mutants.mutants import Mutant
from tests.sql_mutants.recording import Recorder, Recording, Translator
from tests.support import servers

TEMPLATE = "migrated"
TEST_SECONDS = 30.0
SLOWER = 10
"""A test is red after ``TEST_SECONDS`` and this many times its usual duration."""

_FORK = get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``test``: the one that went red; None if the mutant survived. ``why``: its message."""

    test: str | None
    why: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A mutant, and the tests that may notice it."""

    mutant: Mutant
    tests: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """The outcome of one run of tests. ``used``: whether the mutant took part."""

    red: str | None = None
    why: str = ""
    used: bool = False
    recording: Recording | None = None


class _Reports:
    """A pytest plugin that keeps the failures and the durations of a fork's tests."""

    def __init__(self) -> None:
        self.red: list[tuple[str, str]] = []
        self.took: Callable[[str, float], None] = lambda *_: None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took(report.nodeid, report.duration)
        if report.failed:
            self.red.append((report.nodeid, _message(report)))


@dataclass(kw_only=True)
class MutantRunner:
    """``session`` holds the collected tests. Each of the servers has a worker."""

    session: pytest.Session
    postgres: Sequence[EmbeddedPostgres]
    recording: Recording = field(default_factory=Recording)

    def prepare(self) -> None:
        for server in self.postgres:
            asyncio.run(_keep_template(server))

    def record(self) -> Recording:
        """Run every test once, without a mutant. ``red`` are those that fail twice."""
        everything = [item.nodeid for item in self.session.items]
        attempt = self.attempt(self.postgres[0], None, everything)
        if attempt.recording is None:
            raise RuntimeError(f"The tests did not end: {attempt.red} {attempt.why}")
        recording = attempt.recording
        recording.red = [
            test
            for test in recording.red
            if self.attempt(self.postgres[0], None, [test]).red is not None
        ]
        return recording

    def judge(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Verdict]]:
        """One worker per server; the verdicts come as they are reached."""
        waiting = iter(range(len(jobs)))
        pipes: list[Connection] = []
        workers = []
        for server in self.postgres:
            pipe, end = _FORK.Pipe()
            pipes.append(pipe)
            worker = _FORK.Process(target=self._work, args=(end, pipes, server, jobs))
            worker.start()
            end.close()
            workers.append(worker)
            pipe.send(next(waiting, None))
        while pipes:
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                try:
                    number, verdict = ready.recv()
                except EOFError:
                    pipes.remove(ready)
                else:
                    ready.send(next(waiting, None))
                    yield jobs[number], verdict
        for worker in workers:
            worker.join()
            if worker.exitcode != 0:
                raise RuntimeError(f"A worker ended with exit code {worker.exitcode}")

    def _work(
        self,
        pipe: Connection,
        inherited: Sequence[Connection],
        server: EmbeddedPostgres,
        jobs: Sequence[Job],
    ) -> None:
        """Ends with the parent: its ends of the pipes, which the fork inherited, are closed."""
        for end in inherited:
            end.close()
        with suppress(EOFError, BrokenPipeError):  # The run was ended.
            while (number := pipe.recv()) is not None:
                pipe.send((number, self.verdict(server, jobs[number])))

    def verdict(self, server: EmbeddedPostgres, job: Job) -> Verdict:
        """A red test counts only if it is red again alone, so that a flaky test catches nothing."""
        began = time.monotonic()
        remaining, used = list(job.tests), False
        while remaining:
            attempt = self.attempt(server, job.mutant, remaining)
            used = used or attempt.used
            if attempt.red is None:
                break
            again = self.attempt(server, job.mutant, [attempt.red])
            if again.red is not None and again.used:
                seconds = time.monotonic() - began
                return Verdict(test=attempt.red, why=attempt.why, seconds=seconds)
            remaining = remaining[remaining.index(attempt.red) + 1 :]
        why = "" if used else "no test uses it"
        return Verdict(test=None, why=why, seconds=time.monotonic() - began)

    def attempt(
        self, server: EmbeddedPostgres, mutant: Mutant | None, tests: Sequence[str]
    ) -> Attempt:
        """Run tests in a fork. Raises RuntimeError if not even the first one began."""
        pipe, end = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=self._run, args=(end, server, mutant, tests))
        process.start()
        end.close()
        test, why = None, "does not end"
        try:
            while pipe.poll(self._patience(test)):
                message = pipe.recv()
                if isinstance(message, Attempt):
                    return message
                test = message
        except EOFError:
            why = "ends its process"
        finally:
            process.kill()
            process.join()
            pipe.close()
        if test is None:
            raise RuntimeError(f"No test began: {mutant}")
        return Attempt(red=test, why=why, used=True)

    def _patience(self, test: str | None) -> float:
        usual = self.recording.tests[test].seconds if test in self.recording.tests else 0.0
        return TEST_SECONDS + SLOWER * usual

    def _run(
        self,
        pipe: Connection,
        server: EmbeddedPostgres,
        mutant: Mutant | None,
        tests: Sequence[str],
    ) -> None:
        """In a fork: run the tests up to the first red one, or all without a mutant."""
        _silence()
        asyncio.run(_renew(server, () if mutant is None else mutant.ddl))
        pytest.MonkeyPatch().setattr(servers, "postgres", lambda: nullcontext(server))
        recorder, reports = Recorder(), _Reports()
        interceptor: Recorder | Translator = recorder if mutant is None else Translator(mutant)
        reports.took = recorder.took
        self.session.config.pluginmanager.register(reports)
        by_id = {item.nodeid: item for item in self.session.items}
        items = [by_id[test] for test in tests]
        with intercepted(interceptor.intercept):
            for item, following in zip(items, [*items[1:], None], strict=True):
                pipe.send(item.nodeid)
                recorder.test = item.nodeid
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                if reports.red and mutant is not None:
                    break
            self.session.config.hook.pytest_sessionfinish(session=self.session, exitstatus=0)
        recorder.recording.red = [test for test, _ in reports.red]
        red, why = reports.red[0] if reports.red else (None, "")
        used = interceptor.count > 0
        recording = recorder.recording if mutant is None else None
        pipe.send(Attempt(red=red, why=why, used=used, recording=recording))


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text: str = report.longreprtext if crash is None else crash.message
    return " ".join(text.split())


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


async def _keep_template(server: EmbeddedPostgres) -> None:
    await _execute(server, "postgres", f"ALTER DATABASE {DATABASE} RENAME TO {TEMPLATE}")


async def _renew(server: EmbeddedPostgres, ddl: Sequence[str]) -> None:
    """Drop all databases of earlier tests, and create the migrated one anew, changed by ``ddl``."""
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        for row in await connection.fetch(_LEFT, TEMPLATE):
            await connection.execute(f'DROP DATABASE "{row["datname"]}" WITH (FORCE)')
        await connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {TEMPLATE}")
    finally:
        await connection.close()
    await _execute(server, DATABASE, *ddl)


_LEFT = """
    SELECT datname FROM pg_database
    WHERE NOT datistemplate AND datname NOT IN ('postgres', $1)"""


async def _execute(server: EmbeddedPostgres, database: str, *statements: str) -> None:
    connection = await asyncpg.connect(server.url(database))
    try:
        for sql in statements:
            await connection.execute(sql)
    finally:
        await connection.close()
