"""``wearon webhooks listen``: signed webhooks for a receiver that the internet does not reach.

A developer's tool: no endpoint is created, and nothing is tried again. It follows the caller's
sessions at a running API (``GET /api/v1/events``) and posts what ends to a URL on this machine.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from itertools import chain
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener
from uuid import UUID

import rich_click as click

from adapters.webhooks.secrets import new_webhook_secret
from config.printable import printable
from domain.endpoints import WebhookEvent
from domain.signatures import message, signed_headers

ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""A stream sends a ping every 45 s."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
MAX_LINE_BYTES = 1_000_000
MAX_REMEMBERED = 10_000
MAX_PAGES = 4
PAGE = 50

Say = Callable[[str], None]


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is a failure, as it is for real webhooks; and no other host gets the key."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


_open = build_opener(_NoRedirect(), ProxyHandler({})).open


def forward(api: str, forward_to: str, *, key: str, count: int | None) -> None:
    """Forward until ``count`` sessions were forwarded; None is for ever. Raises
    ``ClickException``."""
    secret = new_webhook_secret()
    say(f"Secret of this run: {secret}")
    forwarder = Forwarder(forward_to, secret=secret, say=say)
    Follower(Api(api, key), forwarder, say=say).run(count=count)


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    click.echo(printable(line))
    sys.stdout.flush()


class Api:
    """The calls of the API that are needed. The key goes into a header only."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}

    def events(self) -> HTTPResponse:
        """An open stream of what changes from now on."""
        return self._open("/api/v1/events", SILENCE_SECONDS)

    def newest(self) -> Iterator[dict[str, Any]]:
        """The caller's newest sessions, newest first, up to MAX_PAGES pages."""
        path = f"/api/v1/generations?limit={PAGE}"
        cursor = ""
        for _ in range(MAX_PAGES):
            with self._open(path + cursor, ANSWER_SECONDS) as response:
                page = json.load(response)["data"]
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = f"&cursor={page['next_cursor']}"

    def _open(self, path: str, timeout_seconds: float) -> HTTPResponse:
        request = Request(self._url + path, headers=self._headers)  # noqa: S310 - checked
        response: HTTPResponse = _open(request, timeout=timeout_seconds)
        return response


class Forwarder:
    """Posts sessions that ended, each once."""

    def __init__(self, url: str, *, secret: str, say: Say) -> None:
        self._url = url
        self._secret = secret
        self._say = say
        self._known: dict[str, None] = {}
        self.count = 0

    def is_news(self, session: dict[str, Any]) -> bool:
        """Whether the session, as the API shows it, ended and was not seen so before."""
        session_id = session["session_id"]
        if session["status"] not in {"completed", "failed"} or session_id in self._known:
            return False
        self._known[session_id] = None
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        return True

    def offer(self, session: dict[str, Any]) -> None:
        """Forward the session if its end is news."""
        if self.is_news(session):
            at = datetime.fromisoformat(session["completed_at"])
            event = WebhookEvent(f"generation.{session['status']}")
            self.count += 1
            self._forward(event, UUID(session["session_id"]), at, session)

    def _forward(
        self, event: WebhookEvent, session_id: UUID, at: datetime, session: dict[str, Any]
    ) -> None:
        body = message(event, at, json.dumps(session, separators=(",", ":")).encode())
        now = datetime.now(UTC)
        headers = signed_headers(body, delivery_id=session_id, at=now, secrets=[self._secret])
        headers |= {"Content-Type": "application/json", "User-Agent": "wearon"}
        began = time.monotonic()
        answer = self._post(Request(self._url, body, headers))  # noqa: S310 - checked
        milliseconds = round((time.monotonic() - began) * 1000)
        clock = now.strftime("%H:%M:%S")
        self._say(f"{clock}  {event}  {session_id}  {answer}  {milliseconds} ms")

    def _post(self, request: Request) -> str:
        """The status of the answer, or why there is none."""
        try:
            with _open(request, timeout=ANSWER_SECONDS) as response:
                return str(response.status)
        except HTTPError as error:
            with error:
                return f"{error.code} (a webhook would be sent again)"
        except (OSError, HTTPException) as error:
            return f"no answer: {_reason(error)}"


class Follower:
    """Follows the caller's sessions, over as many streams as it takes."""

    def __init__(self, api: Api, forwarder: Forwarder, *, say: Say) -> None:
        self._api = api
        self._forwarder = forwarder
        self._say = say
        self._pause = FIRST_PAUSE_SECONDS

    def run(self, *, count: int | None = None) -> None:
        """Until ``count`` sessions were forwarded; None is for ever. Raises ``ClickException`` if
        the API refuses, or does not answer the first call."""
        self._skip_history()
        while not self._is_enough(count):
            try:
                with self._api.events() as stream:
                    self._follow(stream, count)
            except HTTPError as error:
                with error:
                    self._pause = max(self._pause, _pause_of(error))
            except (OSError, HTTPException) as error:
                self._say(f"Lost the API ({_reason(error)}); trying again.")
            if not self._is_enough(count):
                time.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _skip_history(self) -> None:
        """What ended before the run is no news."""
        try:
            for session in self._api.newest():
                self._forwarder.is_news(session)
        except HTTPError as error:
            with error:
                raise _refused(error) from error
        except (OSError, HTTPException) as error:
            raise click.ClickException(f"The API does not answer: {_reason(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException("The answer is not that of this API.") from error

    def _follow(self, stream: HTTPResponse, count: int | None) -> None:
        """Forward until the stream ends, or ``count`` is reached. A stream does not resume: the
        list has what ended before it was open."""
        self._say("Listening.")
        for session in chain(self._api.newest(), states(stream)):
            self._forwarder.offer(session)
            self._pause = FIRST_PAUSE_SECONDS
            if self._is_enough(count):
                return

    def _is_enough(self, count: int | None) -> bool:
        return count is not None and self._forwarder.count >= count


def states(stream: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The sessions in a stream of server-sent events
    (https://html.spec.whatwg.org/#event-stream-interpretation); other events are skipped."""
    event, data = "", b""
    while line := stream.readline(MAX_LINE_BYTES):
        name, _, value = line.rstrip(b"\r\n").partition(b":")
        match name:
            case b"event":
                event = value.strip().decode(errors="replace")
            case b"data":
                data += value
            case b"" if not value and line.strip() == b"":
                if event == "generation":
                    yield json.loads(data)
                event, data = "", b""


def _pause_of(error: HTTPError) -> float:
    """How long to wait. Raises ``ClickException`` for what no waiting changes."""
    if error.code in {429, 503}:
        after = error.headers.get("Retry-After", "")
        return min(float(after) if after.isdigit() else 1.0, 60.0)
    if error.code >= 500:
        return 1.0
    raise _refused(error)


def _refused(error: HTTPError) -> click.ClickException:
    return click.ClickException(f"The API answered {error.code}: {_message_of(error)}")


def _message_of(error: HTTPError) -> str:
    try:
        return printable(str(json.loads(error.read(MAX_LINE_BYTES))["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return error.reason


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return printable(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
