"""The development stack on one machine: servers, migration, API, worker and demo credentials."""

import asyncio
import hashlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import UUID

import msgspec
import rich_click as click
from litestar import Litestar
from msgspec.structs import replace

from config.closing import close
from config.console import access
from config.container import Container
from config.loading import load_settings
from config.logging import configure_logging
from config.processes import ending_with_us
from config.servers import EmbeddedUnavailable, servers
from config.settings import Settings
from domain.credits import Channel, Owner
from entrypoints.http.request_info import merge_request_info
from entrypoints.http.server import application, serve_http
from entrypoints.worker import build_worker

DEMO_CREDITS = 100
READY_SECONDS = 30.0
STOP_SECONDS = 40.0
_TOKEN_LIFETIME = timedelta(days=30)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The demo user and store of a stack, and its secrets. Stored with the data, in a file that
    only our user can read."""

    user_id: UUID
    store_id: str
    api_key: str
    jwt_secret: str
    signing_secret: str

    @property
    def user(self) -> Owner:
        return Owner(channel=Channel.B2C, id=str(self.user_id))

    @property
    def store(self) -> Owner:
        return Owner(channel=Channel.B2B, id=self.store_id)


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A running stack, as its clients see it. ``console_link`` signs in to the console, if it
    runs."""

    url: str
    console_link: str | None = None
    user_token: str
    identity: Identity
    data_dir: Path | None


def new_identity() -> Identity:
    return Identity(
        user_id=UUID("0198c0de-0000-7000-8000-000000000001"),
        store_id="demo-store",
        api_key=Container.new_api_key(),
        jwt_secret=secrets.token_hex(32),
        signing_secret=secrets.token_hex(32),
    )


def run_stack(port: int, data_dir: Path) -> None:
    """``wearon dev``: run until Ctrl-C, SIGTERM or the end of a process of the stack."""
    try:
        with (
            readable_errors(),
            stack(os.environ, port, data_dir, with_console=True) as (running, processes),
        ):
            click.echo(banner(running))
            while all(process.poll() is None for process in processes):
                time.sleep(0.2)
            raise StackFailed("A process of the stack ended; see its output above.")
    except KeyboardInterrupt:
        click.echo("\nStopped.")


def run_in_memory(port: int) -> None:
    """``wearon dev --in-memory``: one process, no servers, and no data left at exit."""
    identity = new_identity()
    environ = (
        _environment(os.environ, identity, port)
        | {"WEARON_DATABASE": "memory", "WEARON_QUEUE": "memory", "WEARON_STORAGE": "memory"}
        | {"WEARON_API_WORKERS": "1"}
    )
    settings = load_settings(environ)
    _require_provider_key(settings)
    serve_http(settings, partial(_in_memory_app, settings, identity))


def _in_memory_app(settings: Settings, identity: Identity) -> Litestar:
    """API and worker in one process, with the demo accounts."""
    configure_logging(settings, merge_request_info)
    container = Container(settings=settings)

    @asynccontextmanager
    async def with_worker(_: Litestar) -> AsyncIterator[None]:
        await _seed(container, identity)
        worker = build_worker(container, concurrency=None, recovery=True)
        working = asyncio.create_task(worker.run())
        # An API whose worker has crashed would look healthy, so stop the API as well.
        working.add_done_callback(lambda _: signal.raise_signal(signal.SIGTERM))
        running = replace(_running_stack(container, identity, data_dir=None), console_link=None)
        announcement = asyncio.create_task(_print_banner_when_ready(running))
        yield
        announcement.cancel()
        worker.stop()
        await working

    return application(container, with_worker)


@contextmanager
def stack(
    environ: Mapping[str, str],
    port: int,
    data_dir: Path,
    *,
    output: IO[bytes] | None = None,
    with_console: bool = False,
) -> Iterator[tuple[Stack, list[subprocess.Popen[bytes]]]]:
    """A running stack and its processes. All of it stops at the end, or if we are killed.

    The processes write to ``output``, or to our own output if that is None.
    Raises ``EmbeddedUnavailable`` and ``StackFailed``.
    """
    data_dir = make_folder(data_dir)
    identity = _load_identity(data_dir / "identity.json")
    environ = _environment(environ, identity, port) | {
        "WEARON_DATABASE": "postgres",
        "WEARON_QUEUE": "redis",
        "WEARON_STORAGE": "local",
        "WEARON_DATA_DIR": str(data_dir),
    }
    _require_provider_key(load_settings(environ))  # report wrong settings before anything starts
    with servers(environ, data_dir) as urls:
        environ |= urls
        running = asyncio.run(_prepare(load_settings(environ), identity))
        _write_environment(data_dir / "env", environ)
        with _stopping() as processes:
            for command in ("serve", "worker"):
                processes.append(_start(command, environ, output))
            _wait_until_ready(running.url, processes, output)
            if with_console:  # last, because the others should not wait for it
                processes.append(_start("console", environ, output))
            else:
                running = replace(running, console_link=None)
            yield running, processes


def _require_provider_key(settings: Settings) -> None:
    """Raises ``SettingsError`` if the chosen generator has no key."""
    for name in settings.for_generator:
        settings.require(name)


async def _print_banner_when_ready(running: Stack) -> None:
    """The API accepts connections only after its lifespan has started."""
    parts = urlsplit(running.url)
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
    click.echo(banner(running))


class StackFailed(click.ClickException):
    """The stack did not start or did not work. The message is shown to the user."""


def banner(running: Stack) -> str:
    """How to use a running stack, with commands to paste."""
    identity, url = running.identity, running.url
    samples = f"{url}/samples"
    body = (
        f'{{"model_image_url": "{samples}/model.png", "outfit_image_url": "{samples}/outfit.png"}}'
    )
    if running.data_dir is None:
        data = "All data is in this process's memory and is lost when it stops."
    else:
        data = (
            f"Data is stored in {running.data_dir}; the next start continues with it.\n"
            f"To use the other commands in another terminal, first run:\n"
            f"  set -a; . {shlex.quote(str(running.data_dir / 'env'))}; set +a"
        )
    console = f"\nConsole, signed in: {running.console_link}" if running.console_link else ""
    return f"""
wearon is ready: {url}    API documentation: {url}/schema{console}

Try it in a browser, as the demo user:
  {url}/playground#token={running.user_token}

A try-on of a user, who has {DEMO_CREDITS} credits at first:
  curl -s {url}/api/v1/generations -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer {running.user_token}' \\
    -d '{body}'

A try-on of a store ({identity.store_id}):
  curl -s {url}/api/v1/generations -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer {identity.api_key}' \\
    -d '{body}'

Then GET the status_url of the response with the same Authorization header.
{data}
Ctrl-C stops everything.
"""


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _environment(environ: Mapping[str, str], identity: Identity, port: int) -> dict[str, str]:
    """The environment with development settings: the caller's variables override our defaults,
    except those that decide what runs where."""
    defaults = {
        "WEARON_LOG_FORMAT": "console",
        "WEARON_JWT_SECRET": identity.jwt_secret,
        "WEARON_SIGNING_SECRET": identity.signing_secret,
        "WEARON_CONSOLE_SECRET": _derived(identity.signing_secret, "console"),
        "WEARON_CONSOLE_PORT": str(_free_port(port + 1)),
    }
    given = {name: value for name, value in environ.items() if value.strip()}
    given.pop("WEARON_METRICS_PORT", None)  # One port cannot serve both the API and the worker.
    return (
        defaults
        | given
        | {
            "WEARON_ENVIRONMENT": "development",
            "WEARON_FETCH_ALLOW_LOOPBACK": "true",
            "WEARON_HOST": "127.0.0.1",
            "WEARON_CONSOLE_HOST": "127.0.0.1",
            "WEARON_PORT": str(port),
            "WEARON_PUBLIC_URL": _url(port),
        }
    )


def _derived(secret: str, name: str) -> str:
    """Another secret, which is stored nowhere."""
    return hashlib.sha256(f"{name} {secret}".encode()).hexdigest()


def _free_port(wanted: int) -> int:
    """``wanted``, or any other port if that one is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    return wanted


def _running_stack(container: Container, identity: Identity, *, data_dir: Path | None) -> Stack:
    token = container.user_token()(
        identity.user_id, now=container.clock()(), lifetime=_TOKEN_LIFETIME
    )
    settings = container.settings()
    entry = f"console/developer/{access(container).developer_token()}"
    return Stack(
        url=settings.public_url,
        console_link=f"{_url(settings.console_port)}/{entry}",
        user_token=token,
        identity=identity,
        data_dir=data_dir,
    )


async def _prepare(settings: Settings, identity: Identity) -> Stack:
    container = Container(settings=settings)
    try:
        await container.migrate()()
        await container.queue().depth()  # Redis must answer as well before anything starts
        await _seed(container, identity)
        return _running_stack(container, identity, data_dir=settings.data_dir)
    finally:
        await close(container)


async def _seed(container: Container, identity: Identity) -> None:
    """Create the demo store and its key, and grant credits to it and to the demo user if they have
    none left."""
    await container.stores().ensure(identity.store)
    for owner in (identity.user, identity.store):
        await container.grants().top_up(owner, DEMO_CREDITS, note="demo credits")
    await container.key_issuer().register(identity.api_key, identity.store, label="demo")


def _load_identity(path: Path) -> Identity:
    """The identity stored at ``path``, or a new one."""
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Identity)
        except msgspec.DecodeError as error:
            raise StackFailed(f"{path} is damaged: delete it to get new credentials") from error
    identity = new_identity()
    _write_private(path, msgspec.json.format(msgspec.json.encode(identity)).decode())
    return identity


def _write_environment(path: Path, environ: Mapping[str, str]) -> None:
    """Write a file to source, with which other commands use this stack."""
    names = ("DATABASE_URL", "REDIS_URL", *(name for name in environ if name.startswith("WEARON_")))
    _write_private(path, "".join(f"{name}={shlex.quote(environ[name])}\n" for name in names))


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


@contextmanager
def _stopping() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes to stop at the end, also if another one does not start."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        _stop(processes)


def _start(
    command: str, environ: Mapping[str, str], output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-m", "entrypoints.cli", command],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=ending_with_us(),  # noqa: PLW1509 - one thread
    )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let each process drain; kill those that take too long, which loses nothing."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(
    url: str, processes: list[subprocess.Popen[bytes]], output: IO[bytes] | None
) -> None:
    place = "above" if output is None else f"in {output.name}"
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise StackFailed(f"A process of the stack did not start; see its output {place}.")
        try:
            with urlopen(f"{url}/health/ready", timeout=2):  # noqa: S310 - our own API
                return
        except OSError:
            time.sleep(0.02)
    raise StackFailed(
        f"The API was not ready within {READY_SECONDS:.0f} s; see its output {place}."
    )


def make_folder(path: Path, *, option: str = "--data-dir") -> Path:
    """Make the folder if it does not exist, and return its absolute path. Raises ``StackFailed``,
    which names the ``option``, if we may not write to it."""
    path = path.resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackFailed(f"{option} {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StackFailed(f"{option} {path}: not writable")
    return path


@contextmanager
def readable_errors() -> Iterator[None]:
    """Report a missing server in one line instead of a traceback, and treat SIGTERM like Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except EmbeddedUnavailable as error:
        raise StackFailed(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
