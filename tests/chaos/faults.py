"""The faults, chosen at random by a seed. Each fault ends by itself."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

import asyncpg

from domain.sessions import ErrorCode
from tests.chaos.deployment import HOT, PARTS, PICTURE, Stage
from tests.chaos.load import GARBAGE, TASKS_KEY
from tests.support.proxy import Proxy, no_delay

PAUSE_SECONDS = 2.0
"""Longest pause between two faults of one troublemaker."""
KILLS_PAUSE_SECONDS = 1.0
"""The same, if they only kill."""
KILLS_OF_EACH = {"redis": 8, "postgres": 8, "worker": 3}
"""How often each is killed while the API is killed once."""
TROUBLEMAKERS, KILLERS = 2, 3
SPARE_LOOK_SECONDS = 0.02
"""Shorter than any pause between two faults."""
BEYOND_THE_LEASE_SECONDS = (3.0, 7.0)
A_WHILE_SECONDS = (1.0, 5.0)
LONGEST_SLOW_SECONDS = 0.5
LONGEST_LATE_SECONDS = 8.0
"""Longer than the lease: another worker may have the session when a late write arrives."""
REPEATED = 20
LOCKED_SESSIONS = 3
FALSE_ERROR = b"-ERR Connection timed out\r\n"
"""What twemproxy replies when it lost track of a command after passing it on."""
PASSWORD = "known to the tests only"

CHARGING = PICTURE.encode()
SETTLING = (b"image/", ErrorCode.IMAGE_UNREACHABLE.encode())
"""Part of a statement that completes a session, and of one that fails it."""
TELLTALES = {
    "redis link": (b"LPUSH", b"LPUSH", b"BRPOP"),
    "postgres link": (CHARGING, CHARGING, *SETTLING),
}
"""Part of the requests whose replies are lost."""


@dataclass(frozen=True, slots=True)
class Fault:
    """``do`` is done to ``target``, and no other fault hits that target meanwhile."""

    kind: str
    target: str
    do: Callable[[], Awaitable[None]]

    @property
    def is_kill(self) -> bool:
        return "killed" in self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """When a fault was there, and until when its effects may last."""

    target: str
    began: datetime
    over: datetime

    @classmethod
    def of(cls, fault: Fault, *, began: datetime, ended: datetime) -> "Hit":
        late_seconds = LONGEST_LATE_SECONDS if fault.kind == "late" else 0.0
        return cls(target=fault.target, began=began, over=ended + timedelta(seconds=late_seconds))


def _kills(faults: list[Fault]) -> list[Fault]:
    """Those of servers come most often, those of the API least: a program takes longest to start,
    and without an API there is no work to disturb."""
    return [
        fault
        for fault in faults
        if fault.is_kill
        for _ in range(KILLS_OF_EACH.get(fault.target.partition("-")[0], 1))
    ]


class Faults:
    """Troublemakers, which never work on the same target. With ``only_kills`` they do nothing else,
    and more often; and a program works again before it is killed once more."""

    def __init__(
        self,
        stage: Stage,
        random: Random,
        say: Callable[[str], None],
        *,
        only_kills: bool = False,
    ) -> None:
        self._stage = stage
        self._random = random
        self._say = say
        self._busy: set[str] = set()
        self._faults = _kills(self._all()) if only_kills else self._all()
        self._only_kills = only_kills
        self._to_come: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.hits: list[Hit] = []
        self.problems: list[str] = []
        """What programs did without a fault as the cause."""
        self.kills = 0

    async def run(self, until: float) -> None:
        """Cause faults until that time of the event loop; return when the last fault has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(KILLERS if self._only_kills else TROUBLEMAKERS):
                group.create_task(self._make_trouble(until))

    @asynccontextmanager
    async def sparing(self, target: str) -> AsyncIterator[None]:
        """Wait until no fault hits that target; none does meanwhile."""
        while target in self._busy:  # noqa: ASYNC110 - each fault ends by itself
            await asyncio.sleep(SPARE_LOOK_SECONDS)
        self._busy.add(target)
        try:
            yield
        finally:
            self._busy.remove(target)

    async def _make_trouble(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        longest = KILLS_PAUSE_SECONDS if self._only_kills else PAUSE_SECONDS
        while True:
            await asyncio.sleep(self._random.uniform(0.1, longest))
            if loop.time() >= until:
                return
            fault = self._next()
            if fault is None:
                continue
            self._say(f"{fault.kind}: {fault.target}")
            self._busy.add(fault.target)
            began = datetime.now(UTC)
            await fault.do()
            self.hits.append(Hit.of(fault, began=began, ended=datetime.now(UTC)))
            self._busy.remove(fault.target)
            self.counts[f"{fault.kind} {fault.target.partition('-')[0]}"] += 1
            self.kills += fault.is_kill
            self.problems += [f"{name} ended by itself" for name in await self._restart_ended()]

    def _next(self) -> Fault | None:
        """Every fault comes once before any is repeated. None if the targets of all that remain are
        busy."""
        if not self._to_come:
            self._to_come = self._random.sample(self._faults, len(self._faults))
        free = [fault for fault in self._to_come if fault.target not in self._busy]
        if not free:
            return None
        self._to_come.remove(free[0])
        return free[0]

    async def _restart_ended(self) -> list[str]:
        """Restart programs that have ended, while no program has a fault. Returns those that ended
        without one."""
        if self._busy & PARTS.keys():
            return []
        self._busy |= PARTS.keys()
        ended = await self._stage.revive()
        self._busy -= PARTS.keys()
        return ended

    def _all(self) -> list[Fault]:
        faults = [
            Fault("flushed", "redis", self._flush),
            Fault("garbage", "redis", self._push_garbage),
            Fault("repeated", "redis", self._push_again),
            Fault("restarted", "redis", self._restart_redis),
            Fault("killed", "redis", self._kill_redis),
            Fault("read-only", "redis", self._make_redis_read_only),
            Fault("out of memory", "redis", self._fill_redis),
            Fault("password", "redis", self._lock_redis),
            Fault("stopped at once", "postgres", self._restart_postgres),
            Fault("killed", "postgres", self._kill_postgres),
            Fault("sessions ended", "postgres", self._end_database_sessions),
            Fault("account locked", "postgres", self._lock_account),
            Fault("sessions locked", "postgres", self._lock_sessions),
            Fault("table locked", "postgres", self._lock_table),
            Fault("lost", "storage", self._lose_storage),
        ]
        for name in PARTS:
            faults += [
                Fault("killed", name, partial(self._kill, name)),
                Fault("frozen", name, partial(self._freeze, name)),
                Fault("SIGTERM", name, partial(self._terminate, name)),
            ]
        faults.append(Fault("one process killed", "api", self._kill_one_of_api))
        for name, proxy in (
            ("redis link", self._stage.redis),
            ("postgres link", self._stage.postgres),
        ):
            faults += [
                Fault("slow", name, partial(self._delay, proxy, b"", LONGEST_SLOW_SECONDS)),
                Fault("cut", name, proxy.cut),
                Fault("refused", name, partial(self._refuse, proxy)),
                Fault("black hole", name, partial(self._swallow, proxy)),
            ]
            faults += [
                Fault("replies lost", name, partial(self._lose_replies, proxy, telltale))
                for telltale in TELLTALES[name]
            ]
        faults.append(Fault("false errors", "redis link", self._reply_false_errors))
        faults += [
            Fault(
                "late",
                "postgres link",
                partial(self._delay, self._stage.postgres, telltale, LONGEST_LATE_SECONDS),
            )
            for telltale in SETTLING
        ]
        return faults

    async def _a_while(self, seconds: tuple[float, float] = A_WHILE_SECONDS) -> None:
        await asyncio.sleep(self._random.uniform(*seconds))

    async def _kill(self, name: str) -> None:
        await self._stage.kill(name)
        await self._a_while((0.0, 2.0))
        await self._stage.start(name)
        if self._only_kills:
            await self._stage.works(name)

    async def _freeze(self, name: str) -> None:
        self._stage.signal(name, signal.SIGSTOP)
        try:
            await self._a_while(BEYOND_THE_LEASE_SECONDS)
        finally:
            self._stage.signal(name, signal.SIGCONT)

    async def _terminate(self, name: str) -> None:
        exit_code = await self._stage.terminate(name)
        if exit_code != 0:
            self.problems.append(f"{name} got SIGTERM; its exit code was {exit_code}")
        await self._stage.start(name)

    async def _kill_one_of_api(self) -> None:
        await self._stage.kill_a_child("api")
        await self._a_while((1.0, 2.0))
        await self._kill("api")

    async def _flush(self) -> None:
        async with self._stage.valkey() as redis:
            await redis.flushall()

    async def _push_garbage(self) -> None:
        async with self._stage.valkey() as redis:
            await redis.lpush(TASKS_KEY, json.dumps(self._random.choice(GARBAGE)))

    async def _push_again(self) -> None:
        """Push tasks that were popped before, whatever the status of their sessions."""
        popped = self._stage.popped
        again = self._random.sample(popped, min(len(popped), REPEATED))
        if again:
            async with self._stage.valkey() as redis:
                await redis.lpush(TASKS_KEY, *again)

    async def _restart_redis(self) -> None:
        await self._stage.blocking(self._stage.deployment.valkey.stop)
        await self._a_while((0.0, 3.0))
        await self._stage.blocking(self._stage.deployment.valkey.start)

    async def _kill_redis(self) -> None:
        await self._stage.blocking(self._stage.deployment.valkey.kill)
        await self._a_while((0.0, 3.0))
        await self._stage.blocking(self._stage.deployment.valkey.start)

    async def _make_redis_read_only(self) -> None:
        async with self._stage.valkey() as redis:
            await redis.replicaof("127.0.0.1", "1")
            await self._a_while()
            await redis.replicaof("NO", "ONE")

    async def _fill_redis(self) -> None:
        async with self._stage.valkey() as redis:
            await redis.config_set("maxmemory", 1)
            await self._a_while()
            await redis.config_set("maxmemory", 0)

    async def _lock_redis(self) -> None:
        async with self._stage.valkey() as redis:
            await redis.config_set("requirepass", PASSWORD)
        await self._stage.redis.cut()  # Open connections would not need the password.
        await self._a_while()
        async with self._stage.valkey(PASSWORD) as redis:
            await redis.config_set("requirepass", "")

    async def _restart_postgres(self) -> None:
        await self._stage.blocking(self._stage.deployment.postgres.stop, immediate=True)
        await self._a_while((0.0, 3.0))
        await self._stage.blocking(self._stage.deployment.postgres.start)

    async def _kill_postgres(self) -> None:
        await self._stage.blocking(self._stage.deployment.postgres.kill)
        await self._a_while((0.0, 3.0))
        await self._stage.blocking(self._stage.deployment.postgres.start)

    async def _end_database_sessions(self) -> None:
        async with self._stage.sql() as sql:
            await sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    async def _lock_account(self) -> None:
        await self._hold(
            "SELECT FROM credit_accounts"
            f" WHERE channel = '{HOT.channel}' AND owner_id = '{HOT.id}' FOR UPDATE"
        )

    async def _lock_sessions(self) -> None:
        """As an external consumer may do while it works on them."""
        await self._hold(
            "SELECT FROM generation_sessions WHERE status IN ('queued', 'processing')"
            f" ORDER BY id LIMIT {LOCKED_SESSIONS} FOR UPDATE SKIP LOCKED"
        )

    async def _lock_table(self) -> None:
        table = self._random.choice(("generation_sessions", "credit_ledger", "credit_accounts"))
        await self._hold(f"LOCK TABLE {table} IN EXCLUSIVE MODE")

    async def _hold(self, lock: str) -> None:
        try:
            async with self._stage.sql() as sql, sql.transaction():
                await sql.execute("SET LOCAL lock_timeout = '5s'")
                await sql.execute(lock)
                await self._a_while((1.0, 7.0))
        except asyncpg.LockNotAvailableError:
            self._say("nothing was locked: another transaction held it too long")

    async def _lose_storage(self) -> None:
        """As a mount that is gone: no picture can be found or kept."""
        self._stage.mount_pictures(usable=False)
        await self._a_while((1.0, 7.0))
        self._stage.mount_pictures(usable=True)

    async def _delay(self, proxy: Proxy, telltale: bytes, longest_seconds: float) -> None:
        """Requests that contain ``telltale`` are late, each by a random time, so that later ones
        may overtake them."""

        def delay(data: bytes) -> float:
            return self._random.uniform(0.0, longest_seconds) if telltale in data else 0.0

        proxy.delay = delay
        try:
            await self._a_while((2.0, 8.0))
        finally:
            proxy.delay = no_delay

    async def _refuse(self, proxy: Proxy) -> None:
        await proxy.refuse()
        await self._a_while()
        await proxy.listen()

    async def _swallow(self, proxy: Proxy) -> None:
        """No requests arrive, or no replies; afterwards they arrive late, or never."""
        way = self._random.choice((proxy.requests, proxy.replies))
        way.clear()
        try:
            await self._a_while((1.0, 8.0))
            if self._random.random() < 0.5:
                await proxy.cut()
        finally:
            way.set()

    async def _lose_replies(self, proxy: Proxy, telltale: bytes) -> None:
        proxy.lose_replies(telltale, cut=self._random.random() < 0.5)
        await self._a_while()
        self._say(f"{proxy.lose_nothing()} replies to {telltale.decode()} were lost")

    async def _reply_false_errors(self) -> None:
        """Pushes take effect and are answered with an error."""
        proxy = self._stage.redis
        proxy.replace_replies(b"LPUSH", FALSE_ERROR)
        await self._a_while()
        self._say(f"{proxy.lose_nothing()} replies to LPUSH were errors")
