"""Jobs of Replicate ("predictions"), and of services that speak the same language.

How answers are sorted, to the call that begins a job and to those that look at it:

======================================================  ==========================================
429, 408, 409, 425, 5xx, no or half an answer           ``TryAgain``, not before ``Retry-After``;
                                                        a job that was looked at goes on
401, 402, 403, a redirect, no such model or version     ``ProviderMisconfigured``
413 to the first call                                   ``Refused``, INVALID_IMAGE
404 or 410 to a look; ``canceled``, ``aborted``,        ``JobProducedNothing``
``failed``; ``succeeded`` without a usable picture
``failed``, and it says that a safety check did it      ``Refused``, MODERATION_BLOCKED
anything else                                           a bug of ours: ``RuntimeError``
======================================================  ==========================================

Wire format: https://replicate.com/docs/reference/http. Statuses and deadlines:
https://replicate.com/docs/topics/predictions/lifecycle. An error is a sentence without a code; the
ends of a sentence that we know are those of safety checks.
"""

import asyncio
import base64
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession
from msgspec import Meta, Struct
from yarl import URL

from adapters.images.http import (
    MAX_ERROR_BYTES,
    PASSING,
    api_root,
    not_safe,
    provider_session,
    read,
    retry_after_seconds,
    try_again,
    unusable_picture,
)
from adapters.images.inspection import inspect_picture
from adapters.images.jobs import JobProducedNothing, Jobs
from domain.errors import ProviderMisconfigured, Refused
from domain.ports import Generated, Picture, PictureRequest

_TURNED_AWAY = frozenset({401, 402, 403})
_UNKNOWN = frozenset({404, 410})
_NOTHING = frozenset({"canceled", "aborted"})
_SAFETY = re.compile(
    r"\(E005\)|flagged as sensitive|\bnsfw\b|content (?:policy|filter|moderation)|safety"
    r"|moderat(?:ed|ion)|prohibited content",
    re.IGNORECASE,
)
# What may go from an error into a log: a title of a few words, never what we sent.
_TITLE = re.compile(r"[A-Za-z ]{1,64}")
_SHORTEST_DEADLINE_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of one call, the sending of the pictures included. An answer holds what was sent,
    so it may be large."""

    connect_seconds: float = 10.0
    total_seconds: float = 30.0
    max_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateModel:
    """What to run: ``name`` is ``owner/name`` or ``owner/name:version``, and ``image_field`` the
    input of it that takes a list of pictures. Its prompt is called ``prompt``."""

    name: str
    image_field: str


class _Prediction(Struct):
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    status: str
    output: Any = None
    error: Any = None


class _Error(Struct):
    title: str = ""


_decode_prediction = msgspec.json.Decoder(_Prediction).decode
_decode_error = msgspec.json.Decoder(_Error).decode

Download = Callable[[str], Awaitable[Picture]]
"""Gets a picture behind a link that is not to be trusted. Raises ``Refused`` or ``TryAgain``."""


class ReplicateJobs(Jobs):
    """One request for each call: no redirect is followed and nothing is sent twice. The token goes
    to the API alone, never to where a finished picture lies.

    A job that nobody cancels ends by itself after ``deadline_seconds``. ``Idempotency-Key`` names
    the picture that is asked for; Replicate does not document that it heeds it, others do.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        model: ReplicateModel,
        deadline_seconds: float,
        limits: CallLimits,
        download: Download,
        clock: Callable[[], datetime],
    ) -> None:
        self._root = api_root(base_url)
        self._token = token
        self._model = model
        self._deadline = max(_SHORTEST_DEADLINE_SECONDS, math.ceil(deadline_seconds))
        self._limits = limits
        self._download = download
        self._clock = clock
        self._session: ClientSession | None = None

    async def begin(self, request: PictureRequest) -> str:
        url, body = await asyncio.to_thread(self._order, request)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": _idempotency_key(request),
            "Cancel-After": f"{self._deadline}s",
        }
        status, answer = await self._call("POST", url, data=BytesIO(body), headers=headers)
        if status == 413:
            raise unusable_picture()
        if status == 404 or (status == 422 and "version" in _title(answer)):
            raise ProviderMisconfigured(detail=_detail(status, answer))
        if status >= 300:
            raise _misunderstood(status, answer)
        return (await asyncio.to_thread(_prediction, answer)).id

    async def look(self, job_id: str) -> Generated | None:
        status, answer = await self._call("GET", self._url_of(job_id))
        if status in _UNKNOWN:
            raise JobProducedNothing
        if status >= 300:
            raise _misunderstood(status, answer)
        prediction = await asyncio.to_thread(_prediction, answer)
        if prediction.status == "succeeded":
            return Generated(picture=await self._picture(prediction.output))
        if prediction.status == "failed" and _SAFETY.search(str(prediction.error)):
            raise not_safe()
        if prediction.status == "failed" or prediction.status in _NOTHING:
            raise JobProducedNothing
        return None

    async def cancel(self, job_id: str) -> None:
        await self._call("POST", self._url_of(job_id) / "cancel")

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, url: URL, **options: Any) -> tuple[int, bytes]:  # noqa: ANN401
        """Status and body of an answer that tells something about a job. Raises ``TryAgain`` and
        ``ProviderMisconfigured`` for those that do not."""
        try:
            async with (
                asyncio.timeout(self._limits.total_seconds),
                self._opened().request(method, url, allow_redirects=False, **options) as response,
            ):
                limit = MAX_ERROR_BYTES if response.status >= 300 else self._limits.max_bytes
                body = await read(response, limit)
        except (ClientError, OSError) as error:
            raise try_again() from error
        self._check(response, body)
        return response.status, body

    def _check(self, response: ClientResponse, body: bytes) -> None:
        status = response.status
        if status >= 500 or status in PASSING:
            raise try_again(retry_after_seconds(response.headers, self._clock()))
        if 300 <= status < 400 or status in _TURNED_AWAY:
            raise ProviderMisconfigured(detail=_detail(status, body))
        if status < 300 and len(body) > self._limits.max_bytes:
            raise RuntimeError(f"The provider's answer exceeds {self._limits.max_bytes} bytes")

    def _opened(self) -> ClientSession:
        if self._session is None:
            self._session = provider_session(
                self._token, connect_seconds=self._limits.connect_seconds
            )
        return self._session

    def _url_of(self, job_id: str) -> URL:
        return self._root / "predictions" / job_id

    def _order(self, request: PictureRequest) -> tuple[URL, bytes]:
        name, _, version = self._model.name.partition(":")
        pictures = [_data_uri(picture) for picture in request.images]
        order: dict[str, Any] = {
            "input": {"prompt": request.prompt, self._model.image_field: pictures}
        }
        if version:
            return self._root / "predictions", msgspec.json.encode(order | {"version": version})
        url = self._root.joinpath("models", *name.split("/"), "predictions")
        return url, msgspec.json.encode(order)

    async def _picture(self, output: object) -> Picture:
        """The first picture of an output. Raises ``TryAgain`` where its server does not deliver,
        ``JobProducedNothing`` where there is none."""
        first = output[0] if isinstance(output, list) and output else output
        if not isinstance(first, str):
            raise JobProducedNothing
        try:
            if first.startswith("data:"):
                return await asyncio.to_thread(_decoded, first)
            return await self._download(first)
        except Refused as error:
            raise JobProducedNothing from error


def _idempotency_key(request: PictureRequest) -> str:
    """The same for whoever asks for this picture again, another one for a job after it."""
    return f"wearon-{request.session_id}-{request.instead_of or 'first'}"


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


def _decoded(data_uri: str) -> Picture:
    kind, _, data = data_uri.partition(",")
    try:
        raw = base64.b64decode(data) if kind.endswith(";base64") else unquote_to_bytes(data)
    except ValueError as error:
        raise JobProducedNothing from error
    return inspect_picture(raw)


def _prediction(body: bytes) -> _Prediction:
    try:
        return _decode_prediction(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise try_again() from error


def _title(body: bytes) -> str:
    """What kind of error an answer says it is; empty where it says none."""
    try:
        title = _decode_error(body).title
    except (msgspec.DecodeError, RecursionError):
        return ""
    return title if _TITLE.fullmatch(title) else ""


def _detail(status: int, body: bytes) -> str:
    title = _title(body)
    return f"HTTP {status} title={title}" if title else f"HTTP {status}"


def _misunderstood(status: int, body: bytes) -> RuntimeError:
    return RuntimeError(f"The provider does not understand us: {_detail(status, body)}")
