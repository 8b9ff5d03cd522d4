"""Replicate's jobs ("predictions"), and those of services with the same API.

How responses are classified, to the call that begins a job and to the calls that poll it:

======================================================  ==========================================
429, 408, 409, 425, 5xx, no or half a response          ``ProviderUnavailable``, not before
                                                        ``Retry-After``; a job that was polled
                                                        goes on
401, 402, 403, a redirect, no such model or version     ``ProviderMisconfigured``
413 to the first call                                   ``Refused``, INVALID_IMAGE
404 or 410 to a poll; ``canceled``, ``aborted``,        ``JobProducedNothing``
``failed``; ``succeeded`` without a usable picture
``failed`` because of a safety check                    ``Refused``, MODERATION_BLOCKED
anything else                                           a bug of ours: ``RuntimeError``
======================================================  ==========================================

Wire format: https://replicate.com/docs/reference/http. Statuses and deadlines:
https://replicate.com/docs/topics/predictions/lifecycle. An error is a sentence without a code; the
only sentences that we recognise are those of safety checks.
"""

import asyncio
import base64
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import ClientError, ClientResponse, TraceConfig
from msgspec import Meta, Struct
from yarl import URL

from adapters.images.http import (
    TRANSIENT_STATUSES,
    ProviderClient,
    api_root,
    busy_or_broken,
    failed_safety_check,
    read_body,
    rejected_request,
    retry_after_seconds,
    unreachable,
    unusable_picture,
)
from adapters.images.inspection import inspect_picture
from adapters.images.jobs import JobProducedNothing, Jobs
from domain.errors import ProviderMisconfigured, Refused, TryAgain
from domain.picture_ports import Generated, Picture, PictureRequest
from domain.sessions import Usage

_MISCONFIGURED_STATUSES = frozenset({401, 402, 403})
_UNKNOWN_JOB_STATUSES = frozenset({404, 410})
_SAFETY_ERROR = re.compile(
    r"\(E005\)|flagged as sensitive|\bnsfw\b|content (?:policy|filter|moderation)|safety"
    r"|moderat(?:ed|ion)|prohibited content",
    re.IGNORECASE,
)
# The part of an error that may be logged: a title of a few words, never a part of our request.
_TITLE = re.compile(r"[A-Za-z ]{1,64}")
_SHORTEST_DEADLINE_SECONDS = 5

Download = Callable[[str], Awaitable[Picture]]
"""Downloads a generated picture. Raises ``Refused`` or ``TryAgain``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of one call, including the upload of the pictures. A response repeats the request, so
    it may be large."""

    connect_seconds: float = 10.0
    total_seconds: float = 30.0
    max_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateModel:
    """``name`` is ``owner/name`` or ``owner/name:version``. ``image_field`` is the model's input
    for the list of pictures; its input for the prompt must be called ``prompt``."""

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


class ReplicateJobs(Jobs):
    """One request per call: no redirect is followed, and no request is repeated. The token is sent
    to the API only, never to the server of a finished picture.

    A job ends by itself after ``deadline_seconds``, should its cancellation fail.
    ``Idempotency-Key`` identifies the requested picture. Compatible services respect it; Replicate
    does not document whether it does. The answers say nothing of costs: each picture costs
    ``usd_per_picture``, or has no estimate.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        model: ReplicateModel,
        usd_per_picture: Decimal | None,
        deadline_seconds: float,
        limits: CallLimits,
        download: Download,
        clock: Callable[[], datetime],
        watched_by: Sequence[TraceConfig] = (),
    ) -> None:
        self._root = api_root(base_url)
        self._client = ProviderClient(
            token, connect_seconds=limits.connect_seconds, watched_by=watched_by
        )
        self._model = model
        self._usage = Usage(provider="replicate", estimated_cost_usd=usd_per_picture)
        self._deadline = max(_SHORTEST_DEADLINE_SECONDS, math.ceil(deadline_seconds))
        self._limits = limits
        self._download = download
        self._clock = clock

    async def begin(self, request: PictureRequest) -> str:
        url, body = await asyncio.to_thread(self._prediction_request, request)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": _idempotency_key(request),
            "Cancel-After": f"{self._deadline}s",
            "traceparent": request.traceparent,
        }
        status, answer = await self._call("POST", url, data=BytesIO(body), headers=headers)
        if status == 413:
            raise unusable_picture(_detail(status, answer))
        if status == 404 or (status == 422 and "version" in _title(answer)):
            raise ProviderMisconfigured(detail=_detail(status, answer))
        return (await _parsed(status, answer)).id

    async def poll(self, job_id: str) -> Generated | None:
        status, answer = await self._call("GET", self._job_url(job_id))
        if status in _UNKNOWN_JOB_STATUSES:
            raise JobProducedNothing
        prediction = await _parsed(status, answer)
        match prediction.status:
            case "succeeded":
                picture = await self._picture(prediction.output)
                return Generated(picture=picture, usage=self._usage)
            case "failed" if _SAFETY_ERROR.search(str(prediction.error)):
                raise failed_safety_check()
            case "failed" | "canceled" | "aborted":
                raise JobProducedNothing
        return None

    async def cancel(self, job_id: str) -> None:
        await self._call("POST", self._job_url(job_id) / "cancel")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _call(self, method: str, url: URL, **options: Any) -> tuple[int, bytes]:  # noqa: ANN401
        """Status and body of a response that says something about a job. For other responses,
        raises ``ProviderUnavailable`` and ``ProviderMisconfigured``."""
        session = self._client.session
        try:
            async with (
                asyncio.timeout(self._limits.total_seconds),
                session.request(method, url, allow_redirects=False, **options) as response,
            ):
                body = await read_body(response, max_bytes=self._limits.max_bytes)
        except (ClientError, OSError) as error:
            raise unreachable(error) from error
        self._check_status(response, body)
        return response.status, body

    def _check_status(self, response: ClientResponse, body: bytes) -> None:
        status = response.status
        if status >= 500 or status in TRANSIENT_STATUSES:
            wait = retry_after_seconds(response.headers, self._clock())
            raise busy_or_broken(_detail(status, body), wait)
        if 300 <= status < 400 or status in _MISCONFIGURED_STATUSES:
            raise ProviderMisconfigured(detail=_detail(status, body))

    def _job_url(self, job_id: str) -> URL:
        return self._root / "predictions" / job_id

    def _prediction_request(self, request: PictureRequest) -> tuple[URL, bytes]:
        """URL and body of the call that begins a job."""
        name, _, version = self._model.name.partition(":")
        pictures = [_data_uri(picture) for picture in request.images]
        body: dict[str, Any] = {
            "input": {"prompt": request.prompt, self._model.image_field: pictures}
        }
        if version:
            return self._root / "predictions", msgspec.json.encode(body | {"version": version})
        url = self._root.joinpath("models", *name.split("/"), "predictions")
        return url, msgspec.json.encode(body)

    async def _picture(self, output: object) -> Picture:
        """The first picture of a job's output. Raises ``ProviderUnavailable`` if its server does
        not deliver it, and ``JobProducedNothing`` if there is none."""
        first = output[0] if isinstance(output, list) and output else output
        if not isinstance(first, str):
            raise JobProducedNothing
        try:
            if first.startswith("data:"):
                return await asyncio.to_thread(_decode_data_uri, first)
            return await self._download(first)
        except Refused as error:
            raise JobProducedNothing from error
        except TryAgain as error:
            raise busy_or_broken("result not delivered", error.retry_after_seconds) from error


def _idempotency_key(request: PictureRequest) -> str:
    """The same for a repetition of this request; different once its job produced nothing."""
    return f"wearon-{request.session_id}-{request.instead_of or 'first'}"


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


def _decode_data_uri(data_uri: str) -> Picture:
    kind, _, data = data_uri.partition(",")
    try:
        raw = base64.b64decode(data) if kind.endswith(";base64") else unquote_to_bytes(data)
    except ValueError as error:
        raise JobProducedNothing from error
    return inspect_picture(raw)


async def _parsed(status: int, body: bytes) -> _Prediction:
    if status >= 300:
        raise rejected_request(_detail(status, body))
    try:
        return await asyncio.to_thread(_decode_prediction, body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise busy_or_broken(f"{status} answer unreadable") from error


def _title(body: bytes) -> str:
    """The kind of error; empty if the body names none that may be logged."""
    try:
        title = _decode_error(body).title
    except (msgspec.DecodeError, RecursionError):
        return ""
    return title if _TITLE.fullmatch(title) else ""


def _detail(status: int, body: bytes) -> str:
    title = _title(body)
    return f"{status} {title}".rstrip()
