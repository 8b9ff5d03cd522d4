"""The bench itself: its arithmetic, what it refuses to count, and one small run of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from xml.etree import ElementTree as ET

import pytest

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
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    """The nearest rank: so many per cent are not above it."""
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_a_slope_is_that_of_the_line_through_all() -> None:
    """Noise on both sides of a line leaves it where it is."""
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
def test_an_aim_is_met_or_not(aim: object, value: float, reached: float, *, is_met: bool) -> None:
    """The bound itself meets it; what is missed reached less than one of it."""
    finding = a_row(aim=aim, of=lambda _: value).judge([ONE_ROUND])

    assert finding.is_met is is_met
    assert finding.aim.reached_by(value) == pytest.approx(reached)


def test_the_median_of_the_ratios_of_rounds_counts() -> None:
    """Each round is compared with its own floor, and one that went wrong changes nothing."""
    finding = a_row().judge(rounds_of(91.0, 5.0, 93.0))

    assert finding.value == pytest.approx(0.91)
    assert list(finding.values) == pytest.approx([0.91, 0.05, 0.93])
    assert finding.is_met


def test_what_one_round_has_too_little_of_is_pooled() -> None:
    """The p99 of pick-ups is that of all of them, not the median of the rounds' worst."""
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


def test_every_row_is_made_of_slots_that_there_are() -> None:
    """And a chart can be looked at."""
    assert set(WARM_UP) <= set(SLOTS)
    assert all(callable(getattr(Slots, slot)) for slot in SLOTS)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_chart_shows_every_row() -> None:
    """As an SVG that stands alone, with the words of a title as they are."""
    findings = [a_row().judge(rounds_of(*rates)) for rates in ((95.0, 99.0), (10.0,))]

    picture = ET.fromstring(chart(findings))  # noqa: S314 - our own

    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    colours = [element.get("fill") for element in picture.iter() if element.tag.endswith("rect")]
    assert texts.count("ours / <floor>") == 2
    assert len(set(colours)) == 3  # the ground, what is met and what is missed


@asynccontextmanager
async def answering(status: str) -> AsyncIterator[int]:
    """A server that answers every request with that, in two pieces; gives its port."""

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
async def test_answers_are_counted() -> None:
    """By their status; what is no 2xx is wrong."""
    async with answering("202 Accepted") as port:
        good = await generate(port, ["one", "two"], connections=3, seconds=0.1)
    async with answering("503 Service Unavailable") as port:
        bad = await generate(port, ["one", "two"], connections=3, seconds=0.1)

    assert good.answered > 10
    assert good.wrong == 0
    assert good.rate == pytest.approx(good.answered / good.seconds)
    assert 0 < good.p50_us <= good.p90_us <= good.p99_us < 1e6
    assert bad.answered == 0
    assert bad.wrong > 10


@pytest.mark.xdist_group("system")
def test_what_is_refused_is_void() -> None:
    """A rate of errors, or of sessions that nobody kept, is no figure."""
    with servers.folder() as folder:
        stage = Stage(folder, callers="stores")
        with closing(stage):
            stage.open()
            port = stage.port_of("no_op")
            with pytest.raises(Void, match="0 right ones"):
                put_load(port, ["wk_1"], connections=1, seconds=0.1, folder=folder, tool="own")
            stage.push(stage.fill(3))

            stage.check_kept(3)
            with pytest.raises(Void, match="4 answers, 3 sessions"):
                stage.check_kept(4)
            stage.push([b"one task too many"])
            with pytest.raises(Void, match="3 debits, 4 tasks"):
                stage.check_kept(3)


@pytest.mark.xdist_group("system")
def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    """It measures on durable servers, and leaves a table, JSON, a chart and nothing else."""
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
