"""Waiting clients: what an open stream costs, and how long a committed state takes to arrive."""

import asyncio
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle
from uuid import UUID

import asyncpg
import msgspec

from adapters.changes.redis import CHANGED
from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench.figures import Finding, Round, Sample, at_most, percentile
from tests.bench.load import HOST, Void
from tests.bench.stage import Stage, rss_kb

WATCHERS = 10_000
IDLE_SECONDS = 30.0
FOLLOWED = 1_000
TRANSITIONS_PER_SECOND = 500
BATCH = 10
LINGER_SECONDS = 3.0

CLAIM = """
    UPDATE generation_sessions SET status = 'processing', attempt = attempt + 1, confirmed = true,
        lease_expires_at = now() + interval '1 hour', started_at = now()
    WHERE id = ANY ($1::uuid[])"""
RELEASE = """
    UPDATE generation_sessions SET status = 'queued', lease_expires_at = NULL
    WHERE id = ANY ($1::uuid[])"""

Followed = tuple[UUID, str]
"""A session and its store."""


class Streams:
    """Open streams, and when each session's revisions arrived."""

    def __init__(self) -> None:
        self.arrived: dict[tuple[UUID, int], float] = {}
        self.open = 0
        self.broken = 0


class _Stream(asyncio.Protocol):
    def __init__(self, streams: Streams, session_id: UUID, token: str) -> None:
        self._streams = streams
        self._session_id = session_id
        self._request = (
            f"GET {GENERATIONS_PATH}/{session_id}/events HTTP/1.1\r\nHost: {HOST}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()
        self._rest = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._rest += data
        while (start := self._rest.find(b"\nid: ")) >= 0 and b"\n\n" in self._rest[start:]:
            revision = int(self._rest[start + 5 : self._rest.index(b"\n", start + 1)])
            self._streams.arrived.setdefault((self._session_id, revision), now)
            self._rest = self._rest[self._rest.index(b"\n\n", start) + 2 :]
            if not self._is_open:
                self._is_open = True
                self._streams.open += 1

    def connection_lost(self, _: Exception | None) -> None:
        self._streams.broken += 1


def run(stage: Stage) -> tuple[list[Finding], Sequence[Round]]:
    """Measure on sessions of many stores, which nothing but this changes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, WATCHERS * 2)), hard))
    stage.fill(WATCHERS)
    rows = stage.sql("SELECT id, owner_id FROM generation_sessions ORDER BY id")
    sessions = [(row["id"], row["owner_id"]) for row in rows]
    stage.port_of("wearon")
    cost = asyncio.run(_cost(stage, sessions))
    heard = asyncio.run(_delays(stage, sessions[:FOLLOWED], publishing=True))
    unheard = asyncio.run(_delays(stage, sessions[:FOLLOWED], publishing=False))
    rounds = [{"open": cost, "published": heard, "unpublished": unheard}]
    aims = [
        ("kb", "memory of an open stream, kB", 32, cost["kb"]),
        ("idle", "CPU of a process with 10,000 idle streams, % of a core", 2, cost["percent"]),
        ("p50", "commit to client, p50, ms", 10, heard["p50_ms"]),
        ("p99", "commit to client, p99, ms", 100, heard["p99_ms"]),
        ("lost", "the same without a published change, max, ms", 1_500, unheard["max_ms"]),
    ]
    findings = [
        Finding(
            name=f"streams_{name}", title=title, aim=at_most(bound), value=value, values=[value]
        )
        for name, title, bound, value in aims
    ]
    return findings, rounds


async def _open(
    stage: Stage, sessions: Sequence[Followed]
) -> tuple[Streams, list[asyncio.Transport]]:
    loop, streams, port = asyncio.get_running_loop(), Streams(), stage.port_of("wearon")
    transports = []
    for start in range(0, len(sessions), 100):
        opening = [
            loop.create_connection(
                lambda each=each: _Stream(streams, each[0], stage.tokens[int(each[1])]),  # type: ignore[misc]
                HOST,
                port,
            )
            for each in sessions[start : start + 100]
        ]
        transports += [transport for transport, _ in await asyncio.gather(*opening)]
    deadline = loop.time() + 60
    while streams.open < len(sessions):
        if loop.time() > deadline or streams.broken:
            raise Void(f"{streams.open} of {len(sessions)} streams opened, {streams.broken} broke")
        await asyncio.sleep(0.1)
    return streams, transports


async def _close(transports: Sequence[asyncio.Transport]) -> None:
    for transport in transports:
        transport.abort()
    await asyncio.sleep(1)


async def _cost(stage: Stage, sessions: Sequence[Followed]) -> Sample:
    """Memory and CPU while nothing happens but rounds and pings."""
    _, few = await _open(stage, sessions[:100])  # What the first one needs is no stream's cost.
    await _close(few)
    before = sum(map(rss_kb, stage.pids_of("wearon")))
    streams, transports = await _open(stage, sessions)
    await asyncio.sleep(2)
    kb = (sum(map(rss_kb, stage.pids_of("wearon"))) - before) / len(sessions)
    began, cpu = time.monotonic(), stage.cpu_seconds("wearon")
    await asyncio.sleep(IDLE_SECONDS)
    used = (stage.cpu_seconds("wearon") - cpu) / (time.monotonic() - began)
    broken = streams.broken
    await _close(transports)
    if broken:
        raise Void(f"{broken} streams broke")
    return {"kb": kb, "percent": used * 100, "streams": len(sessions)}


async def _delays(stage: Stage, sessions: Sequence[Followed], *, publishing: bool) -> Sample:
    """Claim and release sessions at a steady rate, as workers would, and compare the times of the
    commits with those at which the clients had the states."""
    streams, transports = await _open(stage, sessions)
    committed: dict[tuple[UUID, int], float] = {}
    connection = await asyncpg.connect(stage.postgres.url())
    rows = await connection.fetch("SELECT id, 2 * attempt + 1 AS revision FROM generation_sessions")
    all_revisions = {row["id"]: row["revision"] for row in rows}
    revisions = {session_id: all_revisions[session_id] for session_id, _ in sessions}
    try:
        turns = cycle(range(0, len(sessions), BATCH))
        loop = asyncio.get_running_loop()
        began, cpu = loop.time(), stage.cpu_seconds("wearon")
        count = 10 * TRANSITIONS_PER_SECOND // BATCH
        with closing(stage.redis()) as redis:
            for number in range(count):
                start = next(turns)
                batch = sessions[start : start + BATCH]
                ids = [session_id for session_id, _ in batch]
                statement = RELEASE if revisions[ids[0]] % 2 == 0 else CLAIM
                await connection.execute(statement, ids)
                now = time.perf_counter()
                for session_id in ids:
                    revisions[session_id] += 1
                    committed[session_id, revisions[session_id]] = now
                if publishing:
                    redis.publish(CHANGED, _message(batch))
                due = began + (number + 1) * BATCH / TRANSITIONS_PER_SECOND
                await asyncio.sleep(max(0.0, due - loop.time()))
        used = (stage.cpu_seconds("wearon") - cpu) / (loop.time() - began)
        await asyncio.sleep(LINGER_SECONDS)
    finally:
        await connection.execute(
            "UPDATE generation_sessions SET status = 'queued', lease_expires_at = NULL"
            " WHERE status = 'processing'"
        )
        await connection.close()
        await _close(transports)
    last = set(revisions.items())
    if lost := [key for key in last if key in committed and key not in streams.arrived]:
        raise Void(f"{len(lost)} last states did not arrive")
    delays = [
        (streams.arrived[key] - at) * 1000
        for key, at in committed.items()
        if key in streams.arrived
    ]
    return {
        "p50_ms": percentile(delays, 50),
        "p99_ms": percentile(delays, 99),
        "max_ms": max(delays),
        "states": len(committed),
        "skipped": len(committed) - len(delays),
        "cpu_percent": used * 100,
    }


def _message(batch: Sequence[Followed]) -> bytes:
    changes = [
        {"session_id": session_id, "channel": "b2b", "store_id": store}
        for session_id, store in batch
    ]
    return msgspec.json.encode(changes)
