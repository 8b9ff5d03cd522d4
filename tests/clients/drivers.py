"""Three clients behind one call: Python's two and the TypeScript one."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.clients.fake import FakeApi, fake_api
from tests.docs.pages import ROOT
from wearon_client import AsyncWearon, Retries, Wearon, WearonError
from wearon_client.models import Session

PYTHON = ROOT / "clients" / "python"
TYPESCRIPT = ROOT / "clients" / "typescript"
TSC = TYPESCRIPT / "node_modules" / ".bin" / "tsc"
HARNESS = Path(__file__).with_name("harness.mjs")
TOKEN = "wk_example"
RETRIES: dict[str, Any] = {
    "attempts": 4,
    "total_seconds": 10.0,
    "base_seconds": 0.01,
    "max_seconds": 0.05,
}


@dataclass(slots=True)
class Outcome:
    """How a call ended: with a result, or an error's public fields; and the updates on the way."""

    result: Any = None
    error: dict[str, Any] | None = None
    updates: list[Session] = field(default_factory=list)

    @property
    def refusal(self) -> dict[str, Any]:
        assert self.error, f"no error, but {self.result}"
        return self.error


class Driver(Protocol):
    def call(
        self,
        url: str,
        method: str,
        *args: Any,
        retries: dict[str, Any] | None = None,
        idle_seconds: float = 5.0,
        token: str = TOKEN,
        **options: Any,
    ) -> Outcome:
        """Make a client and call one of its methods, by its Python name."""


OPENED: Any = {"opened": True}
"""Among the updates: a stream of all sessions is open."""


def _given(args: tuple[Any, ...], method: str, outcome: Outcome) -> list[Any]:
    return [*args, outcome.updates.append] if method.startswith("subscribe") else [*args]


def _told(options: dict[str, Any], method: str, outcome: Outcome) -> dict[str, Any]:
    if method != "subscribe_all":
        return options
    return {**options, "on_open": lambda: outcome.updates.append(OPENED)}


def _described(error: WearonError) -> dict[str, Any]:
    fields = {"name": type(error).__name__, "message": str(error), **vars(error)}
    return {"session_id": None, "idempotency_key": None, **fields}


class SyncDriver:
    def call(
        self,
        url: str,
        method: str,
        *args: Any,
        retries: dict[str, Any] | None = None,
        idle_seconds: float = 5.0,
        token: str = TOKEN,
        **options: Any,
    ) -> Outcome:
        outcome = Outcome()
        limits = Retries(**(RETRIES | (retries or {})))
        with Wearon(url, token, retries=limits, idle_seconds=idle_seconds) as client:
            try:
                given = _given(args, method, outcome)
                told = _told(options, method, outcome)
                outcome.result = getattr(client, method)(*given, **told)
            except WearonError as error:
                outcome.error = _described(error)
        return outcome


class AsyncDriver:
    def call(
        self,
        url: str,
        method: str,
        *args: Any,
        retries: dict[str, Any] | None = None,
        idle_seconds: float = 5.0,
        token: str = TOKEN,
        **options: Any,
    ) -> Outcome:
        outcome = Outcome()
        limits = Retries(**(RETRIES | (retries or {})))

        async def called() -> None:
            given = _given(args, method, outcome)
            async with AsyncWearon(url, token, retries=limits, idle_seconds=idle_seconds) as client:
                told = _told(options, method, outcome)
                outcome.result = await getattr(client, method)(*given, **told)

        try:
            asyncio.run(called())
        except WearonError as error:
            outcome.error = _described(error)
        return outcome


class NodeDriver:
    """The TypeScript client in a process of Node."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def call(
        self,
        url: str,
        method: str,
        *args: Any,
        retries: dict[str, Any] | None = None,
        idle_seconds: float = 5.0,
        token: str = TOKEN,
        **options: Any,
    ) -> Outcome:
        limits = RETRIES | (retries or {})
        target = {"base_url": url, "token": token, "retries": limits, "idle_seconds": idle_seconds}
        return self.ask(target=target, method=method, args=args, options=options)

    def ask(self, **asked: Any) -> Outcome:
        assert self._process.stdin
        assert self._process.stdout
        text = json.dumps({"options": {}, "args": [], **asked}, default=_base64)
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def _base64(value: object) -> str:
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


def require_node() -> str:
    """The program. Without it or the packages the test is skipped, except in CI."""
    missing = missing_for_node()
    if missing and os.environ.get("CI"):
        pytest.fail(f"{missing} is missing")
    if missing:
        pytest.skip(f"{missing} is missing")
    return "node"


def missing_for_node() -> str:
    """What the TypeScript client lacks here, or nothing."""
    if _node_version() < 20:
        return "Node 20 or newer"
    return "" if TSC.exists() else "the compiler of clients/typescript (make setup)"


@cache
def _node_version() -> int:
    if not (program := shutil.which("node")):
        return 0
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return int(done.stdout.removeprefix("v").partition(".")[0])


@contextmanager
def node_driver(modules: Path) -> Iterator[NodeDriver]:
    command = [require_node(), str(HARNESS), f"{modules.as_uri()}/"]
    pipes = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with pipes(command) as process:
        yield NodeDriver(process)
        if process.stdin:
            process.stdin.close()
        process.wait(10)


def at_once(clients: list[Driver], check: Callable[[Driver, FakeApi], None]) -> None:
    """Check several clients side by side, each with a server of its own: for what takes time."""

    def checked(client: Driver) -> None:
        try:
            with fake_api() as api:
                check(client, api)
        except BaseException as error:
            error.add_note(f"with {type(client).__name__}")
            raise

    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in pool.map(checked, clients):
            pass
