"""What processes count: the cells, and the sum over the processes of a host."""

import multiprocessing
import os
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from config.cells import CELLS, Cells, SharedCells, shared_folder
from config.counted import Counter, Histogram, of_metric


def counter(cells: Cells, name: str = "orders_total") -> Counter:
    return Counter(name, "Orders", ("kind",), cells=cells)


def count_in(folder: Path, amounts: Connection, counted: Connection) -> None:
    """A process that counts what it is sent, until it is killed."""
    cells = Cells()
    orders = counter(cells)
    orders.inc("new")
    cells.share(folder)
    while True:
        orders.inc("new", by=amounts.recv())
        counted.send(None)


class Child:
    """A process that counts."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        taken, self._amounts = context.Pipe(duplex=False)
        self._counted, told = context.Pipe(duplex=False)
        self.process = context.Process(target=count_in, args=(folder, taken, told))
        self.process.start()

    def count(self, amount: int) -> None:
        self._amounts.send(amount)
        assert self._counted.poll(30)
        self._counted.recv()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(30)


def test_counter_is_kept_for_each_combination_of_labels() -> None:
    cells = Cells()
    orders = counter(cells)

    orders.inc("new")
    orders.inc("new", by=2)
    orders.inc("old")

    assert of_metric(cells.totals(), orders.metric) == {("new",): [3.0], ("old",): [1.0]}
    assert (orders.value("new"), orders.value("other")) == (3.0, 0.0)


def test_known_labels_are_shown_before_anything_is_counted() -> None:
    cells = Cells()
    orders = Counter("orders_total", "Orders", ("kind",), known=[("new",)], cells=cells)

    orders.show_known()

    assert cells.totals() == {("orders_total", ("new",)): [0.0]}


def test_histogram_counts_a_value_in_the_first_bucket_that_has_it() -> None:
    """Up to and including its bound, and above all of them in the last one; with the sum."""
    cells = Cells()
    waits = Histogram("waits", "Waits", bounds=(1.0, 5.0), cells=cells)

    for value in (0.5, 1.0, 3.0, 9.0):
        waits.observe(value)

    assert cells.totals() == {("waits", ()): [2.0, 1.0, 1.0, 13.5]}


def test_what_was_counted_before_sharing_is_shared(tmp_path: Path) -> None:
    cells = Cells()
    orders = counter(cells)
    orders.inc("new")

    cells.share(tmp_path)
    orders.inc("new")
    orders.inc("old")

    expected = {("orders_total", ("new",)): [2.0], ("orders_total", ("old",)): [1.0]}
    assert SharedCells(tmp_path).totals() == expected
    assert cells.totals() == expected


def test_series_without_a_place_take_none_of_the_others() -> None:
    """Labels that are not from a small set cost no memory, and disturb no other series."""
    cells = Cells()
    orders = counter(cells)
    orders.inc("new", by=7)

    with capture_logs() as logs:
        for number in range(CELLS):
            orders.inc(f"kind {number}")

    assert orders.value("new") == 7.0
    assert logs[0]["event"] == "metrics_full"
    assert len(cells.totals()) < CELLS


def test_wide_series_end_where_the_names_begin() -> None:
    """Space that is used up is no reason to write over other numbers."""
    cells = Cells()
    labels = [(str(number),) for number in range(CELLS // 1_000 + 5)]

    for one in labels:
        place = cells.add("wide", one, width=1_000 if one != labels[-1] else 100)
        for cell in range(place, place + 100):
            cells.values[cell] = 1.0

    shown = cells.totals()
    assert 0 < len(shown) < len(labels)
    assert {len(values) for values in shown.values()} <= {1_000, 100}
    assert all(sum(values) == 100 for values in shown.values())


@pytest.mark.processes
def test_no_count_is_lost_when_a_process_is_killed(tmp_path: Path) -> None:
    """Totals never go down: neither when a process dies, nor when its file is gone."""
    shared = SharedCells(tmp_path)
    first, second = Child(tmp_path), Child(tmp_path)
    first.count(10)
    second.count(100)
    before = shared.totals()

    first.kill()
    seen = [shared.totals() for _ in range(3)]
    pids = shared.process_ids()
    second.count(1_000)
    after = shared.totals()
    second.kill()

    assert before == {("orders_total", ("new",)): [112.0]}
    assert seen == [before] * 3
    assert pids == [second.process.pid]
    assert after == {("orders_total", ("new",)): [1_112.0]}


def test_folder_of_a_killed_process_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is in use stays, and so does what has no lock: it may be another program's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "wearon-metrics-left"
    left.mkdir()
    (left / "lock").touch()
    other = tmp_path / "wearon-metrics-other"
    other.mkdir()

    with shared_folder() as first, shared_folder() as second:
        during = {*tmp_path.iterdir()}

    assert during == {first, second, other}
    assert {*tmp_path.iterdir()} == {other}
