"""What each call does, as flows of steps, without input or output of its own."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from wearon_client.errors import ApiError, WaitTimeout, WearonError
from wearon_client.follow import GENERATIONS, Everything, Follower, path_of
from wearon_client.models import (
    FINAL_STATUSES,
    BatchItem,
    BatchResult,
    NewGeneration,
    Session,
    SessionPage,
    Submitted,
)
from wearon_client.retries import Retries
from wearon_client.sse import EventParser
from wearon_client.steps import Deliver, Flow, Lost, Opened, Read, Reply, Request, Sleep, Tries

MAX_FOLLOWED = 100
MAX_WAIT_SECONDS = 60
_ANSWER_SECONDS = 15.0
"""What a response may take beyond the time that it was asked to wait."""
_TRAVEL_SECONDS = 0.5
"""What is left of the caller's time for the response to arrive."""
_POLL_SECONDS = 1.0
"""The least time between two reads of a service that does not wait."""
_UPLOAD_SECONDS = 120.0
_LEAST_SECONDS = 0.25
"""What the last try gets, however little time is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls of the API, with the limits that they keep."""

    retries: Retries
    idle_seconds: float
    clock: Callable[[], float] = time.monotonic

    def submit(self, request: NewGeneration, key: str | None) -> Flow[Submitted]:
        reply = yield from self._submit(request, key or new_key(), {}, end=float("inf"))
        data: Submitted = reply.data
        return data

    def submit_and_wait(
        self, request: NewGeneration, key: str | None, timeout_seconds: float
    ) -> Flow[Session]:
        end = self.clock() + timeout_seconds
        reply = yield from self._submit(request, key or new_key(), self._prefer(end), end=end)
        data = reply.data
        if reply.status == 200 and data["status"] in FINAL_STATUSES:
            final: Session = data
            return final
        return (yield from self._wait(data["session_id"], end))

    def wait(self, session_id: str, timeout_seconds: float) -> Flow[Session]:
        return (yield from self._wait(session_id, self.clock() + timeout_seconds))

    def get(self, session_id: str) -> Flow[Session]:
        reply = yield from self._send(Request(method="GET", url=path_of(session_id), headers={}))
        session: Session = reply.data
        return session

    def page(self, status: str | None, limit: int, cursor: str | None) -> Flow[SessionPage]:
        asked = {"status": status, "limit": limit, "cursor": cursor}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        url = f"{GENERATIONS}?{query}"
        page: SessionPage = (yield from self._send(Request(method="GET", url=url, headers={}))).data
        return page

    def cancel(self, session_id: str) -> Flow[Session]:
        """A repetition finds the session cancelled and gets a 409: that is a success, too."""
        url = f"{path_of(session_id)}/cancel"
        try:
            reply = yield from self._send(Request(method="POST", url=url, headers={}))
        except ApiError as error:
            if error.status != 409:
                raise
            session = yield from self.get(session_id)
            if session["error_code"] != "CANCELLED":
                raise
            return session
        cancelled: Session = reply.data
        return cancelled

    def upload(self, picture: bytes, content_type: str | None) -> Flow[str]:
        media_type = content_type or media_type_of(picture)
        offer = (yield from self._send(_post("/api/v1/uploads", {"content_type": media_type}))).data
        # The link is the credential: it gets no token, and the same bytes may be sent again.
        put = Request(
            method=offer["method"],
            url=offer["upload_url"],
            headers=offer["headers"],
            body=picture,
            authorized=False,
            timeout_seconds=_UPLOAD_SECONDS,
        )
        yield from self._send(put)
        image_url: str = offer["image_url"]
        return image_url

    def submit_batch(self, items: Sequence[BatchItem], key: str | None) -> Flow[list[BatchResult]]:
        headers = {"Idempotency-Key": key or new_key()}
        request = _post(f"{GENERATIONS}/batch", {"items": list(items)}, headers)
        results: list[BatchResult] = (yield from self._keyed(request, float("inf"))).data["items"]
        return results

    def subscribe(
        self, session_ids: Iterable[str], timeout_seconds: float
    ) -> Flow[dict[str, Session]]:
        follower = Follower(session_ids)
        if len(follower.pending) > MAX_FOLLOWED:
            raise ValueError(f"at most {MAX_FOLLOWED} sessions can be followed at once")
        if not (yield from self._follow(follower, self.clock() + timeout_seconds)):
            session_id = follower.pending[0]
            raise WaitTimeout(session_id, follower.states.get(session_id))
        return follower.states

    def subscribe_all(self, timeout_seconds: float) -> Flow[None]:
        yield from self._follow(Everything(), self.clock() + timeout_seconds)

    def _follow(self, follower: Follower | Everything, end: float) -> Flow[bool]:
        """Deliver the news of as many streams as it takes. Returns whether there will be no more:
        else the time is over."""
        tries = Tries(self.retries, self.clock)
        reconnect_seconds = self.retries.base_seconds
        while not follower.is_done:
            left = end - self.clock()
            if left <= 0:
                return False
            reply: Reply | Lost = yield _events(follower, min(self.idle_seconds, left), left)
            least = None
            if isinstance(reply, Reply) and reply.status == 200:
                yield Opened()
                parser = EventParser()
                if (yield from self._read(parser, follower, end)):
                    tries.reset()
                if self.clock() >= end:
                    continue
                reply, least = Lost("the stream ended"), parser.retry_seconds or reconnect_seconds
            elif isinstance(reply, Reply) and reply.status == 204:
                break  # the states that it has are final, with a new status
            if not follower.is_done:
                delay = tries.delay_after(reply, least)
                yield Sleep(max(0.0, min(delay, end - self.clock())))
        return True

    def _read(self, parser: EventParser, follower: Follower | Everything, end: float) -> Flow[bool]:
        """Deliver the news of one stream, until it ends. Returns whether it sent anything."""
        began = False
        while not follower.is_done and self.clock() < end:
            data = yield Read()
            if data is None:
                break
            began = True
            try:
                for event in parser.feed(data):
                    if session := follower.newer(event):
                        yield Deliver(session)
            except (ValueError, TypeError, KeyError):  # no state of a session: ask again
                return False
        return began

    def _submit(
        self, request: NewGeneration, key: str, headers: dict[str, str], end: float
    ) -> Flow[Reply]:
        asked = _post(GENERATIONS, request, {**headers, "Idempotency-Key": key})
        if headers:
            asked = replace(asked, timeout_seconds=MAX_WAIT_SECONDS + _ANSWER_SECONDS)
        return (yield from self._keyed(asked, end))

    def _keyed(self, request: Request, end: float) -> Flow[Reply]:
        try:
            return (yield from self._send(request, end))
        except WearonError as error:
            error.idempotency_key = request.headers["Idempotency-Key"]
            raise

    def _wait(self, session_id: str, end: float) -> Flow[Session]:
        last: Session | None = None
        while (began := self.clock()) < end:
            request = Request(
                method="GET",
                url=path_of(session_id),
                headers=self._prefer(end),
                timeout_seconds=MAX_WAIT_SECONDS + _ANSWER_SECONDS,
            )
            try:
                last = (yield from self._send(request, end)).data
            except WearonError as error:
                error.session_id = session_id
                raise
            if last is not None and last["status"] in FINAL_STATUSES:
                return last
            yield Sleep(max(0.0, min(began + _POLL_SECONDS, end) - self.clock()))
        raise WaitTimeout(session_id, last)

    def _prefer(self, end: float) -> dict[str, str]:
        seconds = int(min(end - self.clock() - _TRAVEL_SECONDS, MAX_WAIT_SECONDS))
        return {"Prefer": f"wait={seconds}"} if seconds >= 1 else {}

    def _send(self, request: Request, end: float = float("inf")) -> Flow[Reply]:
        """The successful response, after as many tries as it takes. Raises the last failure."""
        tries = Tries(self.retries, self.clock, end)
        while True:
            seconds = min(request.timeout_seconds, max(_LEAST_SECONDS, tries.left_seconds))
            reply: Reply | Lost = yield replace(request, timeout_seconds=seconds)
            if isinstance(reply, Reply) and 200 <= reply.status < 300:
                if reply.is_enveloped or not request.authorized:
                    return reply
                reply = Lost(f"status {reply.status} without an envelope")
            yield Sleep(tries.delay_after(reply))


def new_key() -> str:
    """An idempotency key."""
    return str(uuid.uuid4())


def media_type_of(picture: bytes) -> str:
    """By the first bytes. Raises ValueError unless it is a JPEG, PNG or WebP."""
    if picture.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if picture.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if picture.startswith(b"RIFF") and picture[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError("the picture is no JPEG, PNG or WebP")


def _post(url: str, body: Any, headers: dict[str, str] | None = None) -> Request:
    return Request(
        method="POST",
        url=url,
        headers={"Content-Type": "application/json", **(headers or {})},
        body=json.dumps(body).encode(),
    )


def _events(
    follower: Follower | Everything, silence_seconds: float, lasting_seconds: float
) -> Request:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    url, revision = follower.resumes_at()
    if revision is not None:
        headers["Last-Event-ID"] = str(revision)
    return Request(
        method="GET",
        url=url,
        headers=headers,
        streams=True,
        timeout_seconds=silence_seconds,
        lasting_seconds=lasting_seconds,
    )
