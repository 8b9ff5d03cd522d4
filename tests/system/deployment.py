"""A whole wearon out of real processes, which a test may stop, kill and start as it likes."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import UUID

import asyncpg
from redis import Redis

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.parent import die_with_parent

DEADLINE_SECONDS = 30.0
T = TypeVar("T")

USER_ID = UUID("5e0f9a3c-7a39-4b07-9d5c-0f4f6d1f2a11")
STORE_ID = "corner-shop"


def eventually(look: Callable[[], T], *, seconds: float = DEADLINE_SECONDS) -> T:
    """What ``look`` returns as soon as that is true; fails the test if it stays false."""
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
    """Servers, API and workers. Everything that was started is stopped by ``close``."""

    folder: Path
    postgres: EmbeddedPostgres = field(init=False)
    valkey: EmbeddedValkey = field(init=False)
    port: int = field(init=False)
    environ: dict[str, str] = field(init=False)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.postgres = EmbeddedPostgres(self.folder / "postgres", durable=False)
        self.valkey = EmbeddedValkey(self.folder / "valkey", durable=False)
        self.port = free_port()

    def open(self, **settings: str) -> None:
        """Servers, migration, a user and a store with 100 credits each, and the API."""
        self.start_servers()
        self.prepare(**settings)
        self.start("serve")
        eventually(lambda: self.get("/health/ready").status == 200)

    def start_servers(self) -> None:
        self.postgres.start()
        self.valkey.start()

    def prepare(self, **settings: str) -> None:
        """Everything that the API and workers need besides servers."""
        self.environ = {
            **os.environ,
            "DATABASE_URL": self.postgres.url(),
            "REDIS_URL": self.valkey.url,
            "WEARON_ENVIRONMENT": "development",
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
        self.wearon("migrate")
        self.wearon("credits", "grant", "--user", str(USER_ID), "100")
        self.wearon("credits", "grant", "--store", STORE_ID, "100")
        key = json.loads(self.wearon("keys", "create", "--store", STORE_ID, "--json").stdout)
        self.tokens = {"b2b": key["key"], "b2c": self._user_token()}

    def close(self) -> None:
        for process in self.processes:
            kill(process)
        self.valkey.stop()
        self.postgres.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wearon(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; it has to succeed unless ``check`` is off."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "entrypoints.cli", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own, which dies with the thread that starts
        it; its messages go to a log file."""
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "entrypoints.cli", *arguments],
                env=self.environ | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),  # noqa: PLW1509
            )
        self.processes.append(process)
        return process

    def get(self, path: str, channel: str = "b2c") -> Answer:
        return self._call(Request(self.url + path, headers=self._headers(channel)))

    def submit(self, channel: str = "b2c", **fields: Any) -> Answer:
        """Ask for a picture of the sample model, with ``fields`` besides."""
        body = {"model_image_url": f"{self.url}/samples/model.png", **fields}
        data = json.dumps(body).encode()
        return self._call(Request(f"{self.url}/api/v1/generations", data, self._headers(channel)))

    def session(self, session_id: str, channel: str = "b2c") -> dict[str, Any]:
        session: dict[str, Any] = self.get(f"/api/v1/generations/{session_id}", channel).data
        return session

    def wait_for(self, session_id: str, *statuses: str, channel: str = "b2c") -> dict[str, Any]:
        """The session, once its status is one of ``statuses``."""

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
        """A plain client, as another system's consumer would use."""
        return Redis.from_url(self.valkey.url)

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """One statement, as another system's consumer would send it."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.postgres.url())
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(run())

    def assert_books_are_right(self) -> None:
        """``wearon credits verify``, which recomputes everything, finds nothing."""
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

    def _headers(self, channel: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.tokens[channel]}",
            "Content-Type": "application/json",
        }

    def _call(self, request: Request) -> Answer:
        try:
            response = urlopen(request, timeout=DEADLINE_SECONDS)
        except HTTPError as error:
            response = error
        except (URLError, ConnectionError):  # Refused, or reset by an API that is just starting.
            return Answer(0, {}, {})
        with closing(response):
            return Answer(response.status, dict(response.headers), json.load(response))


def kill(process: subprocess.Popen[bytes], signum: signal.Signals = signal.SIGKILL) -> int:
    """Send ``signum`` to the process and all that it started; returns its exit code."""
    if process.poll() is None:
        os.killpg(process.pid, signum)
    return process.wait(DEADLINE_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
