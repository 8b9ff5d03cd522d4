"""Webhooks: how many a process delivers, how soon, and whether silent endpoints delay the others.

The dispatcher is that of a real worker. All endpoints are in this process, each at an address of
its own, so that each has its own connections.
"""

import asyncio
import re
import resource
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random
from uuid import UUID

import asyncpg

from adapters.webhooks.secrets import new_webhook_secret
from tests.bench.figures import Aim, Finding, Round, Sample, at_least, at_most, percentile
from tests.bench.load import Void
from tests.bench.stage import ACCOUNTS, Stage, cpu_seconds_of
from tests.system.deployment import free_port

SILENT = 100
"""Endpoints that accept connections and never answer."""
LEAD_SECONDS = 1.0
"""Before the delays count: what follows a quiet time waits for a poll of up to a second."""
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_SESSION_ID = re.compile(rb'"session_id":"([0-9a-f-]{36})"')
PATIENCE_SECONDS = 30.0

ADD_ENDPOINTS = """
    INSERT INTO webhook_endpoints (id, channel, owner_id, url, events, description, secret)
    SELECT gen_random_uuid(), 'b2b', owner_id, url, '{generation.completed}', '', $3
    FROM unnest($1::text[], $2::text[]) AS endpoint (owner_id, url)"""
# As if the endpoints had been there before the sessions.
MARK = "UPDATE generation_sessions SET has_webhooks = true"
TIDY = "VACUUM ANALYZE generation_sessions, webhook_endpoints"
SESSIONS = "SELECT id, owner_id FROM generation_sessions ORDER BY id"
COMPLETE = """
    UPDATE generation_sessions SET status = 'completed', generated_image_url = 'https://a.example/b'
    WHERE id = ANY ($1::uuid[])"""
# They wait for no lock, so that they and the dispatcher never wait for each other.
END_PAUSES = """
    UPDATE webhook_endpoints SET failures = 0, paused_until = NULL WHERE id = ANY (ARRAY (
        SELECT id FROM webhook_endpoints WHERE failures > 0 FOR NO KEY UPDATE SKIP LOCKED))"""
END_WAITS = """
    UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id = ANY (ARRAY (
        SELECT id FROM webhook_deliveries WHERE next_attempt_at > now()
        FOR NO KEY UPDATE SKIP LOCKED))"""
PENDING = "SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL"
HAPPENED = "SELECT created_at FROM webhook_deliveries WHERE session_id = $1"
UNRECORDED = """
    SELECT count(*) FROM generation_sessions AS s WHERE status = 'completed'
        AND NOT EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.session_id = s.id)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """``backlog`` deliveries measure the rate. Events end at ``per_second`` for ``calm_seconds``,
    then for ``silent_seconds`` with silent endpoints, then as at first. ``lone`` sessions end at a
    worker that is otherwise idle."""

    backlog: int = 8_000
    per_second: int = 100
    calm_seconds: int = 6
    silent_seconds: int = 12
    lone: int = 12

    @property
    def sessions(self) -> int:
        """Enough at each store, of all that are spread over them."""
        events = self.per_second * (2 * self.calm_seconds + self.silent_seconds + 3 * LEAD_SECONDS)
        return self.lone + ACCOUNTS * (
            1 + int(events) // 2 // SILENT + self.backlog // (ACCOUNTS // 2)
        )


FULL = Sizes()
SAMPLES = ("backlog", "calm", "silent", "lone", "all")


class Endpoints:
    """When the first message about each session arrived, on the clock of ``time.time``."""

    def __init__(self) -> None:
        self.arrived: dict[UUID, float] = {}
        self.silent: frozenset[str] = frozenset()
        self.held: set[asyncio.Transport] = set()

    def fall_silent(self, addresses: Collection[str]) -> None:
        """Now only these do not answer. What waited for an answer breaks."""
        self.silent = frozenset(addresses)
        for transport in [*self.held]:
            transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._rest = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        if self._address in self._endpoints.silent:
            self._endpoints.held.add(self._transport)
            return
        self._began = self._began or time.time()
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        if (session_id := _SESSION_ID.search(body)) is not None:
            self._endpoints.arrived.setdefault(UUID(session_id[1].decode()), self._began)
        self._rest, self._began = b"", 0.0
        self._transport.write(RESPONSE)

    def connection_lost(self, _: Exception | None) -> None:
        self._endpoints.held.discard(self._transport)


def run(stage: Stage, sizes: Sizes = FULL) -> tuple[list[Finding], Sequence[Round]]:
    """Measure on one endpoint of each store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    round_ = asyncio.run(_measure(stage, sizes, stage.fill(sizes.sessions)))
    rate, calm, silent, lone, all_ = map(round_.__getitem__, SAMPLES)
    aims: list[tuple[str, str, Aim, float]] = [
        ("rate", "webhooks of a process, /s", at_least(1_000), rate["per_second"]),
        ("cpu", "CPU of a webhook in a backlog, us", at_most(1_000), rate["cpu_us"]),
        (
            "silent_p99",
            f"end to healthy endpoint, p99, with / without {SILENT} silent of {ACCOUNTS}",
            at_most(1.25),
            silent["p99_ms"] / calm["p99_ms"],
        ),
        ("lone", "idle: end to endpoint, p50, ms", at_most(20), lone["p50_ms"]),
        ("lost", "webhooks lost", at_most(0), all_["lost"]),
    ]
    findings = [
        Finding(name=f"webhooks_{name}", title=title, aim=aim, value=value, values=[value])
        for name, title, aim, value in aims
    ]
    return findings, [round_]


@asynccontextmanager
async def _opened() -> AsyncIterator[tuple[Endpoints, int]]:
    endpoints, port = Endpoints(), free_port()
    hosts = [_address(number) for number in range(1, ACCOUNTS + 1)]
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: _Connection(endpoints), hosts, port):
        try:
            yield endpoints, port
        finally:
            endpoints.fall_silent(())


def _address(number: int) -> str:
    return f"127.1.{number // 250}.{1 + number % 250}"


async def _measure(stage: Stage, sizes: Sizes, tasks: Sequence[bytes]) -> Round:
    connection = await asyncpg.connect(stage.postgres.url())
    try:
        async with _opened() as (endpoints, port):
            hooks = _Hooks(connection, endpoints, sizes)
            await hooks.prepare(port)
            slots = stage.settings.worker_concurrency
            # Recovery would queue the sessions that wait here for their ends.
            with stage.worker(concurrency=slots, WEARON_REQUEUE_AFTER_SECONDS="86400") as worker:
                backlog = await hooks.backlog(worker)
                before = await hooks.steady(sizes.calm_seconds)
                silent = await hooks.with_silent_ones(sizes.silent_seconds)
                after = await hooks.steady(sizes.calm_seconds)
                lone = await hooks.lone(stage, tasks[: sizes.lone])
            lost = await hooks.lost()
    finally:
        await connection.close()
    return {
        "backlog": backlog,
        "calm": _summary(before + after),
        "silent": _summary(silent),
        "lone": _summary(lone),
        "all": {"lost": lost},
    }


class _Hooks:
    """One endpoint of each store, and their sessions. ``committed`` has the time at which each was
    completed, without those that the worker completes."""

    def __init__(self, connection: asyncpg.Connection, endpoints: Endpoints, sizes: Sizes) -> None:
        self._connection = connection
        self._endpoints = endpoints
        self._sizes = sizes
        self._committed: dict[UUID, float] = {}
        self._at_silent: Iterator[UUID] = iter(())
        self._at_healthy: Iterator[UUID] = iter(())

    async def prepare(self, port: int) -> None:
        owners = [str(number) for number in range(1, ACCOUNTS + 1)]
        urls = [f"http://{_address(int(owner))}:{port}/hooks" for owner in owners]
        await self._connection.execute(ADD_ENDPOINTS, owners, urls, new_webhook_secret())
        await self._connection.execute(MARK)
        rows = await self._connection.fetch(SESSIONS)
        usable = [row for row in rows if row["id"].int > self._sizes.lone]
        self._at_silent = iter([row["id"] for row in usable if int(row["owner_id"]) <= SILENT])
        self._at_healthy = iter([row["id"] for row in usable if int(row["owner_id"]) > SILENT])
        await self._connection.execute(TIDY)

    async def backlog(self, worker: int) -> Sample:
        """The rate from the first tenth on, without the worker's start."""
        count = self._sizes.backlog
        ids = [*islice(self._at_healthy, count)]
        await self._complete(ids)
        await self._until(lambda: len(self._endpoints.arrived) >= count // 10)
        first, began = len(self._endpoints.arrived), time.monotonic()
        cpu = cpu_seconds_of(worker)
        await self._until_arrived(ids)
        seconds, used = time.monotonic() - began, cpu_seconds_of(worker) - cpu
        rest = count - first
        return {"per_second": rest / seconds, "cpu_us": used / rest * 1e6, "deliveries": rest}

    async def steady(self, seconds: float) -> list[float]:
        """Complete sessions at the rate, half of them at the endpoints that may be silent. Returns
        the delays at the others, ms."""
        loop, healthy = asyncio.get_running_loop(), []
        began, per_second = loop.time(), self._sizes.per_second
        lead = int(LEAD_SECONDS * per_second)
        for number in range(lead + int(seconds * per_second)):
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
            if number % 2:
                await self._complete([next(self._at_silent)])
            else:
                healthy.append(next(self._at_healthy))
                await self._complete(healthy[-1:])
        await self._until_arrived(healthy)
        arrived = self._endpoints.arrived
        counted = healthy[lead // 2 :]
        return [(arrived[id_] - self._committed[id_]) * 1000 for id_ in counted]

    async def with_silent_ones(self, seconds: float) -> list[float]:
        """As ``steady``. In the end all answer again, and get what waited."""
        self._endpoints.fall_silent([_address(number) for number in range(1, SILENT + 1)])
        delays = await self.steady(seconds)
        self._endpoints.fall_silent(())
        await self._hurry()
        return delays

    async def _hurry(self) -> None:
        """End the waits until everything is delivered. More than once, because what was in flight
        fails only then, and waits in its turn."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while await self._connection.fetchval(PENDING):
            if time.monotonic() > deadline:
                raise Void("webhooks did not arrive at endpoints that answer again")
            await self._connection.execute(END_PAUSES)
            await self._connection.execute(END_WAITS)
            await asyncio.sleep(0.5)

    async def lone(self, stage: Stage, tasks: Sequence[bytes]) -> list[float]:
        """The delays of sessions that the idle worker completes, from the beginning of the
        transaction that does, ms."""
        delays, pauses = [], Random(1)
        for number, task in enumerate(tasks, 1):
            await asyncio.sleep(pauses.uniform(0.5, 1.5))
            stage.push([task])
            await self._until_arrived([UUID(int=number)])
            at = await self._connection.fetchval(HAPPENED, UUID(int=number))
            delays.append((self._endpoints.arrived[UUID(int=number)] - at.timestamp()) * 1000)
        return delays

    async def lost(self) -> int:
        """The messages that did not arrive, or of which the database does not know."""
        missing = len(self._committed.keys() - self._endpoints.arrived.keys())
        unrecorded: int = await self._connection.fetchval(UNRECORDED)
        return missing + unrecorded

    async def _complete(self, ids: Sequence[UUID]) -> None:
        await self._connection.execute(COMPLETE, ids)
        self._committed.update(dict.fromkeys(ids, time.time()))

    async def _until_arrived(self, ids: Collection[UUID]) -> None:
        waiting = set(ids)

        def is_done() -> bool:
            waiting.difference_update(self._endpoints.arrived)
            return not waiting

        await self._until(is_done)

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise Void("webhooks did not arrive")
            await asyncio.sleep(0.01)


def _summary(delays: Sequence[float]) -> Sample:
    names = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}
    return {name: percentile(delays, percent) for name, percent in names.items()} | {
        "max_ms": max(delays),
        "deliveries": len(delays),
    }
