"""Everything on one machine, for development: servers, migration, API, worker and who uses them."""

import asyncio
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
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

from config.container import Container, close
from config.logging import configure_logging
from config.servers import EmbeddedUnavailable, die_with_parent, servers
from config.settings import Settings, load_settings
from domain.credits import Channel, Owner
from entrypoints.http.request_info import merge_request_info
from entrypoints.http.server import application, serve_http
from entrypoints.worker import build_worker

DEMO_CREDITS = 100
READY_SECONDS = 30.0
STOP_SECONDS = 40.0
_TOKEN_LIFETIME = timedelta(days=30)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who uses a development stack, and its secrets. Kept with the data, readable by us only."""

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
    """A running stack, as one uses it from outside."""

    url: str
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
    """``wearon dev``: run until Ctrl-C, SIGTERM or the end of a part."""
    try:
        with failing_clearly(), stack(os.environ, port, data_dir) as (running, parts):
            click.echo(banner(running))
            while all(part.poll() is None for part in parts):
                time.sleep(0.2)
            raise StackFailed("A part of the stack ended; its messages are above.")
    except KeyboardInterrupt:
        click.echo("\nStopped.")


def run_in_memory(port: int) -> None:
    """``wearon dev --in-memory``: one process and no server; all is gone at exit."""
    identity = new_identity()
    environ = (
        _environment(os.environ, identity, port)
        | {"WEARON_STORE": "memory", "WEARON_QUEUE": "memory", "WEARON_STORAGE": "memory"}
        | {"WEARON_API_WORKERS": "1", _IDENTITY: msgspec.json.encode(identity).decode()}
    )
    settings = load_settings(environ)
    _check(settings)
    os.environ.update(environ)
    serve_http(settings, target="entrypoints.dev:in_memory_app")


def in_memory_app() -> Litestar:
    """API and worker in one process, seeded and announced when it starts."""
    # granian's main process, killed, would leave this one serving.
    die_with_parent(signal.SIGTERM, os.getppid())
    settings = load_settings(os.environ)
    configure_logging(settings, merge_request_info)
    container = Container(settings=settings)
    identity = msgspec.json.decode(os.environ[_IDENTITY], type=Identity)

    @asynccontextmanager
    async def with_worker(_: Litestar) -> AsyncIterator[None]:
        await _seed(container, identity)
        worker = build_worker(container, concurrency=None, recovery=True)
        working = asyncio.create_task(worker.run())
        # An API whose worker has crashed looks alive and does nothing: end the main process.
        working.add_done_callback(lambda _: os.kill(os.getppid(), signal.SIGTERM))
        announcing = asyncio.create_task(_announce(_stack(container, identity, data_dir=None)))
        yield
        announcing.cancel()
        worker.stop()
        await working

    return application(container, with_worker)


@contextmanager
def stack(
    environ: Mapping[str, str], port: int, data_dir: Path, *, output: IO[bytes] | None = None
) -> Iterator[tuple[Stack, list[subprocess.Popen[bytes]]]]:
    """A running stack and its processes; all of it stops at the end, also of a killed parent.

    ``output`` is where the processes write their messages; None: where ours go.
    Raises ``EmbeddedUnavailable`` and ``StackFailed``.
    """
    data_dir = made_folder(data_dir)
    identity = _kept_identity(data_dir / "identity.json")
    environ = _environment(environ, identity, port) | {
        "WEARON_STORE": "postgres",
        "WEARON_QUEUE": "redis",
        "WEARON_STORAGE": "local",
        "WEARON_DATA_DIR": str(data_dir),
    }
    _check(load_settings(environ))  # what is wrong with them is said before anything starts
    with servers(environ, data_dir) as urls:
        environ |= urls
        running = asyncio.run(_prepare(load_settings(environ), identity))
        _keep_environment(data_dir / "env", environ)
        with _processes(environ, output) as parts:
            _wait_until_ready(running.url, parts, output)
            yield running, parts


def _check(settings: Settings) -> None:
    """Raises SettingsError where the chosen generator lacks what it needs."""
    for name in settings.for_generator:
        settings.require(name)


async def _announce(running: Stack) -> None:
    """Print the banner once the API, which starts after its lifespan, can be reached."""
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
    """The stack did not start or did not do its work; ``str(error)`` is for whoever started it."""


def banner(running: Stack) -> str:
    """What to do with a running stack, ready to paste."""
    identity, url = running.identity, running.url
    samples = f"{url}/samples"
    body = (
        f'{{"model_image_url": "{samples}/model.png", "outfit_image_url": "{samples}/outfit.png"}}'
    )
    if running.data_dir is None:
        kept = "Everything is in this process's memory and gone when it stops."
    else:
        kept = (
            f"Data is kept in {running.data_dir}; the next start finds it again.\n"
            f"The other commands, in another terminal, after:\n"
            f"  set -a; . {shlex.quote(str(running.data_dir / 'env'))}; set +a"
        )
    return f"""
wearon is ready: {url}    API documentation: {url}/schema

A user's try-on ({DEMO_CREDITS} credits were granted):
  curl -s {url}/api/v1/generations -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer {running.user_token}' \\
    -d '{body}'

A store's ({identity.store_id}):
  curl -s {url}/api/v1/generations -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer {identity.api_key}' \\
    -d '{body}'

Then GET the status_url of the answer with the same header.
{kept}
Ctrl-C stops all of it.
"""


_IDENTITY = "_WEARON_IDENTITY"
"""Carries the identity from granian's main process to the in-memory application."""


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _environment(environ: Mapping[str, str], identity: Identity, port: int) -> dict[str, str]:
    """The environment with settings for development. Its own go before those that are a matter
    of taste, but not before those that say what runs where."""
    taste = {
        "WEARON_LOG_FORMAT": "console",
        "WEARON_JWT_SECRET": identity.jwt_secret,
        "WEARON_SIGNING_SECRET": identity.signing_secret,
    }
    given = {name: value for name, value in environ.items() if value.strip()}
    return (
        taste
        | given
        | {
            "WEARON_ENVIRONMENT": "development",
            "WEARON_FETCH_ALLOW_LOOPBACK": "true",
            "WEARON_HOST": "127.0.0.1",
            "WEARON_PORT": str(port),
            "WEARON_PUBLIC_URL": _url(port),
        }
    )


def _stack(container: Container, identity: Identity, *, data_dir: Path | None) -> Stack:
    settings: Settings = container.settings()
    token = container.user_token(
        identity.user_id, now=container.clock()(), lifetime=_TOKEN_LIFETIME
    )
    return Stack(url=settings.public_url, user_token=token, identity=identity, data_dir=data_dir)


async def _prepare(settings: Settings, identity: Identity) -> Stack:
    container = Container(settings=settings)
    try:
        await container.migrate()
        await container.queue().depth()  # Redis, too, has to answer before anything is started
        await _seed(container, identity)
        return _stack(container, identity, data_dir=settings.data_dir)
    finally:
        await close(container)


async def _seed(container: Container, identity: Identity) -> None:
    """The demo user and store with their key, and with credits wherever they have none left."""
    for owner in (identity.user, identity.store):
        await container.grants().top_up(owner, DEMO_CREDITS, note="demo credits")
    await container.key_issuer().register(identity.api_key, identity.store, label="demo")


def _kept_identity(path: Path) -> Identity:
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Identity)
        except msgspec.DecodeError as error:
            raise StackFailed(f"{path} is damaged: remove it and get new credentials") from error
    identity = new_identity()
    _write_private(path, msgspec.json.format(msgspec.json.encode(identity)).decode())
    return identity


def _keep_environment(path: Path, environ: Mapping[str, str]) -> None:
    """A file to source, so that other commands find this stack."""
    names = ("DATABASE_URL", "REDIS_URL", *(name for name in environ if name.startswith("WEARON_")))
    _write_private(path, "".join(f"{name}={shlex.quote(environ[name])}\n" for name in names))


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


@contextmanager
def _processes(
    environ: Mapping[str, str], output: IO[bytes] | None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    parts: list[subprocess.Popen[bytes]] = []
    try:
        for command in ("serve", "worker"):
            parts.append(  # noqa: PERF401 - what was started must be stopped if the next one fails
                subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-P", "-m", "entrypoints.cli", command],
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509 - one thread
                )
            )
        yield parts
    finally:
        _stop(parts)


def _stop(parts: list[subprocess.Popen[bytes]]) -> None:
    """Let them finish what they do; who takes too long is killed, which loses nothing."""
    for part in parts:
        part.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for part in parts:
        try:
            part.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.kill()
            part.wait()


def _wait_until_ready(
    url: str, parts: list[subprocess.Popen[bytes]], output: IO[bytes] | None
) -> None:
    messages = "above" if output is None else f"in {output.name}"
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if any(part.poll() is not None for part in parts):
            raise StackFailed(f"A part of the stack did not start; its messages are {messages}.")
        try:
            with urlopen(f"{url}/health/ready", timeout=2):  # noqa: S310 - our own API
                return
        except OSError:
            time.sleep(0.02)
    raise StackFailed(
        f"The API was not ready within {READY_SECONDS:.0f} s; its messages are {messages}."
    )


def made_folder(path: Path) -> Path:
    """The folder, as an absolute path. Raises ``StackFailed`` if we may not write to it."""
    path = path.resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackFailed(f"--data-dir {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StackFailed(f"--data-dir {path}: not ours to write to")
    return path


@contextmanager
def failing_clearly() -> Iterator[None]:
    """One line instead of a traceback; SIGTERM is an interruption like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except EmbeddedUnavailable as error:
        raise StackFailed(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
