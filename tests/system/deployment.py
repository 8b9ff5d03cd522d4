"""A whole deployment of real processes, which a test can stop, kill and start."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import UUID

import asyncpg
from redis import Redis

from adapters.credits.postgres import PostgresCreditRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.parent import die_with_parent
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, Owner

DEADLINE_SECONDS = 30.0
T = TypeVar("T")

USER_ID = UUID("5e0f9a3c-7a39-4b07-9d5c-0f4f6d1f2a11")
STORE_ID = "corner-shop"
OWNERS = (Owner(channel=Channel.B2C, id=str(USER_ID)), Owner(channel=Channel.B2B, id=STORE_ID))
CREDITS = 100


def eventually(look: Callable[[], T], *, seconds: float = DEADLINE_SECONDS) -> T:
    """The first true result of ``look``; fails the test if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r} after {seconds} s"
        time.sleep(0.02)
    return seen


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def data(self) -> Any:
        return self.body["data"]


@dataclass(slots=True)
class Deployment:
    """Servers, API and workers. ``close`` stops everything that was started."""

    folder: Path
    postgres: EmbeddedPostgres = field(init=False)
    valkey: EmbeddedValkey = field(init=False)
    port: int = field(init=False)
    environ: dict[str, str] = field(init=False)
    api: subprocess.Popen[bytes] | None = None
    """Where ``url`` leads."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """The others."""
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.postgres = EmbeddedPostgres(self.folder / "postgres", durable=False)
        self.valkey = EmbeddedValkey(self.folder / "valkey", durable=False)
        self.port = free_port()

    def open(self) -> None:
        """Servers, migration, a user and a store with 100 credits each, and the API."""
        self.start_servers()
        self.prepare()
        self._start_api()

    def wait_until_ready(self) -> None:
        eventually(lambda: self.get("/health/ready").status == 200)

    def clear(self) -> None:
        """As ``open`` left it, for the next tests: no sessions, no tasks, no log lines, and the
        same credits."""
        asyncio.run(self._clear_database())
        with closing(self.redis()) as redis:
            redis.flushall()
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)

    async def _clear_database(self) -> None:
        database = Database(self.postgres.url(), limits=DatabaseLimits())
        try:
            await database.fetch(
                "TRUNCATE credit_accounts, credit_ledger, generation_sessions, client_tokens,"
                " webhook_endpoints, webhook_deliveries, webhook_attempts, workers, pauses"
            )
            for owner in OWNERS:
                await PostgresCreditRepo(database).grant(owner, CREDITS, note="test")
        finally:
            await database.close()

    @contextmanager
    def started(self) -> Iterator[None]:
        """Ends the processes that are started meanwhile."""
        before = len(self.processes)
        try:
            yield
        finally:
            while len(self.processes) > before:
                kill(self.processes.pop())

    @contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Other settings for the API, which is started again, and for all processes meanwhile."""
        before = self.environ
        kill(self.api)
        self.environ = before | settings
        try:
            self._start_api()
            yield
        finally:
            kill(self.api)
            self.environ = before
            self._start_api()

    def _start_api(self) -> None:
        self.api = self.start("serve")
        self.processes.remove(self.api)
        self.wait_until_ready()

    def start_servers(self) -> None:
        self.postgres.start()
        self.valkey.start()

    def configure(self, **settings: str) -> None:
        """The settings of all processes."""
        self.environ = {
            **os.environ,
            "DATABASE_URL": self.postgres.url(),
            "REDIS_URL": self.valkey.url,
            "WEARON_ENVIRONMENT": "development",
            "WEARON_GENERATOR": "local",
            "WEARON_FETCH_ALLOW_LOOPBACK": "true",
            "WEARON_DATA_DIR": str(self.folder / "data"),
            "WEARON_PORT": str(self.port),
            "WEARON_PUBLIC_URL": self.url,
            "WEARON_JWT_SECRET": secrets.token_hex(32),
            "WEARON_SIGNING_SECRET": secrets.token_hex(32),
            "WEARON_REQUEUE_AFTER_SECONDS": "5",
            "WEARON_RECOVERY_SECONDS": "0.2",
            "WEARON_LEASE_SECONDS": "1.5",
            **settings,
        }

    def prepare(self, **settings: str) -> None:
        """Settings, migration, credits and tokens."""
        self.configure(**settings)
        self.wearon("migrate")
        self.wearon("credits", "grant", "--user", str(USER_ID), str(CREDITS))
        self.wearon("stores", "create", STORE_ID, "--name", STORE_ID)
        self.wearon("credits", "grant", "--store", STORE_ID, str(CREDITS))
        key = json.loads(self.wearon("keys", "create", "--store", STORE_ID, "--json").stdout)
        self.tokens = {"b2b": key["key"], "b2c": self._user_token()}

    def close(self) -> None:
        for process in (self.api, *self.processes):
            kill(process)
        self.valkey.stop()
        self.postgres.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wearon(
        self, *arguments: str, check: bool = True, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; it has to succeed unless ``check`` is off."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "entrypoints.cli", *arguments],
            env=self.environ | settings,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(
        self, *arguments: str, module: str = "entrypoints.cli", **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start the command of ``module`` in a process group of its own, which ends with the thread
        that starts it. Its output goes to a log file."""
        path = self.folder / f"{arguments[0]}.log"
        return self.start_logging_to(path, *arguments, module=module, **settings)

    def start_logging_to(
        self, path: Path, /, *arguments: str, module: str, **settings: str
    ) -> subprocess.Popen[bytes]:
        """The same with another log file."""
        with path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                env=self.environ | settings,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),  # noqa: PLW1509
            )
        self.processes.append(process)
        return process

    def get(self, path: str, channel: str = "b2c") -> Answer:
        return self.call(Request(self.url + path, headers=self.headers(channel)))

    def submit(self, channel: str = "b2c", **fields: Any) -> Answer:
        """Submit a generation for the sample model, with further ``fields``."""
        body = {"model_image_url": f"{self.url}/samples/model.png", **fields}
        data = json.dumps(body).encode()
        return self.call(Request(f"{self.url}/api/v1/generations", data, self.headers(channel)))

    def session(self, session_id: str, channel: str = "b2c") -> dict[str, Any]:
        session: dict[str, Any] = self.get(f"/api/v1/generations/{session_id}", channel).data
        return session

    def wait_for(self, session_id: str, *statuses: str, channel: str = "b2c") -> dict[str, Any]:
        """The session, as soon as its status is one of ``statuses``."""

        def look() -> dict[str, Any] | None:
            session = self.session(session_id, channel)
            return session if session["status"] in statuses else None

        return eventually(look) or {}

    def balance(self, channel: str = "b2c") -> int:
        balance: int = self.get("/api/v1/credits", channel).data["balance"]
        return balance

    def entries(self, session_id: str, channel: str = "b2c") -> list[str]:
        """The kinds of a session's ledger entries, oldest first."""
        items = self.get("/api/v1/credits/ledger?limit=50", channel).data["items"]
        return [item["kind"] for item in reversed(items) if item["session_id"] == session_id]

    def redis(self) -> Redis:
        """A plain client, as an external consumer uses."""
        return Redis.from_url(self.valkey.url)

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement, as an external consumer does."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.postgres.url())
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(run())

    def assert_books_are_right(self) -> None:
        """``wearon credits verify`` recomputes all balances and finds no difference."""
        verified = self.wearon("credits", "verify", check=False)
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def _user_token(self) -> str:
        code = (
            "import os, datetime, uuid\n"
            "from config.container import Container\n"
            "from config.loading import load_settings\n"
            "container = Container(settings=load_settings(os.environ))\n"
            f"print(container.user_token()(uuid.UUID('{USER_ID}'), now=container.clock()(),"
            " lifetime=datetime.timedelta(hours=1)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_SECONDS,
        )
        return done.stdout.strip()

    def headers(self, channel: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.tokens[channel]}",
            "Content-Type": "application/json",
        }

    def call(self, request: Request) -> Answer:
        """Send it; status 0 if the API does not answer."""
        try:
            response = urlopen(request, timeout=DEADLINE_SECONDS)
        except HTTPError as error:
            response = error
        except (URLError, ConnectionError):  # Refused, or reset by an API that is just starting.
            return Answer(0, {}, {})
        with closing(response):
            return Answer(response.status, dict(response.headers), json.load(response))

    def insist(self, request: Request) -> Answer:
        """Send it until the answer is no 503, as a client would: such an answer has cost nothing,
        and a machine that is busy with other tests may give it. Fails the test after the deadline,
        with the last answer."""

        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := self.call(request)).status == 503:
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        return answer


def kill(process: subprocess.Popen[bytes] | None, signum: signal.Signals = signal.SIGKILL) -> int:
    """Send ``signum`` to the process, if there is one, and to its children; returns its exit
    code."""
    if process is None:
        return 0
    if process.poll() is None:
        os.killpg(process.pid, signum)
    return process.wait(DEADLINE_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
