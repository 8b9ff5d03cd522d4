"""The stage of a benchmark: durable servers, and the processes that are measured on them."""

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

from adapters.auth.api_keys import key_sha256, new_api_key
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.parent import die_with_parent
from adapters.queue.payload import encode
from adapters.queue.redis import TASKS_KEY
from config.closing import close
from config.container import Container
from config.loading import load_settings
from config.settings import Settings
from domain.credits import Channel, Owner
from domain.sessions import DEFAULT_PROMPT, GenerationInput, GenerationSession
from domain.tasks import GenerationTask
from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench.load import BODY, HOST, Void
from tests.bench.targets import ANSWER_VARIABLE
from tests.support.processes import family
from tests.system.deployment import eventually, free_port, kill

ROOT = Path(__file__).parents[2]
ACCOUNTS = 1_000
"""Accounts that share the load. The hot account, number 0, is an additional one."""
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
"""The command of each API."""

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

# Queued sessions as submissions leave them, with ids that pgbench can compute.
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
# Not the empty table of sessions: VACUUM would record it as empty, which no real server does.
TIDY_ACCOUNTS = "VACUUM ANALYZE credit_ledger, credit_accounts, api_keys"
FILL_ACCOUNTS = """
    UPDATE credit_accounts AS account
    SET balance = balance - sessions, total_debited = total_debited + sessions
    FROM (SELECT channel, owner_id, count(*) AS sessions FROM generation_sessions GROUP BY 1, 2)
        AS debited
    WHERE (account.channel, account.owner_id) = (debited.channel, debited.owner_id)"""


class Stage:
    """``close`` stops all processes and deletes the data.

    ``callers`` says who submits: ``stores`` with API keys, which are looked up in the database,
    ``users`` with tokens, or ``both`` in turn.
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
        """Start servers with our tables, accounts with credits, and credentials for them."""
        self.postgres.start()
        self.valkey.start()
        self.environ = self._environment()
        asyncio.run(migrate_database(self.settings))
        self._make_callers()
        self.reset()

    def _environment(self) -> dict[str, str]:
        """The environment of wearon's processes: production, but without limits for callers."""
        ours = {name: value for name, value in os.environ.items() if "WEARON_" not in name}
        return ours | {
            "DATABASE_URL": self.postgres.url(),
            "REDIS_URL": self.valkey.url,
            "WEARON_DATA_DIR": str(self.folder / "data"),
            "WEARON_JWT_SECRET": secrets.token_hex(32),
            "WEARON_SIGNING_SECRET": secrets.token_hex(32),
            "WEARON_MAX_ACTIVE": "1000000",
            "WEARON_MAX_WAITING": "100000000",
            # Checked and counted for every request, and never reached.
            "WEARON_RATE_PER_MINUTE": "default=100000000",
            "WEARON_RATE_PER_HOUR": "default=100000000",
            "WEARON_REFUNDS_PER_HOUR": "1000000",
            "WEARON_READS_PER_MINUTE": "1000000",
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
        """Facts about the servers that the figures depend on. Raises ``Void`` if commits are not
        durable."""
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
            container.user_token()(UUID(int=number), now=now, lifetime=day)
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
        """Restore the initial data, vacuumed and checkpointed."""

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
        """Run one statement as the superuser."""

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
        """The port of that API, which is started at the first call."""
        if api not in self._apis:
            self._apis[api] = self._start_api(api)
        return self._apis[api][1]

    def cpu_seconds(self, api: str) -> float:
        """CPU time of the API's processes so far."""
        return sum(cpu_seconds_of(pid) for pid in self.pids_of(api))

    def pids_of(self, api: str) -> list[int]:
        return family(self._apis[api][0].pid)

    def _start_api(self, api: str) -> tuple[subprocess.Popen[bytes], int]:
        extra = {"unbatched": {"WEARON_BATCH_LIMIT": "1"}}.get(api, {})
        if api == "bare":
            extra = {ANSWER_VARIABLE: self._sample_response("no_op")}
        port = free_port()
        process = self.spawn(COMMANDS[api], WEARON_PORT=str(port), **extra)
        eventually(lambda: self._is_ready(process, port))
        return process, port

    def _is_ready(self, process: subprocess.Popen[bytes], port: int) -> bool:
        if process.poll() is not None:
            raise Void(f"{process.args!r} exited with {process.returncode}")
        return is_ready(port)

    def _sample_response(self, api: str) -> str:
        """The response to a submission as JSON, without the headers that the HTTP server adds."""
        with closing(HTTPConnection(HOST, self.port_of(api), timeout=10)) as connection:
            headers = {
                "Authorization": f"Bearer {self.tokens[1]}",
                "Content-Type": "application/json",
            }
            connection.request("POST", GENERATIONS_PATH, BODY, headers)
            response = connection.getresponse()
            headers_of_api = [
                (name, value)
                for name, value in response.getheaders()
                if name not in {"date", "server", "connection", "transfer-encoding"}
            ]
            body = response.read().decode()
        return json.dumps({"status": response.status, "headers": headers_of_api, "body": body})

    def spawn(self, command: Sequence[str], **settings: str) -> subprocess.Popen[bytes]:
        """Start a process in its own group, which dies with this process."""
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
    def worker(
        self, *, concurrency: int, stamps: Path | None = None, **settings: str
    ) -> Iterator[int]:
        """Run a worker whose tasks take no time; yields its pid."""
        command = [sys.executable, "-m", "tests.bench.worker", str(concurrency)]
        process = self.spawn(command if stamps is None else [*command, str(stamps)], **settings)
        try:
            yield process.pid
            if process.poll() is not None:
                raise Void(f"the worker exited with {process.returncode}")
        finally:
            kill(process)

    def wait_until_confirmed(self) -> None:
        """Wait until the APIs have confirmed their pushes, which is part of their work."""
        unconfirmed = """
            SELECT count(*) FROM generation_sessions WHERE status = 'queued' AND NOT confirmed"""
        eventually(lambda: self.sql(unconfirmed)[0][0] == 0)

    def check_stored(self, answered: int) -> None:
        """Raises ``Void`` unless each of this many 202s has its session, debit and task."""
        sessions, debits, tasks = self._stored()
        if not answered <= sessions == debits == tasks:
            raise Void(f"{answered} answers, {sessions} sessions, {debits} debits, {tasks} tasks")

    def check_nothing_stored(self) -> None:
        """Raises ``Void`` if an API that should store nothing did."""
        if any(stored := self._stored()):
            raise Void("no answer, {} sessions, {} debits, {} tasks".format(*stored))

    def _stored(self) -> tuple[int, int, int]:
        """The numbers of sessions, debits and tasks."""
        sessions, debits = self.sql("""
            SELECT (SELECT count(*) FROM generation_sessions),
                (SELECT count(*) FROM credit_ledger WHERE kind = 'debit')""")[0]
        with closing(self.redis()) as redis:
            tasks: Any = redis.llen(TASKS_KEY)
        return sessions, debits, tasks

    def fill(self, count: int) -> list[bytes]:
        """Create this many queued and paid sessions; returns the encoded tasks."""

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
        """Push encoded tasks; the first is popped first."""
        with closing(self.redis()) as redis:
            for start in range(0, len(tasks), 1000):
                redis.lpush(TASKS_KEY, *tasks[start : start + 1000])


def tasks(count: int) -> list[bytes]:
    """Encoded tasks like those that the API pushes, for sessions that do not exist."""
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


async def migrate_database(settings: Settings) -> None:
    container = Container(settings=settings)
    try:
        await container.migrate()()
    finally:
        await close(container)


def is_ready(port: int) -> bool:
    """Whether the API at this port is ready."""
    connection = HTTPConnection(HOST, port, timeout=5)
    with closing(connection), suppress(OSError):
        connection.request("GET", "/health/ready")
        return connection.getresponse().status < 300
    return False


def cpu_seconds_of(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def rss_kb(pid: int) -> int:
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def _file_system(folder: Path) -> str:
    """The type of the file system that contains the folder: on a tmpfs, fsync does nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _fsync_us(folder: Path) -> float:
    """The median time of a write and its fsync, repeated at the same place."""
    times = []
    file = os.open(folder / "fsync", os.O_RDWR | os.O_CREAT)
    for _ in range(_SAMPLES_OF_FSYNC):
        started_at = time.perf_counter()
        os.pwrite(file, _PAGE, 0)
        os.fsync(file)
        times.append(time.perf_counter() - started_at)
    os.close(file)
    return sorted(times)[len(times) // 2] * 1e6
