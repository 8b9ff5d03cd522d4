"""What our processes counted and logged of the sessions that they ended, beside the database.

Counters are read from the files in which the processes count, which outlive a kill: only an end
whose commit no process heard of is missing. A killed process also loses the log lines of its last
FLUSH_SECONDS. So an end may be missing if a fault hit its program or the database at that time.
None may be there twice.
"""

import asyncio
import json
import mmap
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from config.cells import SIZE, totals_of
from config.metrics import SESSIONS_ENDED
from entrypoints.worker.process import FLUSH_SECONDS
from tests.chaos.checks import FINAL, Books, Row
from tests.chaos.deployment import EXTERNAL, Start
from tests.chaos.faults import Hit

LOOK_SECONDS = 0.1
"""No process lives for less."""
BEFORE = timedelta(seconds=FLUSH_SECONDS + 1)
"""A kill takes the lines of this time before it; a second for a machine that is busy."""
AFTER = timedelta(seconds=1)
"""A statement that a fault held up takes effect within this time after the fault."""
OF_RECOVERY = ("exhausted", "expired", "never_pushed")
"""The rules by which recovery fails sessions."""
DATABASE = {"postgres", "postgres link"}

Ends: TypeAlias = Counter[tuple[str, str]]
"""A number of sessions by status and code."""


class CellFiles:
    """The memory of all processes that count, also of those whose file is deleted meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[Path, mmap.mmap] = {}

    async def run(self) -> None:
        """Look for files of new processes until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        for path in self._folder.glob("start-*/**/*.cells"):
            if path not in self._found:
                with suppress(FileNotFoundError), path.open("rb") as file:
                    self._found[path] = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)

    def counted(self, start: Start) -> Ends:
        """The ends that all processes of a start have counted."""
        ends: Ends = Counter()
        for path, memory in self._found.items():
            if path.is_relative_to(start.folder):
                ends += _ends_of(totals_of(memory))
        return ends


def _ends_of(totals: dict[tuple[str, tuple[str, ...]], list[float]]) -> Ends:
    found: Ends = Counter()
    for (name, labels), (value, *_) in totals.items():
        if name == SESSIONS_ENDED.metric.name and value:
            found[labels[0], labels[1]] += int(value)
    return found


@dataclass(slots=True)
class Compared:
    """Ends of sessions: in the database, and what is missing elsewhere."""

    ended: Ends = field(default_factory=Counter)
    externally: int = 0
    counted: Ends = field(default_factory=Counter)
    not_counted: int = 0
    logged: int = 0
    starts: int = 0
    at_risk: int = 0
    """Ends at the time of a fault of their program or of the database."""
    at_risk_of_kills: int = 0
    refunds: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = self.ended.total()
        return (
            f"telemetry of {self.starts} starts: {total} sessions ended by our programs,"
            f" {self.externally} by the external consumer; {self.refunds} refunds;"
            f" counters have {self.counted.total()},"
            f" missing: {self.not_counted} of at most {self.at_risk};"
            f" logs have {self.logged}, missing: {total - self.logged} of at most {self.at_risk}"
            f" ({self.at_risk_of_kills} within {BEFORE.seconds} s of a fault of their program)"
        )


def compare(books: Books, starts: list[Start], hits: list[Hit], files: CellFiles) -> Compared:
    """Each start's counters and log lines beside the sessions that it ended."""
    compared = Compared(starts=len(starts))
    compared.refunds = sum(entry["kind"] == "refund" for entry in books.ledger)
    by_writer: defaultdict[str, list[Row]] = defaultdict(list)
    for change in books.history:
        if change["is_now"] in FINAL:
            by_writer[change["written_by"]].append(change)
    compared.externally = len(by_writer.pop(EXTERNAL, []))
    for start in starts:
        _compare_start(
            compared, books, start, by_writer.pop(start.name, []), hits=hits, files=files
        )
    compared.problems += [f"{name} ended sessions, and is no program of ours" for name in by_writer]
    failed = sum(row["status"] == "failed" for row in books.sessions.values())
    if compared.refunds != failed:
        compared.problems.append(f"{failed} sessions failed, {compared.refunds} were refunded")
    return compared


def _compare_start(
    compared: Compared,
    books: Books,
    start: Start,
    changes: list[Row],
    *,
    hits: list[Hit],
    files: CellFiles,
) -> None:
    ended = Counter(_end_of(books.sessions[change["session_id"]]) for change in changes)
    risky = [change for change in changes if _is_at_risk(change, start, hits, DATABASE)]
    at_risk = Counter(_end_of(books.sessions[change["session_id"]]) for change in risky)
    counted = files.counted(start)
    logged = _logged(start, books, changes)
    compared.ended += ended
    compared.counted += counted
    compared.not_counted += (ended - counted).total()
    compared.logged += logged.number
    compared.at_risk += len(risky)
    compared.at_risk_of_kills += sum(_is_at_risk(one, start, hits, set()) for one in changes)
    compared.problems += [f"{start.name}: {problem}" for problem in logged.problems]
    if twice := counted - ended:
        compared.problems.append(f"{start.name} counted {dict(twice)} that it did not end")
    if missing := ended - counted - at_risk:
        compared.problems.append(f"{start.name} did not count {dict(missing)}, without a fault")
    if len(changes) - logged.number > len(risky):
        number = len(changes) - logged.number
        compared.problems.append(f"{start.name} did not log {number}; {len(risky)} had a fault")


def _end_of(session: Row) -> tuple[str, str]:
    return session["status"], session["error_code"] or ""


def _is_at_risk(change: Row, start: Start, hits: list[Hit], shared: set[str]) -> bool:
    """Whether a fault hit the start's program, or one of ``shared``, when it ended the session."""
    at: datetime = change["written_at"]
    return any(
        hit.began - BEFORE <= at <= hit.over + AFTER
        for hit in hits
        if hit.target == start.program or hit.target in shared
    )


@dataclass(slots=True)
class _Logged:
    """The ends that the log of a start tells."""

    number: int = 0
    problems: list[str] = field(default_factory=list)


def _logged(start: Start, books: Books, changes: list[Row]) -> _Logged:
    """Lines name their session, those of recovery tell numbers."""
    own = {str(change["session_id"]) for change in changes}
    told: Counter[str] = Counter()
    requests: set[str] = set()
    found = _Logged()
    of_recovery = 0
    for line in lines_of(start.log):
        match line:
            case {"event": "task_done", "outcome": "completed" | "failed" | "cancelled"}:
                told[line["session_id"]] += 1
                found.problems += _wrong_code(line, books)
            case {"event": "request", "method": "POST", "status": 200, "path": str(path)} if (
                path.endswith("/cancel")
            ):
                told[path.split("/")[-2]] += 1
            case {"event": "request", "method": "POST", "request_id": str(request_id)}:
                requests.add(request_id)
            case {"event": "recovered"}:
                of_recovery += sum(line[rule] for rule in OF_RECOVERY)
            case {"event": "task_buried"}:
                of_recovery += line["session_failed"]
    undone = {
        session_id
        for session_id in own - told.keys()
        if start.program == "api" and _was_told_of(books, session_id, requests)
    }
    found.problems += [f"logged {told[one]} ends of {one}" for one in told if told[one] > 1]
    found.problems += [f"logged the end of {one}, not its own" for one in told.keys() - own]
    rest = len(own) - len(told.keys() & own) - len(undone)
    if of_recovery > rest:
        found.problems.append(f"logged that recovery ended {of_recovery}; it ended {rest}")
    found.number = len(told.keys() & own) + len(undone) + of_recovery
    return found


def _was_told_of(books: Books, session_id: str, requests: set[str]) -> bool:
    """Whether the line of the request that created the session, and undid it, was written."""
    return any(
        str(row["id"]) == session_id and row["request_id"] in requests
        for row in books.sessions.values()
    )


def _wrong_code(line: dict[str, Any], books: Books) -> Iterator[str]:
    for session in books.sessions.values():
        if str(session["id"]) == line["session_id"]:
            told = line["outcome"].replace("cancelled", "failed"), line.get("code", "")
            if told != _end_of(session):
                yield f"logged {told} of {session['id']}, which is {_end_of(session)}"


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log. A kill may cut the last line."""
    with path.open(errors="replace") as lines:
        for text in lines:
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


async def of_page(url: str) -> Ends:
    """The ends on a page of metrics."""
    async with ClientSession() as http, http.get(url) as response:
        page = await response.text()
    found: Ends = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == SESSIONS_ENDED.metric.name and sample.value:
                found[sample.labels["status"], sample.labels["code"]] += int(sample.value)
    return found
