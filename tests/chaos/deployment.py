"""Servers, an API of two processes and two workers. Each can be killed, and proxies carry all
traffic between them."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar
from urllib.parse import quote
from uuid import UUID

import asyncpg
from aiohttp import ClientSession, web
from redis.asyncio import Redis

from adapters.auth.user_tokens import mint_user_token
from adapters.embedded.postgres import DATABASE, PORT, USER
from adapters.embedded.valkey import SOCKET_NAME
from config import policies
from config.loading import load_settings
from domain.credits import Channel, Owner
from tests.support import servers
from tests.support.images import encoded
from tests.support.processes import children
from tests.support.proxy import HOST, Proxy
from tests.system.deployment import Deployment, eventually, free_port, kill

P = ParamSpec("P")
T = TypeVar("T")

WORKER = ("worker", "tests.chaos.worker")
PARTS = {"api": ("serve", "entrypoints.cli"), "worker-1": WORKER, "worker-2": WORKER}
"""The programs by name, and the command that starts each, with its module."""
ACCOUNTS = {
    Owner(channel=Channel.B2B, id="hot-shop"): 100_000,
    Owner(channel=Channel.B2B, id="quiet-shop"): 100_000,
    Owner(channel=Channel.B2C, id="0198c0de-0000-7000-8000-000000000011"): 100_000,
    Owner(channel=Channel.B2C, id="0198c0de-0000-7000-8000-000000000012"): 10,
}
"""The accounts, and the credits granted to each."""
HOT, QUIET, SHOPPING_USER, POOR_USER = ACCOUNTS
PAGE = "https://shop.example"
SHOPPERS, PICTURES = 3, 12
"""The shoppers of HOT, and the pictures that the client token of each allows."""
SETTINGS = {
    "WEARON_API_WORKERS": "2",
    "WEARON_DATABASE_CONNECTIONS": "5",
    "WEARON_MAX_ACTIVE": "15",
    "WEARON_LEASE_SECONDS": "2",
    "WEARON_MAX_ATTEMPTS": "4",
    "WEARON_ATTEMPT_SECONDS": "5",
    "WEARON_BACKOFF_BASE_SECONDS": "0.5",
    "WEARON_BACKOFF_CAP_SECONDS": "2",
    "WEARON_PROVIDER_PATIENCE_SECONDS": "10",
    "WEARON_STORAGE_PATIENCE_SECONDS": "10",
    "WEARON_DRAIN_SECONDS": "5",
    "WEARON_RECOVERY_SECONDS": "0.5",
    "WEARON_REQUEUE_AFTER_SECONDS": "5",
    "WEARON_EXTERNAL_WORKER_TIMEOUT_SECONDS": "6",
    "WEARON_QUEUE_TTL_SECONDS": "60",
    "WEARON_FETCH_SECONDS": "3",
    "WEARON_LOCAL_GENERATOR_SECONDS": "0.5",
    # Counted, and never reached.
    "WEARON_RATE_PER_MINUTE": "default=1000000",
    "WEARON_RATE_PER_HOUR": "default=1000000",
    "WEARON_REFUNDS_PER_HOUR": "1000000",
    "WEARON_SHOPPER_REFUNDS_PER_HOUR": "1000000",
}
START_SECONDS = 5.0
"""After its start or its SIGCONT, a program takes this long to be ready for a SIGTERM."""
READY_SECONDS = 60.0
"""An API is ready within this time, also on a machine that does other work."""
WORKING_SECONDS = 30.0
"""A program that was started works within this time, unless the database is away."""
STOP_SECONDS = 20.0
"""A program stops within this time after a SIGTERM."""
SQL_SECONDS = 5.0
NO_DATABASE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises while a database is being stopped or killed."""
PICTURE = "/model.png"
MOODS = ("fine", "fine", "fine", "slow", "busy", "gone")
"""How the picture's server answers."""
EXTERNAL = "external"
"""The application name of the external consumer's connection."""

_HISTORY = """
    CREATE TABLE chaos_history (
        number bigint GENERATED ALWAYS AS IDENTITY, session_id uuid, was text, is_now text,
        attempt integer, lease_was_alive boolean, written_by text, written_at timestamptz);
    CREATE FUNCTION chaos_record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_history (
            session_id, was, is_now, attempt, lease_was_alive, written_by, written_at)
        VALUES (NEW.id, OLD.status, NEW.status, NEW.attempt,
            coalesce(OLD.lease_expires_at > now(), false), current_setting('application_name'),
            clock_timestamp());
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_records AFTER UPDATE ON generation_sessions
        FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION chaos_record();"""
"""Every change of a status, and the program that made it, which the session's row does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One life of a program. Its processes count in files below ``folder``."""

    program: str
    name: str
    """As the history of the database has it."""
    folder: Path
    log: Path
    metrics_port: int


class Stage:
    """What runs. All blocking calls share one thread, and the processes die with that thread."""

    def __init__(self, folder: Path, thread: ThreadPoolExecutor) -> None:
        self.deployment = Deployment(folder)
        self.tokens: dict[Owner, str] = {}
        self.client_tokens: list[str] = []
        """Client tokens of shoppers of HOT."""
        self.picture_url = ""
        self.popped: list[bytes | str] = []
        """The raw tasks that the external consumer popped."""
        self.postgres: Proxy
        self.redis: Proxy
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._expected_to_end: set[str] = set()
        self.starts: list[Start] = []
        self._started: dict[str, Start] = {}
        """The latest start of each program."""
        self._awake_since: dict[str, float] = {}
        self._thread = thread

    async def blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def mount_pictures(self, *, usable: bool) -> None:
        """Make the folder of the pictures a link to a folder, or to something that is none."""
        disk = self.deployment.folder / "disk"
        disk.mkdir(exist_ok=True)
        data = self.deployment.folder / "data"
        data.mkdir(exist_ok=True)
        link = data / "new"
        link.symlink_to(disk if usable else os.devnull)
        link.replace(data / "pictures")

    async def open(self, stack: AsyncExitStack) -> None:
        self.mount_pictures(usable=True)
        await self.blocking(self.deployment.start_servers)
        sockets = self.deployment.postgres.sockets, self.deployment.valkey.sockets
        self.postgres = await stack.enter_async_context(
            Proxy(sockets[0] / f".s.PGSQL.{PORT}").running()
        )
        self.redis = await stack.enter_async_context(Proxy(sockets[1] / SOCKET_NAME).running())
        self.picture_url = await stack.enter_async_context(_pictures())
        await self.blocking(
            self.deployment.prepare,
            DATABASE_URL=self._database_url("operator"),
            REDIS_URL=self.redis_url,
            **SETTINGS,
        )
        async with self.sql() as sql:
            await sql.execute(_HISTORY)
        for owner, amount in ACCOUNTS.items():
            self.tokens[owner] = await self.blocking(self._new_account, owner, amount)
        for name in PARTS:
            await self.start(name)
        await self.is_ready()
        self.client_tokens = [await self._new_client_token(number) for number in range(SHOPPERS)]

    @property
    def url(self) -> str:
        return self.deployment.url

    @property
    def redis_url(self) -> str:
        return f"redis://{HOST}:{self.redis.port}"

    @property
    def settle_bound_seconds(self) -> float:
        settings = load_settings(self.deployment.environ)
        work, recovery = policies.work(settings), policies.recovery(settings)
        interval = timedelta(seconds=settings.recovery_seconds)
        return recovery.settle_bound(work, interval=interval).total_seconds()

    async def is_ready(self) -> None:
        """Wait until the API is ready."""
        await self.blocking(
            eventually,
            lambda: self.deployment.get("/health/ready").status == 200,
            seconds=READY_SECONDS,
        )

    async def start(self, name: str) -> None:
        self._expected_to_end.discard(name)
        start = self._new_start(name)
        self.starts.append(start)  # Before any wait: the number of the next start follows.
        command, module = PARTS[name]
        self._parts[name] = await self.blocking(
            self.deployment.start_logging_to,
            start.log,
            command,
            module=module,
            DATABASE_URL=self._database_url(start.name),
            WEARON_METRICS_PORT=str(start.metrics_port),
            TMPDIR=str(start.folder),
        )
        self._started[name] = start
        self._awake_since[name] = time.monotonic()

    def _new_start(self, program: str) -> Start:
        number = len(self.starts) + 1
        folder = self.deployment.folder / f"start-{number}"
        folder.mkdir()
        return Start(
            program=program,
            name=f"{program}, start {number}",
            folder=folder,
            log=self.deployment.folder / f"{program}-{number}.log",
            metrics_port=free_port(),
        )

    def latest(self, name: str) -> Start:
        return self._started[name]

    async def works(self, name: str) -> None:
        """Wait until a started program uses the database, at most WORKING_SECONDS."""
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        deadline = time.monotonic() + WORKING_SECONDS
        while time.monotonic() < deadline:
            with suppress(*NO_DATABASE):
                async with self.sql() as sql:
                    if await sql.fetchval(count, self._started[name].name):
                        return
            await asyncio.sleep(0.2)

    async def kill(self, name: str) -> None:
        """Kill a program and all its processes."""
        self._expected_to_end.add(name)
        await self.blocking(kill, self._parts[name])

    async def kill_a_child(self, name: str) -> None:
        """Kill one of a program's child processes; the program may end because of that."""
        self._expected_to_end.add(name)
        for pid in (await self.blocking(children, self._parts[name].pid))[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def terminate(self, name: str) -> int | None:
        """Send SIGTERM to a program, once it is ready for it. Returns its exit code, or None if it
        did not end in time and was killed."""
        await asyncio.sleep(self._awake_since[name] + START_SECONDS - time.monotonic())
        self._expected_to_end.add(name)
        process = self._parts[name]
        process.send_signal(signal.SIGTERM)
        try:
            return await self.blocking(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            await self.kill(name)
            return None

    def signal(self, name: str, signum: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP or SIGCONT, to all processes of a program."""
        if self._parts[name].poll() is None:
            os.killpg(self._parts[name].pid, signum)
        self._awake_since[name] = time.monotonic()

    async def revive(self) -> list[str]:
        """Restart the programs that have ended. Returns those that ended without a fault."""
        ended = [name for name, process in self._parts.items() if process.poll() is not None]
        unexpected = [name for name in ended if name not in self._expected_to_end]
        for name in ended:
            await self.kill(name)
            await self.start(name)
        return unexpected

    @asynccontextmanager
    async def sql(self, name: str = "chaos") -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection that bypasses the proxies."""
        connection = await asyncpg.connect(
            self.deployment.postgres.url(),
            timeout=SQL_SECONDS,
            command_timeout=SQL_SECONDS * 3,
            server_settings={"application_name": name},
        )
        try:
            yield connection
        finally:
            connection.terminate()

    def valkey(self, password: str | None = None) -> Redis:
        """A client that bypasses the proxies."""
        path = str(self.deployment.valkey.sockets / SOCKET_NAME)
        return Redis(unix_socket_path=path, password=password, socket_timeout=SQL_SECONDS)

    def log_of(self, *words: str) -> list[str]:
        """The lines of our programs' logs that contain one of ``words``."""
        found = []
        for path in self.deployment.folder.glob("*.log"):
            with path.open(errors="replace") as lines:
                found += [line.rstrip() for line in lines if any(word in line for word in words)]
        return found

    def _database_url(self, name: str) -> str:
        """The URL for one program, whose name the history records with its changes."""
        address = f"{USER}@{HOST}:{self.postgres.port}/{DATABASE}"
        return f"postgresql://{address}?application_name={quote(name)}"

    async def _new_client_token(self, number: int) -> str:
        asked = {
            "shopper_id": f"shopper-{number}",
            "origin": PAGE,
            "pictures": PICTURES,
            "lifetime_seconds": 3_600,
        }
        headers = {"Authorization": f"Bearer {self.tokens[HOT]}"}
        url = f"{self.url}/api/v1/client-tokens"
        async with ClientSession() as http, http.post(url, json=asked, headers=headers) as answer:
            token: str = (await answer.json())["data"]["client_token"]
            return token

    def _new_account(self, owner: Owner, amount: int) -> str:
        """Grant the credits. Returns a token of the owner."""
        kind = "--store" if owner.channel is Channel.B2B else "--user"
        if owner.channel is Channel.B2B:
            self.deployment.wearon(
                "stores", "create", owner.id, "--name", owner.id, "--origin", PAGE
            )
        self.deployment.wearon("credits", "grant", kind, owner.id, str(amount))
        if owner.channel is Channel.B2B:
            made = self.deployment.wearon("keys", "create", "--store", owner.id, "--json")
            key: str = json.loads(made.stdout)["key"]
            return key
        settings = load_settings(self.deployment.environ)
        rules = policies.jwt(settings)
        return mint_user_token(
            UUID(owner.id), rules=rules, now=datetime.now(UTC), lifetime=timedelta(days=1)
        )


@asynccontextmanager
async def deployed() -> AsyncIterator[Stage]:
    """Everything, running; afterwards nothing of it is left."""
    with servers.folder() as folder, ThreadPoolExecutor(1) as thread:
        stage = Stage(folder, thread)
        try:
            async with AsyncExitStack() as stack:
                await stage.open(stack)
                yield stage
        finally:
            await stage.blocking(stage.deployment.close)


@asynccontextmanager
async def _pictures() -> AsyncIterator[str]:
    """The URL of the model picture of all requests. Its query is one of MOODS."""
    picture, random = encoded("PNG", size=(64, 96)), Random(0)

    async def answer(request: web.Request) -> web.Response:
        match request.query_string:
            case "slow":
                await asyncio.sleep(random.uniform(0.5, 2.5))
            case "busy" if random.random() < 0.5:
                return web.Response(status=503)
            case "gone":
                return web.Response(status=404)
        return web.Response(body=picture, content_type="image/png")

    app = web.Application()
    app.router.add_get(PICTURE, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{HOST}:{port}{PICTURE}"
    finally:
        await runner.cleanup()
