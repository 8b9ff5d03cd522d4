"""The slots that are measured in every round, and the rows computed from them."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection
from math import ceil
from random import Random
from statistics import median
from typing import Any

from adapters.queue.redis import TASKS_KEY
from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench import floors
from tests.bench.figures import Round, Row, Sample, at_least, at_most, percentile
from tests.bench.load import BODY, HOST, ITEMS, Load, put_load
from tests.bench.stage import WEARON, Stage, is_ready, tasks
from tests.system.deployment import eventually, free_port, kill

CONNECTIONS = 64
BATCHES = 16
"""Connections that send batches."""
SLOTS_OF_THE_WORKER = 64
STARTS = 5
DRAIN_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The size of each measurement: ``tasks`` for the worker, ``waiting`` tasks whose memory in
    Redis is measured, and ``pick_ups`` in all rounds together."""

    rounds: int
    seconds: float
    tasks: int
    waiting: int
    pick_ups: int

    @property
    def pick_ups_per_round(self) -> int:
        return ceil(self.pick_ups / self.rounds)

    @property
    def starts_per_round(self) -> int:
        return ceil(STARTS / self.rounds)


FULL = Sizes(rounds=7, seconds=5, tasks=20_000, waiting=20_000, pick_ups=300)
QUICK = Sizes(rounds=3, seconds=1, tasks=2_000, waiting=20_000, pick_ups=60)


class Slots:
    """Each public method is a slot, which ``run`` measures on an empty database."""

    def __init__(self, stage: Stage, sizes: Sizes, *, tool: str) -> None:
        self._stage = stage
        self._sizes = sizes
        self._tool = tool
        self._random = Random(1)

    def run(self, slot: str) -> Sample:

        self._stage.reset()
        measure: Callable[[], Sample] = getattr(self, slot)
        return measure()

    def bare(self) -> Sample:
        """A minimal ASGI function behind the same HTTP server."""
        return self._loaded("bare", CONNECTIONS)

    def no_op(self) -> Sample:
        """Our API, without the database and the queue behind a submission."""
        return self._loaded("no_op", CONNECTIONS)

    def submit(self) -> Sample:
        return self._submitted("wearon", self._stage.spread, CONNECTIONS)

    def submit_hot(self) -> Sample:
        return self._submitted("wearon", self._stage.hot, CONNECTIONS)

    def submit_unbatched(self) -> Sample:
        return self._submitted("unbatched", self._stage.spread, CONNECTIONS)

    def batch(self) -> Sample:
        """Batches of 100. The figures are those of their sessions; latencies are the batches'."""
        api, stage = "wearon", self._stage
        port, before = stage.port_of(api), stage.cpu_seconds(api)
        load = self._load(port, stage.spread, BATCHES, batches=True)
        stage.wait_until_confirmed()
        sample = _sample(load, stage.cpu_seconds(api) - before)
        stage.check_stored(ITEMS * load.answered)
        return {**sample, "rate": ITEMS * load.rate, "cpu_us": sample["cpu_us"] / ITEMS}

    def no_op_alone(self) -> Sample:
        return self._loaded("no_op", 1)

    def submit_alone(self) -> Sample:
        return self._submitted("wearon", self._stage.spread, 1)

    def transaction_hot(self) -> Sample:
        """Plain transactions on one account, on as many connections as an API has."""
        return self._transaction(
            floors.ON_ONE_ROW, connections=self._stage.settings.database_connections
        )

    def transaction_alone(self) -> Sample:
        return self._transaction(floors.ON_MANY_ROWS, connections=1)

    def push_alone(self) -> Sample:
        return floors.pushes(self._stage, seconds=self._sizes.seconds, task=tasks(1)[0])

    def drain(self) -> Sample:
        """From the first claim to the last completion, by the database's clock."""
        count, stage = self._sizes.tasks, self._stage
        stage.push(stage.fill(count))
        unfinished = "SELECT count(*) FROM generation_sessions WHERE status <> 'completed'"
        with stage.worker(concurrency=SLOTS_OF_THE_WORKER), closing(stage.redis()) as redis:
            eventually(lambda: redis.llen(TASKS_KEY) == 0, seconds=DRAIN_SECONDS)
            eventually(lambda: stage.sql(unfinished)[0][0] == 0)
        seconds = stage.sql("""
            SELECT extract(epoch FROM max(completed_at) - min(started_at))::float
            FROM generation_sessions""")[0][0]
        return {"rate": count / seconds}

    def claims(self) -> Sample:
        """Plain transactions that claim and complete, on one connection."""
        count = self._sizes.tasks
        self._stage.fill(count)
        return floors.pgbench(self._stage, floors.CLAIM_AND_SETTLE, "-t", str(count))

    def wake_up(self) -> Sample:
        times = self._sizes.pick_ups_per_round
        return floors.wake_ups(self._stage, times=times, task=tasks(1)[0])

    def pick_up(self) -> Sample:
        """From the 202 to the call of the generator, on otherwise idle processes."""
        stage, stamps = self._stage, self._stage.folder / "stamps"
        stamps.write_text("")
        answered: dict[str, float] = {}
        port = stage.port_of("wearon")
        with (
            stage.worker(concurrency=stage.settings.worker_concurrency, stamps=stamps),
            closing(HTTPConnection(HOST, port, timeout=10)) as http,
        ):
            self._submit(http)
            eventually(lambda: stamps.read_text().count("\n") == 1)
            for _ in range(self._sizes.pick_ups_per_round):
                time.sleep(self._random.uniform(0.05, 0.15))
                session_id, at = self._submit(http)
                answered[session_id] = at
            eventually(lambda: stamps.read_text().count("\n") == len(answered) + 1)
        called = dict(line.split() for line in stamps.read_text().splitlines())
        latencies_us = [(float(called[session]) - at) * 1e6 for session, at in answered.items()]
        return {
            "p50_us": percentile(latencies_us, 50),
            "p99_us": percentile(latencies_us, 99),
            "all_us": latencies_us,
        }

    def wait(self) -> Sample:
        """A submission that waits for the end of its session, on otherwise idle processes, and how
        long its session lived: from the start of the transaction that created it to the start of
        the one that completed it."""
        stage, waits_us, lives_us = self._stage, [], []
        with (
            stage.worker(concurrency=stage.settings.worker_concurrency),
            closing(HTTPConnection(HOST, stage.port_of("wearon"), timeout=10)) as http,
        ):
            self._submit_and_wait(http)
            for _ in range(self._sizes.pick_ups_per_round):
                time.sleep(self._random.uniform(0.05, 0.15))
                began = time.perf_counter()
                session = self._submit_and_wait(http)
                waits_us.append((time.perf_counter() - began) * 1e6)
                created, completed = (
                    datetime.fromisoformat(session[name]) for name in ("created_at", "completed_at")
                )
                lives_us.append((completed - created).total_seconds() * 1e6)
        return {"p50_us": percentile(waits_us, 50), "life_p50_us": percentile(lives_us, 50)}

    def ready(self) -> Sample:
        """`wearon serve`, from its start until it is ready."""
        return {
            "seconds": median(self._start_seconds() for _ in range(self._sizes.starts_per_round))
        }

    def help(self) -> Sample:
        """`wearon --help`, from its start to its exit."""
        return {
            "seconds": median(self._help_seconds() for _ in range(self._sizes.starts_per_round))
        }

    def memory(self) -> Sample:
        """The memory of waiting tasks in Redis."""
        waiting = tasks(self._sizes.waiting)
        with closing(self._stage.redis()) as redis:
            before: Any = redis.info("memory")
            self._stage.push(waiting)
            list_bytes: Any = redis.memory_usage(TASKS_KEY, samples=0)
            after: Any = redis.info("memory")
        return {
            "payload_bytes": sum(map(len, waiting)),
            "list_bytes": list_bytes,
            "used_memory_bytes": after["used_memory"] - before["used_memory"],
        }

    def _loaded(self, api: str, connections: int) -> Sample:
        """Load on an API that stores nothing."""
        port, before = self._stage.port_of(api), self._stage.cpu_seconds(api)
        load = self._load(port, self._stage.spread, connections)
        sample = _sample(load, self._stage.cpu_seconds(api) - before)
        self._stage.check_nothing_stored()
        return sample

    def _submitted(self, api: str, tokens: Sequence[str], connections: int) -> Sample:
        """Load on an API that stores sessions. Its CPU time includes their confirmation."""
        port, before = self._stage.port_of(api), self._stage.cpu_seconds(api)
        load = self._load(port, tokens, connections)
        self._stage.wait_until_confirmed()
        sample = _sample(load, self._stage.cpu_seconds(api) - before)
        self._stage.check_stored(load.answered)
        return sample

    def _load(
        self, port: int, tokens: Sequence[str], connections: int, *, batches: bool = False
    ) -> Load:
        return put_load(
            port,
            tokens,
            connections=connections,
            seconds=self._sizes.seconds,
            folder=self._stage.folder,
            tool=self._tool,
            batches=batches,
        )

    def _transaction(self, script: str, *, connections: int) -> Sample:
        seconds = str(ceil(self._sizes.seconds))
        return floors.pgbench(self._stage, script, "-T", seconds, connections=connections)

    def _submit(self, http: HTTPConnection) -> tuple[str, float]:
        self._post(http)
        answer = http.getresponse()
        at = time.clock_gettime(time.CLOCK_MONOTONIC)
        return json.load(answer)["data"]["session_id"], at

    def _submit_and_wait(self, http: HTTPConnection) -> dict[str, str]:
        """The completed session."""
        self._post(http, Prefer="wait=5")
        session: dict[str, str] = json.load(http.getresponse())["data"]
        assert session["status"] == "completed", session
        return session

    def _post(self, http: HTTPConnection, **headers: str) -> None:
        headers |= {
            "Authorization": f"Bearer {self._random.choice(self._stage.spread)}",
            "Content-Type": "application/json",
        }
        http.request("POST", GENERATIONS_PATH, BODY, headers)

    def _start_seconds(self) -> float:
        port = free_port()
        started_at = time.perf_counter()
        process = self._stage.spawn([*WEARON, "serve"], WEARON_PORT=str(port))
        try:
            while not is_ready(port):
                time.sleep(0.005)
            return time.perf_counter() - started_at
        finally:
            kill(process)

    def _help_seconds(self) -> float:
        started_at = time.perf_counter()
        subprocess.run([*WEARON, "--help"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started_at


def _sample(load: Load, cpu_seconds: float) -> Sample:
    return {
        "rate": load.rate,
        "p50_us": load.p50_us,
        "p90_us": load.p90_us,
        "p99_us": load.p99_us,
        "cpu_us": cpu_seconds * 1e6 / load.answered,
        "answered": load.answered,
    }


def _ratio(figure: str, slot: str, other: str) -> Callable[[Round], float]:
    """The figure of one slot divided by that of another."""
    return lambda round_: round_[slot][figure] / round_[other][figure]


def _pooled_ratio(percent: float, slot: str, other: str) -> Callable[[Sequence[Round]], float]:
    """The same for a percentile of the latencies of all rounds together."""

    def latencies(rounds: Sequence[Round], slot: str) -> list[float]:
        return [latency_us for round_ in rounds for latency_us in round_[slot]["all_us"]]

    return lambda rounds: (
        percentile(latencies(rounds, slot), percent) / percentile(latencies(rounds, other), percent)
    )


def _alone_ratio(round_: Round) -> float:
    parts = ("no_op_alone", "transaction_alone", "push_alone")
    return float(round_["submit_alone"]["p50_us"] / sum(round_[part]["p50_us"] for part in parts))


ROWS = (
    Row(
        name="no_op",
        title="no-op POST / bare ASGI function, rate",
        aim=at_least(0.5),
        slots=("bare", "no_op"),
        of=_ratio("rate", "no_op", "bare"),
    ),
    Row(
        name="submit",
        title="submit / no-op POST, rate",
        aim=at_least(0.9),
        slots=("no_op", "submit"),
        of=_ratio("rate", "submit", "no_op"),
    ),
    Row(
        name="batches",
        title="submit / submit in batches of one, rate",
        aim=at_least(2.5),
        slots=("submit", "submit_unbatched"),
        of=_ratio("rate", "submit", "submit_unbatched"),
    ),
    Row(
        name="hot",
        title="submit on one account / on 1,000, rate",
        aim=at_least(0.95),
        slots=("submit", "submit_hot"),
        of=_ratio("rate", "submit_hot", "submit"),
    ),
    Row(
        name="hot_plain",
        title="submit on one account / plain transaction on one row, rate",
        aim=at_least(3),
        slots=("submit_hot", "transaction_hot"),
        of=_ratio("rate", "submit_hot", "transaction_hot"),
    ),
    Row(
        name="alone",
        title="one submit at a time / (no-op + transaction + LPUSH), p50",
        aim=at_most(1.25),
        slots=("no_op_alone", "submit_alone", "transaction_alone", "push_alone"),
        of=_alone_ratio,
    ),
    Row(
        name="cpu",
        title="API's CPU time per submit / per no-op POST",
        aim=at_most(1.3),
        slots=("no_op", "submit"),
        of=_ratio("cpu_us", "submit", "no_op"),
    ),
    Row(
        name="batch",
        title="sessions per second in batches of 100",
        aim=at_least(15_000),
        slots=("batch",),
        of=lambda round_: float(round_["batch"]["rate"]),
    ),
    Row(
        name="batch_cpu",
        title="API's CPU time per session in batches of 100, us",
        aim=at_most(30),
        slots=("batch",),
        of=lambda round_: float(round_["batch"]["cpu_us"]),
    ),
    Row(
        name="drain",
        title="tasks of one worker / plain claim and complete, rate",
        aim=at_least(5),
        slots=("drain", "claims"),
        of=_ratio("rate", "drain", "claims"),
    ),
    Row(
        name="pick_up_p50",
        title="202 to generator / BRPOP wake-up, p50",
        aim=at_most(5),
        slots=("wake_up", "pick_up"),
        of=_ratio("p50_us", "pick_up", "wake_up"),
        pooled=_pooled_ratio(50, "pick_up", "wake_up"),
    ),
    Row(
        name="wait_p50",
        title="submit and wait for a no-op / life of its session, idle, p50",
        aim=at_most(1.5),
        slots=("wait",),
        of=lambda round_: float(round_["wait"]["p50_us"] / round_["wait"]["life_p50_us"]),
    ),
    Row(
        name="pick_up_p99",
        title="202 to generator / BRPOP wake-up, p99",
        aim=at_most(20),
        slots=("wake_up", "pick_up"),
        of=_ratio("p99_us", "pick_up", "wake_up"),
        pooled=_pooled_ratio(99, "pick_up", "wake_up"),
    ),
    Row(
        name="ready",
        title="`wearon serve` until ready, seconds",
        aim=at_most(1.5),
        slots=("ready",),
        of=lambda round_: float(round_["ready"]["seconds"]),
    ),
    Row(
        name="help",
        title="`wearon --help`, seconds",
        aim=at_most(0.3),
        slots=("help",),
        of=lambda round_: float(round_["help"]["seconds"]),
    ),
    Row(
        name="memory",
        title="bytes in Redis / bytes of waiting tasks",
        aim=at_most(1.15),
        slots=("memory",),
        of=lambda round_: float(round_["memory"]["list_bytes"] / round_["memory"]["payload_bytes"]),
    ),
)
"""The rows that are measured in rounds."""

SLOTS = tuple(dict.fromkeys(slot for row in ROWS for slot in row.slots))
"""In the order of a round."""

WARM_UP = ("bare", "no_op", "submit", "submit_unbatched", "no_op_alone", "submit_alone")
"""The slots that run once before the first round, so that their processes are warm."""
