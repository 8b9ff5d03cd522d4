"""Durable servers, and on them the processes that are measured."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from redis import Redis
from uuid_utils.compat import uuid7

from adapters.auth.bearer import key_sha256, new_api_key
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.processes import die_with_parent
from adapters.embedded.valkey import EmbeddedValkey
from adapters.queue.payload import encode
from adapters.queue.redis import TASKS_KEY
from config.container import Container, close
from config.settings import Settings, load_settings
from domain.credits import Channel, Owner
from domain.sessions import DEFAULT_PROMPT, GenerationInput, GenerationSession
from domain.tasks import GenerationTask
from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench.load import BODY, HOST, Void
from tests.bench.targets import ANSWER_VARIABLE
from tests.system.deployment import eventually, free_port, kill

ROOT = Path(__file__).parents[2]
ACCOUNTS = 1_000
"""Over which load is spread; one more, number 0, is the hot one."""
CREDITS = 1_000_000_000
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SAMPLES_OF_FSYNC = 50
_PAGE = b"\0" * 8192

WEARON = [sys.executable, "-P", "-m", "entrypoints.cli"]
_TARGETS = [sys.executable, "-m", "tests.bench.targets"]
COMMANDS = {
    "wearon": [*WEARON, "serve"],
    "unbatched": [*WEARON, "serve"],
    "no_op": [*_TARGETS, "no_op"],
    "bare": [*_TARGETS, "bare"],
}
"""What runs behind an API's name."""

SETUP = f"""
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted)
        SELECT channel, owner_id, {CREDITS}, {CREDITS}
        FROM unnest($1::text[], $2::text[]) AS owner (channel, owner_id)"""  # noqa: S608 - put together from literals
GRANTS = """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount)
        SELECT channel, owner_id, 'grant', balance FROM credit_accounts"""
KEYS = """
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
        SELECT gen_random_uuid(), 'b2b', owner_id, sha256, 'bench', now()
        FROM unnest($1::text[], $2::text[]) AS key (owner_id, sha256)"""

# What a submission leaves behind, once for each number; ids that pgbench can work out.
SESSION_ID = "lpad(to_hex({number}::int), 32, '0')::uuid"
FILL_SESSIONS = f"""
    INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url,
        outfit_image_url, accessories)
    SELECT {SESSION_ID.format(number="number")}, 'b2b', (1 + number % {ACCOUNTS})::text,
        'req_' || lpad(to_hex(number), 24, '0'), $2, $3::jsonb->>'model_image_url',
        $3::jsonb->>'outfit_image_url', $3::jsonb->'accessories'
    FROM generate_series(1, $1::int) AS number
    RETURNING id, owner_id, request_id, created_at"""  # noqa: S608 - put together from literals
FILL_LEDGER = """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'debit', -1, id FROM generation_sessions"""
TIDY = "VACUUM ANALYZE generation_sessions, credit_ledger, credit_accounts, api_keys"
# Without sessions: no server tidies up where there are none, and it would take note of that.
TIDY_ACCOUNTS = "VACUUM ANALYZE credit_ledger, credit_accounts, api_keys"
FILL_ACCOUNTS = """
    UPDATE credit_accounts AS account
    SET balance = balance - sessions, total_debited = total_debited + sessions
    FROM (SELECT channel, owner_id, count(*) AS sessions FROM generation_sessions GROUP BY 1, 2)
        AS debited
    WHERE (account.channel, account.owner_id) = (debited.channel, debited.owner_id)"""


class Stage:
    """Everything that was started is stopped by ``close``, and the data is gone.

    ``callers`` is who submits: ``stores`` by API keys, which the store is asked for, ``users`` by
    tokens, or ``both`` in turn.
    """

    def __init__(self, data_dir: Path, *, callers: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=data_dir.resolve()))
        self.folder.chmod(0o711)
        self.callers = callers
        self.postgres = EmbeddedPostgres(self.folder / "postgres")
        self.valkey = EmbeddedValkey(self.folder / "valkey")
        self.environ: dict[str, str] = {}
        self.tokens: list[str] = []
        self._apis: dict[str, tuple[subprocess.Popen[bytes], int]] = {}

    def open(self) -> None:
        """Servers with our tables, accounts with credits, and who may use them."""
        self.postgres.start()
        self.valkey.start()
        self.environ = self._environment()
        asyncio.run(migrated(self.settings))
        self._make_callers()
        self.reset()

    def _environment(self) -> dict[str, str]:
        """The environment of wearon's processes: production, but nothing is refused."""
        ours = {name: value for name, value in os.environ.items() if "WEARON_" not in name}
        return ours | {
            "DATABASE_URL": self.postgres.url(),
            "REDIS_URL": self.valkey.url,
            "WEARON_DATA_DIR": str(self.folder / "data"),
            "WEARON_JWT_SECRET": secrets.token_hex(32),
            "WEARON_SIGNING_SECRET": secrets.token_hex(32),
            "WEARON_MAX_ACTIVE": "1000000",
            "WEARON_MAX_WAITING": "100000000",
        }

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    def close(self) -> None:
        for process, _ in self._apis.values():
            kill(process)
        self.valkey.stop()
        self.postgres.stop()
        for folder in (self.postgres.data_dir, self.valkey.data_dir, self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """What the figures depend on, and what makes them honest. Raises Void where a commit is
        not on the disk."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
        found = {f"PostgreSQL {name}": self.sql(f"SHOW {name}")[0][0] for name in names}
        if "off" in found.values():
            raise Void(f"PostgreSQL is not durable: {found}")
        with closing(self.redis()) as redis:
            info: Any = redis.info("server")
            kept: Any = redis.config_get("append*")
        return found | {
            "Redis protocol server": f"{info.get('server_name', 'redis')} "
            f"{info.get('valkey_version', info['redis_version'])}",
            "Redis appendonly": kept["appendonly"],
            "Redis appendfsync": kept["appendfsync"],
            "data": f"{self.folder.parent} on {_file_system(self.folder)}",
            "one write and fsync of 8 kB, us": round(_fsync_us(self.folder)),
            "callers": f"{ACCOUNTS} {self.callers}",
            "connections of an API to PostgreSQL": self.settings.database_connections,
            "log": f"{self.settings.log_level} to /dev/null, of all APIs and workers alike",
        }

    def _make_callers(self) -> None:
        settings = self.settings
        container = Container(settings=settings)
        now, day = container.clock()(), timedelta(days=1)
        stores = [new_api_key() for _ in range(ACCOUNTS + 1)]
        users = [
            container.user_token(UUID(int=number), now=now, lifetime=day)
            for number in range(ACCOUNTS + 1)
        ]
        self.sql(
            KEYS, [str(number) for number in range(ACCOUNTS + 1)], list(map(key_sha256, stores))
        )
        pairs = zip(stores, users, strict=True)
        self.tokens = {
            "stores": stores,
            "users": users,
            "both": [pair[number % 2] for number, pair in enumerate(pairs)],
        }[self.callers]

    @property
    def spread(self) -> Sequence[str]:
        """Tokens of all accounts but the hot one."""
        return self.tokens[1:]

    @property
    def hot(self) -> Sequence[str]:
        return self.tokens[:1]

    def reset(self) -> None:
        """As it was at the start: what piled up is gone, and written out is what is there."""

        async def run() -> None:
            connection = await asyncpg.connect(self.postgres.url())
            try:
                await connection.execute(
                    "TRUNCATE generation_sessions, credit_ledger, credit_accounts"
                )
                owners = [("b2b", str(number)) for number in range(ACCOUNTS + 1)]
                owners += [("b2c", str(UUID(int=number))) for number in range(ACCOUNTS + 1)]
                await connection.execute(SETUP, *map(list, zip(*owners, strict=True)))
                await connection.execute(GRANTS)
                await connection.execute(TIDY_ACCOUNTS)
                await connection.execute("CHECKPOINT")
            finally:
                await connection.close()

        asyncio.run(run())
        with closing(self.redis()) as redis:
            redis.flushall()

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """One statement, by the superuser."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.postgres.url())
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(run())

    def redis(self, database: int = 0) -> Redis:
        return Redis.from_url(self.valkey.url, db=database)

    @property
    def redis_socket(self) -> str:
        return self.valkey.url.removeprefix("unix://")

    def port_of(self, api: str) -> int:
        """Where that API listens; it is started when it is first asked for."""
        if api not in self._apis:
            self._apis[api] = self._started_api(api)
        return self._apis[api][1]

    def cpu_seconds(self, api: str) -> float:
        """What the API's workers have computed so far; its main process only waits for them."""
        return sum(_cpu_seconds(pid) for pid in descendants(self._apis[api][0].pid))

    def pids_of(self, api: str) -> list[int]:
        return descendants(self._apis[api][0].pid)

    def _started_api(self, api: str) -> tuple[subprocess.Popen[bytes], int]:
        extra = {"unbatched": {"WEARON_BATCH_LIMIT": "1"}}.get(api, {})
        if api == "bare":
            extra = {ANSWER_VARIABLE: self._answer_of("no_op")}
        port = free_port()
        process = self.spawn(COMMANDS[api], WEARON_PORT=str(port), **extra)
        eventually(lambda: self._answers(process, port))
        return process, port

    def _answers(self, process: subprocess.Popen[bytes], port: int) -> bool:
        if process.poll() is not None:
            raise Void(f"{process.args!r} exited with {process.returncode}")
        return is_ready(port)

    def _answer_of(self, api: str) -> str:
        """An answer to a submission, as JSON, without what the server adds by itself."""
        with closing(HTTPConnection(HOST, self.port_of(api), timeout=10)) as connection:
            headers = {
                "Authorization": f"Bearer {self.tokens[1]}",
                "Content-Type": "application/json",
            }
            connection.request("POST", GENERATIONS_PATH, BODY, headers)
            answer = connection.getresponse()
            kept = [
                (name, value)
                for name, value in answer.getheaders()
                if name not in {"date", "server", "connection", "transfer-encoding"}
            ]
            body = answer.read().decode()
        return json.dumps({"status": answer.status, "headers": kept, "body": body})

    def spawn(self, command: Sequence[str], **settings: str) -> subprocess.Popen[bytes]:
        """A process in a group of its own that dies with this one."""
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),  # noqa: PLW1509
        )

    @contextmanager
    def worker(self, *, concurrency: int, stamps: Path | None = None) -> Iterator[int]:
        """A worker whose tasks are no work; gives its pid."""
        command = [sys.executable, "-m", "tests.bench.worker", str(concurrency)]
        process = self.spawn(command if stamps is None else [*command, str(stamps)])
        try:
            yield process.pid
            if process.poll() is not None:
                raise Void(f"the worker exited with {process.returncode}")
        finally:
            kill(process)

    def settle(self) -> None:
        """Wait until the APIs have confirmed what they pushed, for that is part of the work."""
        unconfirmed = """
            SELECT count(*) FROM generation_sessions WHERE status = 'queued' AND NOT confirmed"""
        eventually(lambda: self.sql(unconfirmed)[0][0] == 0)

    def check_kept(self, answered: int) -> None:
        """Raises Void unless each of so many 202s has its session, its debit and its task."""
        sessions, debits = self.sql("""
            SELECT (SELECT count(*) FROM generation_sessions),
                (SELECT count(*) FROM credit_ledger WHERE kind = 'debit')""")[0]
        with closing(self.redis()) as redis:
            tasks: Any = redis.llen(TASKS_KEY)
        if not answered <= sessions == debits == tasks:
            raise Void(f"{answered} answers, {sessions} sessions, {debits} debits, {tasks} tasks")

    def fill(self, count: int) -> list[bytes]:
        """So many sessions that wait, paid for; gives the texts of their tasks."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.postgres.url())
            try:
                rows = await connection.fetch(FILL_SESSIONS, count, DEFAULT_PROMPT, BODY)
                await connection.execute(FILL_LEDGER)
                await connection.execute(FILL_ACCOUNTS)
                await connection.execute("UPDATE generation_sessions SET confirmed = true")
                await connection.execute(TIDY)
                await connection.execute("CHECKPOINT")
            finally:
                await connection.close()
            return rows

        return [encode(_task(**row)) for row in asyncio.run(run())]

    def push(self, tasks: Sequence[bytes]) -> None:
        """All of them, the first one to be popped first."""
        with closing(self.redis()) as redis:
            for start in range(0, len(tasks), 1000):
                redis.lpush(TASKS_KEY, *tasks[start : start + 1000])


def tasks(count: int) -> list[bytes]:
    """The texts of so many tasks like those that the API pushes, of sessions that do not exist."""
    now = datetime.now(UTC)
    return [
        encode(
            _task(
                id=uuid7(),
                owner_id=str(1 + number % ACCOUNTS),
                request_id=f"req_{number:024x}",
                created_at=now,
            )
        )
        for number in range(count)
    ]


def _task(*, id: UUID, owner_id: str, request_id: str, created_at: datetime) -> GenerationTask:  # noqa: A002 - as in the row
    session = GenerationSession(
        id=id,
        owner=Owner(channel=Channel.B2B, id=owner_id),
        request_id=request_id,
        input=msgspec.json.decode(BODY, type=GenerationInput),
        created_at=created_at,
    )
    return GenerationTask.of(session, task_id=uuid7())


async def migrated(settings: Settings) -> None:
    """Give the database its tables."""
    container = Container(settings=settings)
    try:
        await container.migrate()
    finally:
        await close(container)


def is_ready(port: int) -> bool:
    """Whether an API says so there."""
    connection = HTTPConnection(HOST, port, timeout=5)
    with closing(connection), suppress(OSError):
        connection.request("GET", "/health/ready")
        return connection.getresponse().status < 300
    return False


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def _cpu_seconds(pid: int) -> float:
    """Of all its threads, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def rss_kb(pid: int) -> int:
    """The memory that is in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def _file_system(folder: Path) -> str:
    """The kind of the one that holds the folder: on a tmpfs an fsync is nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _fsync_us(folder: Path) -> float:
    """The median of some, each after a write to the same place."""
    taken = []
    file = os.open(folder / "fsync", os.O_RDWR | os.O_CREAT)
    for _ in range(_SAMPLES_OF_FSYNC):
        began = time.perf_counter()
        os.pwrite(file, _PAGE, 0)
        os.fsync(file)
        taken.append(time.perf_counter() - began)
    os.close(file)
    return sorted(taken)[len(taken) // 2] * 1e6
