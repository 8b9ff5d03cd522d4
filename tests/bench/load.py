"""Load on an API: by wrk if it is on the PATH, else by our own generator, which is also a program:
``python -m tests.bench.load < plan.json``."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import cast

import uvloop

from entrypoints.http.batch import BATCH_PATH
from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench.figures import percentile

HOST = "127.0.0.1"
_TRY_ON = {
    "model_image_url": "https://images.example.com/people/0198c0de-7000.jpg",
    "outfit_image_url": "https://images.example.com/coats/0198c0de-7001.jpg",
    "accessories": [{"type": "hat", "url": "https://images.example.com/hats/17.jpg"}],
}
BODY = json.dumps(_TRY_ON)
ITEMS = 100
"""The requests of a batch."""
_BATCH = json.dumps({"items": [_TRY_ON] * ITEMS})
ANSWER_SECONDS = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

_SCRIPT = """
local requests, turn = {}, 0

function init(arguments)
  for token in io.lines(arguments[1]) do
    wrk.headers["Authorization"] = "Bearer " .. token
    requests[#requests + 1] = wrk.format("POST", nil, nil, arguments[2])
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local wrong = summary.errors
  io.write(string.format(
    '\\nJSON {"answered": %d, "wrong": %d, "seconds": %.6f,' ..
    ' "p50_us": %d, "p90_us": %d, "p99_us": %d}\\n',
    summary.requests, wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout,
    summary.duration / 1e6,
    latency:percentile(50), latency:percentile(90), latency:percentile(99)))
end

wrk.headers["Content-Type"] = "application/json"
"""


class Void(Exception):
    """The run did not measure what it should, so its figures mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The result of a load; ``wrong`` counts requests without a 2xx response."""

    answered: int
    wrong: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Responses per second."""
        return self.answered / self.seconds


def default_generator() -> str:
    return "wrk" if shutil.which("wrk") else "own"


def put_load(
    port: int,
    tokens: Sequence[str],
    *,
    connections: int,
    seconds: float,
    folder: Path,
    tool: str,
    batches: bool = False,
) -> Load:
    """POST try-ons, or batches of them, on this many connections, one at a time on each, with the
    tokens in turn. wrk takes whole seconds. Raises ``Void`` unless every response is a 2xx."""
    run = _by_wrk if tool == "wrk" else _by_own_generator
    load = run(port, tokens, connections, seconds, folder, batches=batches)
    if load.wrong or not load.answered:
        raise Void(f"{load.answered} responses are 2xx, {load.wrong} are not, on port {port}")
    return load


def _by_wrk(
    port: int,
    tokens: Sequence[str],
    connections: int,
    seconds: float,
    folder: Path,
    *,
    batches: bool,
) -> Load:
    path, body = _path_and_body(batches=batches)
    script, list_of_tokens = folder / "post.lua", folder / "tokens"
    script.write_text(_SCRIPT)
    list_of_tokens.write_text("\n".join(tokens) + "\n")
    options = [f"-c{connections}", "-t1", f"-d{ceil(seconds)}s", "--timeout", "10s", "--latency"]
    url = f"http://{HOST}:{port}{path}"
    command = ["wrk", *options, "-s", str(script), url, "--", str(list_of_tokens), body]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds + 60
    )
    found = re.search(r"^JSON (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise Void(f"wrk failed: {done.stdout}{done.stderr}")
    counted = Load(**json.loads(found[1]))
    # wrk's count of requests includes the wrong responses.
    return Load(**asdict(counted) | {"answered": counted.answered - counted.wrong})


def _by_own_generator(
    port: int,
    tokens: Sequence[str],
    connections: int,
    seconds: float,
    _: Path,
    *,
    batches: bool,
) -> Load:
    plan = {"port": port, "tokens": tokens, "connections": connections, "seconds": seconds}
    plan["batches"] = batches
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    if done.returncode != 0:
        raise Void(f"the generator failed: {done.stderr}")
    return Load(**json.loads(done.stdout))


def _path_and_body(*, batches: bool) -> tuple[str, str]:
    return (BATCH_PATH, _BATCH) if batches else (GENERATIONS_PATH, BODY)


def raw_request(token: str, *, batches: bool = False) -> bytes:
    """The bytes of one submission, or of one batch."""
    path, body = _path_and_body(batches=batches)
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


class _Run:
    """The state shared by all connections of a load."""

    def __init__(self, tokens: Sequence[str], seconds: float, *, batches: bool) -> None:
        self.requests = cycle([raw_request(token, batches=batches) for token in tokens])
        self.began = perf_counter()
        self.seconds = seconds
        self.latencies: list[float] = []
        self.wrong = 0


class _Connection(asyncio.Protocol):
    """Sends one request after the other until the time is over."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self._began = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def send(self) -> None:
        """Send the next request, or close the connection at the end."""
        self._began = perf_counter()
        if self._began >= self._run.began + self._run.seconds:
            self._began = 0.0
            self._transport.close()
            return
        self._transport.write(next(self._run.requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._received, 0, head_end + 2)
        assert length is not None
        if len(self._received) < head_end + 4 + int(length[1]):
            return
        if self._received.startswith(b"HTTP/1.1 2"):
            self._run.latencies.append(perf_counter() - self._began)
        else:
            self._run.wrong += 1
        self._received = b""
        self.send()

    def connection_lost(self, _: Exception | None) -> None:
        self._run.wrong += self._began > 0  # The response never came.
        self.closed.set_result(None)


async def generate(
    port: int,
    tokens: Sequence[str],
    *,
    connections: int,
    seconds: float,
    batches: bool = False,
) -> Load:
    """Generate the load in this process."""
    loop = asyncio.get_running_loop()
    run = _Run(tokens, seconds, batches=batches)
    made = [
        await loop.create_connection(lambda: _Connection(run), HOST, port)
        for _ in range(connections)
    ]
    closing = [connection.closed for _, connection in made]
    run.began = perf_counter()
    for _, connection in made:
        connection.send()
    _, unanswered = await asyncio.wait(closing, timeout=seconds + ANSWER_SECONDS)
    latencies = run.latencies or [0.0]
    return Load(
        answered=len(run.latencies),
        wrong=run.wrong + len(unanswered),
        seconds=perf_counter() - run.began,
        p50_us=percentile(latencies, 50) * 1e6,
        p90_us=percentile(latencies, 90) * 1e6,
        p99_us=percentile(latencies, 99) * 1e6,
    )


def _main() -> None:
    plan = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        load = runner.run(
            generate(
                plan["port"],
                plan["tokens"],
                connections=plan["connections"],
                seconds=plan["seconds"],
                batches=plan["batches"],
            )
        )
    json.dump(asdict(load), sys.stdout)


if __name__ == "__main__":
    _main()
