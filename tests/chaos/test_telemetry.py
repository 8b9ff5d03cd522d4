"""The comparison of counters and logs with the database finds what is wrong."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from config.cells import Cells
from config.counted import Counter
from config.metrics import SESSIONS_ENDED
from tests.chaos.checks import Books, Row
from tests.chaos.deployment import EXTERNAL, Start
from tests.chaos.faults import Hit
from tests.chaos.telemetry import AFTER, BEFORE, CellFiles, Compared, compare

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COMPLETED, EXPIRED = ("completed", ""), ("failed", "EXPIRED")


class Scene:
    """One start of a worker, and what the database, its counters and its log say."""

    def __init__(self, folder: Path) -> None:
        self.start = Start(
            program="worker-1",
            name="worker-1, start 1",
            folder=folder / "start-1",
            log=folder / "worker-1-1.log",
            metrics_port=9,
        )
        self.start.folder.mkdir()
        self.start.log.touch()
        cells = Cells()
        cells.share(self.start.folder)
        metric = SESSIONS_ENDED.metric
        self.counter = Counter(metric.name, metric.help, metric.labels, cells=cells)
        self.files = CellFiles(folder)
        self.hits: list[Hit] = []
        self.sessions: dict[UUID, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []

    def ended(self, end: tuple[str, str], *, writer: str | None = None) -> UUID:
        """A session that the start has ended, as the database says."""
        session_id = uuid4()
        self.sessions[session_id] = {
            "id": session_id,
            "status": end[0],
            "error_code": end[1] or None,
            "request_id": f"request-{session_id}",
        }
        self.history.append(
            {
                "session_id": session_id,
                "is_now": end[0],
                "written_by": writer or self.start.name,
                "written_at": NOW,
            }
        )
        return session_id

    def counted(self, end: tuple[str, str]) -> None:
        self.counter.inc(*end)

    def logged(self, session_id: UUID, **fields: object) -> None:
        line = {"event": "task_done", "session_id": str(session_id), **fields}
        with self.start.log.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def hit(self, target: str, at: datetime) -> None:
        self.hits.append(Hit(target=target, began=at, over=at))

    def compared(self) -> Compared:
        self.files.look()
        ledger = [{"kind": "refund"} for one in self.sessions.values() if one["status"] == "failed"]
        books = Books(
            accounts={},
            sessions=cast("dict[UUID, Row]", self.sessions),
            ledger=cast("list[Row]", ledger),
            history=cast("list[Row]", self.history),
        )
        return compare(books, [self.start], self.hits, self.files)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_agreement_is_no_problem(scene: Scene) -> None:
    """An external consumer's ends are counted apart."""
    scene.logged(scene.ended(COMPLETED), outcome="completed")
    scene.counted(COMPLETED)
    scene.logged(scene.ended(EXPIRED), outcome="failed", code="EXPIRED")
    scene.counted(EXPIRED)
    scene.ended(COMPLETED, writer=EXTERNAL)

    compared = scene.compared()

    assert compared.problems == []
    assert (compared.ended.total(), compared.counted.total(), compared.logged) == (2, 2, 2)
    assert (compared.externally, compared.refunds) == (1, 1)


def test_end_that_is_counted_twice_is_a_problem(scene: Scene) -> None:
    scene.logged(scene.ended(COMPLETED), outcome="completed")
    scene.counted(COMPLETED)
    scene.counted(COMPLETED)
    scene.hit("postgres", NOW)

    (problem,) = scene.compared().problems

    assert "that it did not end" in problem


def test_end_that_is_logged_twice_is_a_problem(scene: Scene) -> None:
    session_id = scene.ended(COMPLETED)
    scene.counted(COMPLETED)
    scene.logged(session_id, outcome="completed")
    scene.logged(session_id, outcome="completed")
    scene.hit("postgres", NOW)

    (problem,) = scene.compared().problems

    assert "logged 2 ends" in problem


def test_wrong_code_is_a_problem(scene: Scene) -> None:
    """Of the counter, and of the line."""
    session_id = scene.ended(EXPIRED)
    scene.counted(("failed", "GENERATION_FAILED"))
    scene.logged(session_id, outcome="failed", code="GENERATION_FAILED")
    scene.hit("postgres", NOW)

    line, counter = scene.compared().problems

    assert "which is ('failed', 'EXPIRED')" in line
    assert "counted {('failed', 'GENERATION_FAILED'): 1} that it did not end" in counter


@pytest.mark.parametrize("target", ["worker-1", "postgres", "postgres link"])
@pytest.mark.parametrize(
    "at", [NOW + BEFORE, NOW - AFTER], ids=["soon before the fault", "soon after the fault"]
)
def test_fault_may_cost_an_end(scene: Scene, target: str, at: datetime) -> None:
    """It is shown as missing."""
    scene.ended(COMPLETED)
    scene.hit(target, at)

    compared = scene.compared()

    assert compared.problems == []
    assert "counters have 0, missing: 1 of at most 1; logs have 0, missing: 1" in str(compared)


@pytest.mark.parametrize(
    ("target", "at"),
    [
        ("worker-2", NOW),
        ("redis", NOW),
        ("worker-1", NOW + BEFORE + timedelta(seconds=1)),
        ("worker-1", NOW - AFTER - timedelta(seconds=1)),
    ],
)
def test_end_without_a_fault_must_not_be_missing(scene: Scene, target: str, at: datetime) -> None:
    scene.ended(COMPLETED)
    scene.hit(target, at)

    log, counter = sorted(scene.compared().problems, reverse=True)

    assert "did not log 1; 0 had a fault" in log
    assert "did not count" in counter


def test_counts_outlive_a_deleted_file(scene: Scene) -> None:
    """As of an API that stops and deletes the folder in which its processes counted."""
    scene.files.look()
    for path in scene.start.folder.iterdir():
        path.unlink()
    scene.logged(scene.ended(COMPLETED), outcome="completed")
    scene.counted(COMPLETED)

    assert scene.compared().counted == {COMPLETED: 1}
