"""The asynchronous client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
OnUpdate = Callable[[Session], Awaitable[object] | None]
OnOpen = Callable[[], Awaitable[object] | None]


class AsyncWearon:
    """`Wearon` for asyncio: the same methods with the same meaning. ``on_update`` may be a
    coroutine function: the next state is delivered once it is done."""

    def __init__(
        self,
        base_url: str,
        token: Token,
        *,
        retries: Retries | None = None,
        idle_seconds: float = IDLE_SECONDS,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self._target = Target(base_url=base_url, token=token)
        self._calls = Calls(retries=retries or Retries(), idle_seconds=idle_seconds)
        self._http = http or httpx2.AsyncClient()

    async def submit(
        self, request: NewGeneration, *, idempotency_key: str | None = None
    ) -> Submitted:
        """See `Wearon.submit`."""
        return await self._run(self._calls.submit(request, idempotency_key))

    async def submit_and_wait(
        self,
        request: NewGeneration,
        *,
        idempotency_key: str | None = None,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> Session:
        """See `Wearon.submit_and_wait`."""
        flow = self._calls.submit_and_wait(request, idempotency_key, timeout_seconds)
        return await self._run(flow)

    async def wait(self, session_id: str, *, timeout_seconds: float = WAIT_SECONDS) -> Session:
        """See `Wearon.wait`."""
        return await self._run(self._calls.wait(session_id, timeout_seconds))

    async def subscribe(
        self,
        session_id: str,
        on_update: OnUpdate,
        *,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> Session:
        """See `Wearon.subscribe`."""
        flow = self._calls.subscribe([session_id], timeout_seconds)
        return (await self._run(flow, on_update))[session_id]

    async def subscribe_many(
        self,
        session_ids: Sequence[str],
        on_update: OnUpdate,
        *,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> dict[str, Session]:
        """See `Wearon.subscribe_many`."""
        return await self._run(self._calls.subscribe(session_ids, timeout_seconds), on_update)

    async def subscribe_all(
        self,
        on_update: OnUpdate,
        *,
        on_open: OnOpen | None = None,
        timeout_seconds: float = FOLLOW_SECONDS,
    ) -> None:
        """See `Wearon.subscribe_all`. What ``on_open`` returns is awaited, too."""
        await self._run(self._calls.subscribe_all(timeout_seconds), on_update, on_open)

    async def cancel(self, session_id: str) -> Session:
        """See `Wearon.cancel`."""
        return await self._run(self._calls.cancel(session_id))

    async def get(self, session_id: str) -> Session:
        """See `Wearon.get`."""
        return await self._run(self._calls.get(session_id))

    async def list(
        self, *, status: str | None = None, limit: int = 20, cursor: str | None = None
    ) -> SessionPage:
        """See `Wearon.list`."""
        return await self._run(self._calls.page(status, limit, cursor))

    async def upload(self, picture: bytes, content_type: str | None = None) -> str:
        """See `Wearon.upload`."""
        return await self._run(self._calls.upload(picture, content_type))

    async def submit_batch(
        self, items: Sequence[BatchItem], *, idempotency_key: str | None = None
    ) -> Sequence[BatchResult]:
        """See `Wearon.submit_batch`."""
        return await self._run(self._calls.submit_batch(items, idempotency_key))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(
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
                        answer = await stream.open(step)
                    case Read():
                        answer = await stream.read()
                    case Opened():
                        await _awaited(None if on_open is None else on_open())
                    case Sleep():
                        await asyncio.sleep(step.seconds)
                    case Deliver():
                        await _awaited(None if on_update is None else on_update(step.session))
        finally:
            flow.close()
            await stream.close()


async def _awaited(told: Awaitable[object] | None) -> None:
    if told is not None:
        await told


class _Stream:
    """The response that a call has open."""

    def __init__(self, http: httpx2.AsyncClient, target: Target) -> None:
        self._http, self._target = http, target
        self._response: httpx2.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._end = 0.0
        """When the stream has lasted as long as it may, on the event loop's clock."""

    async def open(self, request: Request) -> Reply | Lost:
        """Send a request; reads the response whole unless it is a stream."""
        await self.close()
        self._end = asyncio.get_running_loop().time() + request.lasting_seconds
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return await self._open(request)
        except (httpx2.HTTPError, TimeoutError) as error:
            return Lost(error)
        finally:
            if not request.streams:
                await self.close()

    async def _open(self, request: Request) -> Reply | Lost:
        prepared = self._http.build_request(
            request.method,
            self._target.url(request),
            headers=self._target.headers(request),
            content=request.body,
            timeout=request.timeout_seconds,
        )
        self._response = await self._http.send(prepared, stream=True)
        status, headers = self._response.status_code, dict(self._response.headers)
        self._pieces = self._response.aiter_bytes()
        if request.streams and status == 200:
            return Reply(status, headers)
        body = bytearray()
        async for piece in self._pieces:
            body += piece
            if len(body) > MAX_RESPONSE_BYTES:
                return Lost("the response is too large")
        return Reply(status, headers, bytes(body))

    async def read(self) -> bytes | None:
        """The next bytes of the stream."""
        if self._pieces is None:
            return None
        try:
            async with asyncio.timeout_at(self._end):
                return await anext(self._pieces, None)
        except (httpx2.HTTPError, TimeoutError):
            return None

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
        self._response = self._pieces = None
