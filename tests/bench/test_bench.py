"""The benchmark itself: its arithmetic, its checks, and one small run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from xml.etree import ElementTree as ET

import pytest

from tests.bench import webhooks
from tests.bench.__main__ import main
from tests.bench.figures import Round, Row, at_least, at_most, percentile, slope
from tests.bench.load import BODY, HOST, Void, generate, put_load
from tests.bench.report import chart
from tests.bench.slots import ROWS, SLOTS, WARM_UP, Slots
from tests.bench.stage import Stage
from tests.support import servers

ONE_ROUND: Round = {"ours": {"rate": 90.0}, "floor": {"rate": 100.0}}


def a_row(**changes: object) -> Row:
    values: dict[str, object] = {
        "name": "row",
        "title": "ours / <floor>",
        "aim": at_least(0.9),
        "slots": ("ours", "floor"),
        "of": lambda round_: round_["ours"]["rate"] / round_["floor"]["rate"],
    }
    return Row(**values | changes)  # type: ignore[arg-type]


def rounds_of(*rates: float) -> list[Round]:
    return [{"ours": {"rate": rate}, "floor": {"rate": 100.0}} for rate in rates]


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 50), (50.5, 51), (99, 99), (100, 100), (0, 1)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_slope_is_the_least_squares_fit() -> None:
    """Noise on both sides of a line cancels out."""
    assert slope([(0, 1), (1, 2), (2, 5), (3, 6)]) == pytest.approx(1.8)
    assert slope([(0, 5), (1, 5), (2, 5)]) == 0


@pytest.mark.parametrize(
    ("aim", "value", "is_met", "reached"),
    [
        (at_least(0.9), 0.9, True, 1.0),
        (at_least(0.9), 0.45, False, 0.5),
        (at_most(5), 5, True, 1.0),
        (at_most(5), 10, False, 0.5),
        (at_most(64), -3, True, float("inf")),
    ],
)
def test_aim_is_met_at_its_bound(
    aim: object, value: float, reached: float, *, is_met: bool
) -> None:
    """A missed aim is reached by a fraction below one."""
    finding = a_row(aim=aim, of=lambda _: value).judge([ONE_ROUND])

    assert finding.is_met is is_met
    assert finding.aim.fraction_reached_by(value) == pytest.approx(reached)


def test_finding_is_the_median_of_the_rounds() -> None:
    """Each round is compared with its own baseline, and one outlier changes nothing."""
    finding = a_row().judge(rounds_of(91.0, 5.0, 93.0))

    assert finding.value == pytest.approx(0.91)
    assert list(finding.values) == pytest.approx([0.91, 0.05, 0.93])
    assert finding.is_met


def test_p99_of_pick_ups_is_pooled() -> None:
    """It is that of all rounds together, not the median of the rounds' p99s."""
    row = next(row for row in ROWS if row.name == "pick_up_p99")
    rounds: list[Round] = [
        {
            "pick_up": {"all_us": [10.0] * 99 + [worst], "p99_us": 10.0},
            "wake_up": {"all_us": [2.0] * 100, "p99_us": 2.0},
        }
        for worst in (1_000.0, 10.0)
    ]

    assert row.judge(rounds).value == 5.0
    rounds[1]["pick_up"]["all_us"][:5] = [1_000.0] * 5
    assert row.judge(rounds).value == 500.0


def test_rows_use_existing_slots() -> None:
    """And their names are unique."""
    assert set(WARM_UP) <= set(SLOTS)
    assert all(callable(getattr(Slots, slot)) for slot in SLOTS)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_chart_shows_every_row() -> None:
    """It is a complete SVG, with escaped titles."""
    findings = [a_row().judge(rounds_of(*rates)) for rates in ((95.0, 99.0), (10.0,))]

    picture = ET.fromstring(chart(findings))  # noqa: S314 - our own

    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    colours = [element.get("fill") for element in picture.iter() if element.tag.endswith("rect")]
    assert texts.count("ours / <floor>") == 2
    assert len(set(colours)) == 3  # The background, a met aim and a missed aim.


@asynccontextmanager
async def server_with(status: str) -> AsyncIterator[int]:
    """A server that answers every request with this status, in two pieces; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while await reader.read(len(BODY) * 4):
                writer.write(f"HTTP/1.1 {status}\r\nContent-Le".encode())
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(b"ngth: 2\r\n\r\n{}")

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.anyio
async def test_generator_counts_responses_by_status() -> None:
    """A response without a 2xx status is wrong."""
    async with server_with("202 Accepted") as port:
        good = await generate(port, ["one", "two"], connections=3, seconds=0.1)
    async with server_with("503 Service Unavailable") as port:
        bad = await generate(port, ["one", "two"], connections=3, seconds=0.1)

    assert good.answered > 10
    assert good.wrong == 0
    assert good.rate == pytest.approx(good.answered / good.seconds)
    assert 0 < good.p50_us <= good.p90_us <= good.p99_us < 1e6
    assert bad.answered == 0
    assert bad.wrong > 10


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.processes
def test_wrong_responses_and_lost_sessions_are_void() -> None:
    """A rate of errors, of sessions that were not stored, or of a no-op that stores sessions is not
    a figure."""
    with servers.folder() as folder:
        stage = Stage(folder, callers="stores")
        with closing(stage):
            stage.open()
            port = stage.port_of("no_op")
            with pytest.raises(Void, match="0 responses are 2xx"):
                put_load(port, ["wk_1"], connections=1, seconds=0.1, folder=folder, tool="own")
            put_load(port, stage.hot, connections=1, seconds=0.1, folder=folder, tool="own")
            stage.check_nothing_stored()
            stage.push(stage.fill(3))

            with pytest.raises(Void, match="3 sessions, 3 debits, 3 tasks"):
                stage.check_nothing_stored()
            stage.check_stored(3)
            with pytest.raises(Void, match="4 answers, 3 sessions"):
                stage.check_stored(4)
            stage.push([b"one task too many"])
            with pytest.raises(Void, match="3 debits, 4 tasks"):
                stage.check_stored(3)


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.processes
def test_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    """It measures on durable servers, writes a table, JSON and a chart, and leaves no data."""
    with servers.folder() as folder:
        data, document, picture = folder / "data", folder / "bench.json", folder / "bench.svg"
        options = ["--only", "submit", "hot_plain", "--rounds", "1", "--seconds", "0.5"]
        options += ["--generator", "own", "--data-dir", str(data)]
        exit_code = main([*options, "--json", str(document), "--chart", str(picture)])

        written = json.loads(document.read_text())
        titles = picture.read_text()
        left = list(data.iterdir())

    assert exit_code == 0
    assert written["facts"]["PostgreSQL fsync"] == "on"
    assert [row["name"] for row in written["findings"]] == ["submit", "hot_plain"]
    assert all(row["value"] > 0 for row in written["findings"])
    (round_,) = written["rounds"]
    assert list(round_) == ["no_op", "submit", "submit_hot", "transaction_hot"]
    assert all(sample["rate"] > 0 for sample in round_.values())
    assert "submit / no-op POST, rate" in titles
    assert "submit / no-op POST, rate" in capsys.readouterr().out
    assert left == []


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.processes
def test_small_run_of_webhooks() -> None:
    """It has all its rows, and no message is lost, although some endpoints fall silent."""
    sizes = webhooks.Sizes(backlog=200, per_second=50, calm_seconds=1, silent_seconds=1, lone=2)
    with servers.folder() as folder:
        stage = Stage(folder, callers="stores")
        with closing(stage):
            stage.open()
            findings, rounds = webhooks.run(stage, sizes)

    values = {finding.name: finding.value for finding in findings}
    assert values.pop("webhooks_lost") == 0
    assert sorted(values) == [f"webhooks_{name}" for name in ("cpu", "lone", "rate", "silent_p99")]
    assert all(value > 0 for value in values.values())
    assert [rounds[0][name]["deliveries"] for name in ("calm", "silent", "lone")] == [50, 25, 2]
