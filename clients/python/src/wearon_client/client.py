"""The synchronous client."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import TIMEOUT_MAX, Timer
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from wearon_client.calls import Calls
from wearon_client.models import (
    BatchItem,
    BatchResult,
    NewGeneration,
    Session,
    SessionPage,
    Submitted,
)
from wearon_client.options import (
    FOLLOW_SECONDS,
    IDLE_SECONDS,
    MAX_RESPONSE_BYTES,
    WAIT_SECONDS,
    Target,
    Token,
)
from wearon_client.retries import Retries
from wearon_client.steps import Deliver, Flow, Lost, Opened, Read, Reply, Request, Sleep

T = TypeVar("T")
OnUpdate = Callable[[Session], object]
OnOpen = Callable[[], object]


class Wearon:
    """A caller of the API at ``base_url``, with a user's token, a store's API key (``wk_...``), or
    a function that returns the current one. Threads may share it. Close it, or use it in ``with``.

    Every method raises `ApiError` if the API refuses a request, and `ConnectionFailed` if no
    response came, both after the retries that make sense."""

    def __init__(
        self,
        base_url: str,
        token: Token,
        *,
        retries: Retries | None = None,
        idle_seconds: float = IDLE_SECONDS,
        http: httpx2.Client | None = None,
    ) -> None:
        self._target = Target(base_url=base_url, token=token)
        self._calls = Calls(retries=retries or Retries(), idle_seconds=idle_seconds)
        self._http = http or httpx2.Client()

    def submit(self, request: NewGeneration, *, idempotency_key: str | None = None) -> Submitted:
        """Create a generation. All tries carry one idempotency key, so it is charged once."""
        return self._run(self._calls.submit(request, idempotency_key))

    def submit_and_wait(
        self,
        request: NewGeneration,
        *,
        idempotency_key: str | None = None,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> Session:
        """Create a generation and return its session once that is ``completed`` or ``failed``.
        Raises WaitTimeout."""
        return self._run(self._calls.submit_and_wait(request, idempotency_key, timeout_seconds))

    def wait(self, session_id: str, *, timeout_seconds: float = WAIT_SECONDS) -> Session:
        """The session once it is final. Raises WaitTimeout."""
        return self._run(self._calls.wait(session_id, timeout_seconds))

    def subscribe(
        self,
        session_id: str,
        on_update: OnUpdate,
        *,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> Session:
        """Call ``on_update`` with the session's current state and each newer one, the final one
        included, and return that. States may be skipped, and never go backwards. Lost connections
        are made again. Raises WaitTimeout."""
        states = self._run(self._calls.subscribe([session_id], timeout_seconds), on_update)
        return states[session_id]

    def subscribe_many(
        self,
        session_ids: Sequence[str],
        on_update: OnUpdate,
        *,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> dict[str, Session]:
        """The same for up to 100 sessions over one connection; returns their final states."""
        return self._run(self._calls.subscribe(session_ids, timeout_seconds), on_update)

    def subscribe_all(
        self,
        on_update: OnUpdate,
        *,
        on_open: OnOpen | None = None,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> None:
        """Call ``on_update`` with each new state of all the caller's sessions from now on, until
        the time is over. A lost connection is made again, but does not resume: what changed in
        between is not told. So ``on_open`` is called as soon as a stream is open, each time: read
        the sessions there that you wait for. A state that arrives afterwards may be older than what
        you read, except that a final one stays."""
        self._run(self._calls.subscribe_all(timeout_seconds), on_update, on_open)

    def cancel(self, session_id: str) -> Session:
        """Cancel a generation. A session that a worker has is still ``processing`` in the answer:
        it fails with ``CANCELLED`` soon, unless its picture is already stored."""
        return self._run(self._calls.cancel(session_id))

    def get(self, session_id: str) -> Session:
        """The session's current state."""
        return self._run(self._calls.get(session_id))

    def list(
        self, *, status: str | None = None, limit: int = 20, cursor: str | None = None
    ) -> SessionPage:
        """One page of sessions, newest first, 1 to 50."""
        return self._run(self._calls.page(status, limit, cursor))

    def upload(self, picture: bytes, content_type: str | None = None) -> str:
        """Store a JPEG, PNG or WebP picture and return its link for requests. Raises ValueError if
        the type is neither given nor known from the bytes."""
        return self._run(self._calls.upload(picture, content_type))

    def submit_batch(
        self, items: Sequence[BatchItem], *, idempotency_key: str | None = None
    ) -> Sequence[BatchResult]:
        """Create 1 to 100 generations; returns the answer to each, in order. A rejected item does
        not affect the others. With the same key, the batch may be repeated for those that got a
        429 or 503: the others are charged once."""
        return self._run(self._calls.submit_batch(items, idempotency_key))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(
        self,
        flow: Flow[T],
        on_update: OnUpdate | None = None,
        on_open: OnOpen | None = None,
    ) -> T:
        """Perform the steps of a flow."""
        stream = _Stream(self._http, self._target)
        answer: Reply | Lost | bytes | None = None
        try:
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    result: T = done.value
                    return result
                answer = None
                match step:
                    case Request():
                        answer = stream.open(step)
                    case Read():
                        answer = stream.read()
                    case Opened():
                        if on_open is not None:
                            on_open()
                    case Sleep():
                        time.sleep(step.seconds)
                    case Deliver():
                        if on_update is not None:
                            on_update(step.session)
        finally:
            flow.close()
            stream.close()


class _Stream:
    """The response that a call has open."""

    def __init__(self, http: httpx2.Client, target: Target) -> None:
        self._http, self._target = http, target
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._cutter: Timer | None = None

    def open(self, request: Request) -> Reply | Lost:
        """Send a request; reads the response whole unless it is a stream."""
        self.close()
        end = time.monotonic() + request.timeout_seconds
        end_of_stream = time.monotonic() + request.lasting_seconds
        prepared = self._http.build_request(
            request.method,
            self._target.url(request),
            headers=self._target.headers(request),
            content=request.body,
            timeout=request.timeout_seconds,
        )
        try:
            self._response = self._http.send(prepared, stream=True)
            status, headers = self._response.status_code, dict(self._response.headers)
            self._pieces = self._response.iter_bytes()
            if request.streams and status == 200:
                self._cutter = _cut_after(end_of_stream - time.monotonic(), self._response)
                return Reply(status, headers)
            body = self._body(end)
        except httpx2.HTTPError as error:
            self.close()
            return Lost(error)
        self.close()
        return (
            Lost("the response is too slow or too large")
            if body is None
            else Reply(status, headers, body)
        )

    def _body(self, end: float) -> bytes | None:
        body = bytearray()
        for piece in self._pieces:
            body += piece
            if time.monotonic() > end or len(body) > MAX_RESPONSE_BYTES:
                return None
        return bytes(body)

    def read(self) -> bytes | None:
        """The next bytes of the stream."""
        try:
            return next(self._pieces, None)
        except httpx2.HTTPError:
            return None

    def close(self) -> None:
        if self._cutter is not None:
            self._cutter.cancel()
        if self._response is not None:
            self._response.close()
        self._response, self._pieces, self._cutter = None, iter(()), None


def _cut_after(seconds: float, response: httpx2.Response) -> Timer:
    """End the stream of the response after so long. The timeout of a read cannot: it is set when
    the stream is opened, and begins anew with all that arrives."""
    timer = Timer(min(max(0.0, seconds), TIMEOUT_MAX), _cut, [response])
    timer.daemon = True
    timer.start()
    return timer


def _cut(response: httpx2.Response) -> None:
    """A read that waits in another thread ends at once. Other requests share an HTTP/2 connection:
    there the read ends at the next ping."""
    network = response.extensions.get("network_stream")
    connection = None if network is None else network.get_extra_info("socket")
    if isinstance(connection, socket.socket) and response.http_version != "HTTP/2":
        with suppress(OSError):  # It is closed already.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
