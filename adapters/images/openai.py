"""OpenAI's image edits, and those of gateways that speak the same language.

How answers are sorted; a code counts wherever it stands, as ``error.code`` or ``error.type``:

======================================================  ==========================================
429, 408, 409, 425, 5xx, no or half an answer, no       ``TryAgain``, not before ``Retry-After``
picture in it
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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from typing import Annotated, Any

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, FormData
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
from adapters.images.limits import ProviderLimits
from domain.errors import ProviderMisconfigured, Refused
from domain.ports import Generated, PictureGeneratorPort, PictureRequest, RecordJob
from domain.sessions import Usage

SIZE = "1024x1536"
"""Width and height in pixels: the portrait among the sizes that every model has."""

_OPERATORS = frozenset({401, 402, 403, 404})
_MODERATION = frozenset(
    {
        "moderation_blocked",
        "content_policy_violation",
        "content_filter",  # Azure's
        "content_safety_violation",
    }
)
_UNUSABLE_PICTURE = frozenset(
    {
        "image_generation_user_error",  # a type, which moderation has too
        "invalid_image",
        "invalid_image_file",
        "invalid_image_format",
        "image_parse_error",
        "image_too_large",
        "unsupported_file_mimetype",
    }
)
_OPERATORS_CODES = frozenset(
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
# What may go from an error into a log: a name, never a sentence and never a key.
_NAME = re.compile(r"[a-z0-9_.\[\]]{1,64}")
_MICRODOLLAR = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars for a million tokens, each between 0 and 10,000."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal

    def usage(self, input_tokens: int, output_tokens: int) -> Usage:
        """The tokens with what they cost, rounded to a millionth of a dollar."""
        cost = (
            input_tokens * self.input_usd_per_million + output_tokens * self.output_usd_per_million
        )
        return Usage(
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
    """Where to send edits; a base URL without any version gets ours."""
    return api_root(base_url) / "images" / "edits"


class OpenAiPictureGenerator(PictureGeneratorPort):
    """One request for each picture: no redirect is followed and nothing is sent twice."""

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
    ) -> None:
        self._url = edits_url(base_url)
        self._api_key = api_key
        self._options = {
            "model": model,
            "size": SIZE,
            "quality": quality,
            "output_format": output_format,
        }
        self._prices = prices
        self._limits = limits
        self._clock = clock
        self._session: ClientSession | None = None

    async def generate(self, request: PictureRequest, note: RecordJob) -> Generated:  # noqa: ARG002
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                body = await self._ask(request)
        except (ClientError, OSError) as error:
            raise try_again() from error
        return await asyncio.to_thread(self._generated, body)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, request: PictureRequest) -> bytes:
        async with asyncio.timeout(self._limits.answer_seconds):
            response = await self._opened().post(
                self._url,
                data=self._form(request),
                headers={"X-Client-Request-Id": str(request.session_id)},
                allow_redirects=False,
            )
        async with response:
            if response.status >= 300:
                raise self._fault(response, await read(response, MAX_ERROR_BYTES))
            body = await read(response, self._limits.max_bytes)
        if len(body) > self._limits.max_bytes:
            # Another one would be as large, and paid for as well.
            raise RuntimeError(f"The provider's answer exceeds {self._limits.max_bytes} bytes")
        return body

    def _opened(self) -> ClientSession:
        if self._session is None:
            self._session = provider_session(
                self._api_key, connect_seconds=self._limits.connect_seconds
            )
        return self._session

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
            raise try_again() from error
        return Generated(picture=picture, usage=self._usage(answer.usage))

    def _usage(self, told: object) -> Usage | None:
        """None where the answer tells it in no way that we know: the picture counts more."""
        try:
            tokens = msgspec.convert(told, _Tokens)
        except msgspec.ValidationError:
            return None
        return self._prices.usage(tokens.input_tokens, tokens.output_tokens)

    def _fault(self, response: ClientResponse, body: bytes) -> Exception:
        """What an answer that is no picture means."""
        status, error = response.status, _error_of(body)
        names = {error.get("code"), error.get("type")}
        told = " ".join(f"{key}={name}" for key, name in error.items())
        detail = f"HTTP {status} {told}".rstrip()
        if status >= 500 or (status in PASSING and not names & _OPERATORS_CODES):
            return try_again(retry_after_seconds(response.headers, self._clock()))
        if names & _MODERATION:
            return not_safe()
        if status < 400 or status in _OPERATORS or names & _OPERATORS_CODES:
            return ProviderMisconfigured(detail=detail)
        if status == 413 or names & _UNUSABLE_PICTURE:
            return unusable_picture()
        return RuntimeError(f"The provider does not understand us: {detail}")


def _error_of(body: bytes) -> dict[str, str]:
    """The names in an error, without its message; empty where the body is another one."""
    try:
        error = msgspec.json.decode(body)["error"]
        told = {key: error[key] for key in ("code", "type", "param") if key in error}
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, IndexError):
        return {}
    return {
        key: name for key, name in told.items() if isinstance(name, str) and _NAME.fullmatch(name)
    }
