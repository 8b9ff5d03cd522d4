"""``wearon demo``: two try-ons from end to end over HTTP, reported step by step."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import rich_click as click

from domain.sessions import SessionStatus
from entrypoints.dev import Stack, StackFailed, make_folder, readable_errors, stack

SETTLE_SECONDS = {"local": 60.0, "openai": 600.0, "replicate": 600.0}
POLL_SECONDS = 0.1
REQUEST_SECONDS = 10.0


def run_demo(data_dir: Path, provider: str, base_url: str | None) -> None:
    """Run one try-on for a user and one for a store. Raises ``StackFailed`` unless both complete.

    ``provider`` is a value of ``WEARON_GENERATOR``; ``base_url`` replaces its usual address.
    """
    started = time.monotonic()
    click.echo("Starting PostgreSQL, a Redis-protocol server, the API and a worker ...")
    with (
        readable_errors(),
        _log(data_dir) as log,
        stack(_environment(provider, base_url), _free_port(), data_dir, output=log) as (running, _),
    ):
        click.echo(f"Ready after {time.monotonic() - started:.1f} s: {running.url}\n")
        callers = (
            ("a user (b2c, JWT)", running.user_token, ("hat",)),
            ("a store (b2b, API key)", running.identity.api_key, ("hat", "bag")),
        )
        settle_seconds = SETTLE_SECONDS[provider]
        pictures = [_try_on(running, settle_seconds, *caller) for caller in callers]
    click.echo("Pictures:")
    for picture in pictures:
        click.echo(f"  {picture}")
    click.echo(
        f"\nDone in {time.monotonic() - started:.1f} s. `wearon dev` starts a stack that stays."
    )


def _environment(provider: str, base_url: str | None) -> dict[str, str]:
    """Our environment without settings, so that the demo is the same everywhere and uses no
    existing database. The settings of the chosen provider stay."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if (provider != "local" and name.startswith(f"WEARON_{provider.upper()}_"))
        or not (name.startswith("WEARON_") or name in {"DATABASE_URL", "REDIS_URL"})
    }
    if base_url is not None:
        environ[f"WEARON_{provider.upper()}_BASE_URL"] = base_url
    return environ | {"WEARON_GENERATOR": provider}


def _try_on(
    running: Stack, settle_seconds: float, caller: str, token: str, accessories: Sequence[str]
) -> Path:
    """Returns the file of the picture."""
    api = _Api(running.url, token)
    click.echo(f"-- {caller}")
    before = api.get("/api/v1/credits")["balance"]
    answer = api.post(
        "/api/v1/generations",
        {
            "model_image_url": f"{running.url}/samples/model.png",
            "outfit_image_url": f"{running.url}/samples/outfit.png",
            "accessories": [
                {"type": name, "url": f"{running.url}/samples/{name}.png"} for name in accessories
            ],
        },
    )
    after = answer["credits_remaining"]
    click.echo(f"   202 session {answer['session_id']}, credits {before} -> {after}")
    session = _wait(api, answer, settle_seconds)
    _print_timeline(session)
    _print_usage(session)
    _print_ledger(api, answer["session_id"])
    if session["status"] != SessionStatus.COMPLETED:
        raise StackFailed(f"The session failed: {session['error_code']} {session['error_message']}")
    return _picture(running, session["generated_image_url"])


class _Api:
    """A client of the API that unwraps the envelope."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        return self._call(Request(self._url + path, headers=self._headers))  # noqa: S310 - http

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        data = json.dumps(body).encode()
        return self._call(Request(self._url + path, data, self._headers))  # noqa: S310 - http

    def _call(self, request: Request) -> Any:  # noqa: ANN401 - JSON
        return json.loads(_read(request))["data"]


def _read(request: Request | str) -> bytes:
    """The body of the response. Raises ``StackFailed`` unless the request succeeds."""
    try:
        with urlopen(request, timeout=REQUEST_SECONDS) as response:  # noqa: S310 - our own API
            body: bytes = response.read()
            return body
    except HTTPError as error:
        with error:
            raise StackFailed(f"The API answered {error.code}: {error.read().decode()}") from error
    except OSError as error:
        raise StackFailed(f"The API does not answer: {error}") from error


def _wait(api: _Api, session: dict[str, Any], settle_seconds: float) -> dict[str, Any]:
    """Poll the session until it is final, printing each new status."""
    path = urlsplit(session["status_url"]).path
    printed = None
    deadline = time.monotonic() + settle_seconds
    while time.monotonic() < deadline:
        if session["status"] != printed:
            printed = session["status"]
            click.echo(f"   {printed}")
        if SessionStatus(session["status"]).is_final:
            return session
        time.sleep(POLL_SECONDS)
        session = api.get(path)
    raise StackFailed(f"The session did not end within {settle_seconds:.0f} s.")


def _print_timeline(session: dict[str, Any]) -> None:
    """Print when the session entered each status, in seconds since the request."""
    times = {
        "queued": session["created_at"],
        "processing": session["started_at"],
        session["status"]: session["completed_at"],
    }
    start = datetime.fromisoformat(session["created_at"])
    click.echo("   timeline")
    for status, at in times.items():
        if at is not None:
            seconds = (datetime.fromisoformat(at) - start).total_seconds()
            click.echo(f"     +{seconds:6.3f} s  {status}")


def _print_usage(session: dict[str, Any]) -> None:
    if session["input_tokens"] is not None:
        click.echo(
            f"   used {session['input_tokens']} + {session['output_tokens']} tokens,"
            f" about {session['estimated_cost_usd']} USD"
        )


def _print_ledger(api: _Api, session_id: str) -> None:
    click.echo("   ledger (newest first)")
    for entry in api.get("/api/v1/credits/ledger?limit=5")["items"]:
        mark = "  <- this session" if entry["session_id"] == session_id else ""
        click.echo(f"     {entry['kind']:<7} {entry['amount']:+4}{mark}")
    click.echo(f"   balance {api.get('/api/v1/credits')['balance']}\n")


def _picture(running: Stack, url: str) -> Path:
    """Download the picture as a client would, and return the file that the API served."""
    served = _read(url)
    key = unquote(urlsplit(url).path).removeprefix("/files/")
    if running.data_dir is None:
        raise StackFailed("A stack in memory stores no files.")
    path = running.data_dir / "pictures" / key
    if path.read_bytes() != served:
        raise StackFailed(f"{path} differs from what the API served.")
    return path


@contextmanager
def _log(data_dir: Path) -> Iterator[IO[bytes]]:
    """The log file of the stack's processes, which keeps the demo's own output readable."""
    with (make_folder(data_dir) / "demo.log").open("wb") as file:
        yield file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
