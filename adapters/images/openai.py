"""OpenAI's image edits, and those of gateways with the same API.

How responses are classified. An error code counts as ``error.code`` and as ``error.type``:

======================================================  ==========================================
429, 408, 409, 425, 5xx, no or half a response          ``ProviderUnavailable``, not before
                                                        ``Retry-After``
a response without a picture                            ``TryAgain``
a code of moderation                                    ``Refused``, MODERATION_BLOCKED
a code of an unusable picture, or 413                   ``Refused``, INVALID_IMAGE
401, 402, 403, 404, a redirect; a code of billing,      ``ProviderMisconfigured``
whatever its status: 429 and 400 are in use
anything else                                           a bug of ours: ``RuntimeError``
======================================================  ==========================================

Wire format: https://platform.openai.com/docs/api-reference/images/createEdit. Error codes:
https://platform.openai.com/docs/guides/error-codes.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from typing import Annotated, Any

import msgspec
from aiohttp import ClientError, ClientResponse, FormData, TraceConfig
from msgspec import Meta, Struct
from yarl import URL

from adapters.images.http import (
    TRANSIENT_STATUSES,
    ProviderClient,
    api_root,
    busy_or_broken,
    failed_safety_check,
    no_picture,
    read_body,
    rejected_request,
    retry_after_seconds,
    unreachable,
    unusable_picture,
)
from adapters.images.inspection import inspect_picture
from adapters.images.limits import ProviderLimits
from domain.errors import ProviderMisconfigured, Refused
from domain.picture_ports import Generated, PictureGeneratorPort, PictureRequest, RecordJob
from domain.sessions import Usage

SIZE = "1024x1536"
"""Width and height in pixels: the portrait format that every model supports."""

_MISCONFIGURED_STATUSES = frozenset({401, 402, 403, 404})
_MODERATION_CODES = frozenset(
    {
        "moderation_blocked",
        "content_policy_violation",
        "content_filter",  # Azure's
        "content_safety_violation",
    }
)
_UNUSABLE_PICTURE_CODES = frozenset(
    {
        "image_generation_user_error",  # an error.type that moderation uses too
        "invalid_image",
        "invalid_image_file",
        "invalid_image_format",
        "image_parse_error",
        "image_too_large",
        "unsupported_file_mimetype",
    }
)
_MISCONFIGURED_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_not_active",
        "invalid_api_key",
        "model_not_found",
    }
)

_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
# The part of an error that may be logged: a name, never a sentence and never a key.
_NAME = re.compile(r"[a-z0-9_.\[\]]{1,64}")
PROVIDER = "openai"
"""The name under which costs are summed."""
_MICRODOLLAR = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars per million tokens, each between 0 and 10,000."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal

    def usage(self, input_tokens: int, output_tokens: int) -> Usage:
        """The tokens and their cost, rounded to a millionth of a dollar."""
        cost = (
            input_tokens * self.input_usd_per_million + output_tokens * self.output_usd_per_million
        )
        return Usage(
            provider=PROVIDER,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            estimated_cost_usd=(cost / 1_000_000).quantize(_MICRODOLLAR),
        )


class _Image(Struct):
    b64_json: bytes


class _Answer(Struct):
    data: Annotated[list[_Image], Meta(min_length=1)]
    usage: Any = None


_TokenCount = Annotated[int, Meta(ge=0, le=100_000_000)]


class _Tokens(Struct):
    input_tokens: _TokenCount
    output_tokens: _TokenCount


_decode_answer = msgspec.json.Decoder(_Answer).decode


def edits_url(base_url: str) -> URL:
    """The endpoint for edits; a base URL without a version gets ``v1``."""
    return api_root(base_url) / "images" / "edits"


class OpenAiPictureGenerator(PictureGeneratorPort):
    """One request per picture: no redirect is followed, and no request is repeated."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        model: str,
        quality: str,
        output_format: str,
        prices: Prices,
        limits: ProviderLimits,
        clock: Callable[[], datetime],
        watched_by: Sequence[TraceConfig] = (),
    ) -> None:
        self._url = edits_url(base_url)
        self._client = ProviderClient(
            api_key, connect_seconds=limits.connect_seconds, watched_by=watched_by
        )
        self._options = {
            "model": model,
            "size": SIZE,
            "quality": quality,
            "output_format": output_format,
        }
        self._prices = prices
        self._limits = limits
        self._clock = clock

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:  # noqa: ARG002
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                body = await self._send(request)
        except (ClientError, OSError) as error:
            raise unreachable(error) from error
        return await asyncio.to_thread(self._generated, body)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _send(self, request: PictureRequest) -> bytes:
        async with asyncio.timeout(self._limits.answer_seconds):
            response = await self._client.session.post(
                self._url,
                data=self._form(request),
                headers={
                    "X-Client-Request-Id": str(request.session_id),
                    "traceparent": request.traceparent,
                },
                allow_redirects=False,
            )
        async with response:
            body = await read_body(response, max_bytes=self._limits.max_bytes)
        if response.status >= 300:
            raise self._error(response, body)
        return body

    def _form(self, request: PictureRequest) -> FormData:
        form = FormData()
        for index, picture in enumerate(request.images, 1):
            form.add_field(
                "image[]",
                BytesIO(picture.data),
                filename=f"{index}.{_EXTENSIONS[picture.media_type]}",
                content_type=picture.media_type,
            )
        for name, value in {"prompt": request.prompt, **self._options}.items():
            form.add_field(name, value)
        return form

    def _generated(self, body: bytes) -> Generated:
        try:
            answer = _decode_answer(body)
            picture = inspect_picture(answer.data[0].b64_json)
        except (msgspec.DecodeError, RecursionError, Refused) as error:
            raise no_picture("answer without a picture") from error
        return Generated(picture=picture, usage=self._usage(answer.usage))

    def _usage(self, reported: object) -> Usage:
        """No tokens if the format is unknown: the picture is worth more than its statistics."""
        try:
            tokens = msgspec.convert(reported, _Tokens)
        except msgspec.ValidationError:
            return Usage(provider=PROVIDER)
        return self._prices.usage(tokens.input_tokens, tokens.output_tokens)

    def _error(self, response: ClientResponse, body: bytes) -> Exception:
        """The error that a response without a picture stands for."""
        status, names = response.status, _error_names(body)
        codes = {names.get("code"), names.get("type")}
        is_misconfigured = bool(codes & _MISCONFIGURED_CODES)
        detail = " ".join([str(status), *dict.fromkeys(names.values())])
        if status >= 500 or (status in TRANSIENT_STATUSES and not is_misconfigured):
            wait = retry_after_seconds(response.headers, self._clock())
            return busy_or_broken(detail, wait)
        if codes & _MODERATION_CODES:
            return failed_safety_check(detail)
        if status < 400 or status in _MISCONFIGURED_STATUSES or is_misconfigured:
            return ProviderMisconfigured(detail=detail)
        if status == 413 or codes & _UNUSABLE_PICTURE_CODES:
            return unusable_picture(detail)
        return rejected_request(detail)


def _error_names(body: bytes) -> dict[str, str]:
    """Code, type and parameter of an error, without its message; empty if the body is not one."""
    try:
        error = msgspec.json.decode(body)["error"]
        found = {key: error[key] for key in ("code", "type", "param") if key in error}
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, IndexError):
        return {}
    return {
        key: name for key, name in found.items() if isinstance(name, str) and _NAME.fullmatch(name)
    }
