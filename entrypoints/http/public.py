"""What needs no key: probes, pictures behind signed links, sample pictures."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

from litestar import Response, get
from litestar.params import FromPath, PathParameter, QueryParameter

from adapters.storage.signing import SignedReadPort
from domain.errors import NotFound, Unavailable
from entrypoints.http.errors import ERRORS
from entrypoints.http.inputs import TIMESTAMP, Injected
from entrypoints.http.openapi import failures, not_ready
from entrypoints.http.schemas import (
    Alive,
    AliveEnvelope,
    DependencyState,
    ErrorBody,
    NotReadyEnvelope,
    ReadyEnvelope,
)

CHECK_TIMEOUT_SECONDS = 2.0

Check = Callable[[], Awaitable[None]]
"""Raises Unavailable if something that we need does not answer."""


@get(
    "/health/live",
    tags=["Health"],
    summary="Is the process alive?",
    response_description="It is.",
    responses=failures(),
)
async def check_live() -> AliveEnvelope:
    """Touches nothing else: restart the process if this does not answer."""
    return AliveEnvelope(data=Alive(status="ok"), error=None)


@get(
    "/health/ready",
    tags=["Health"],
    summary="Can it do its work?",
    response_description="Everything that it needs answers.",
    responses=failures() | not_ready(),
)
async def check_ready(
    readiness: Injected[Mapping[str, Check]],
) -> Response[ReadyEnvelope]:
    """Asks everything that the service needs, at once: send no requests while this answers 503.
    Then `data` is filled in as well as `error`."""
    states = await asyncio.gather(*(_state(check) for check in readiness.values()))
    data = dict(zip(readiness, states, strict=True))
    if "unavailable" in states:
        return _not_ready(data)
    return Response(ReadyEnvelope(data=data, error=None))


def _not_ready(data: dict[str, DependencyState]) -> Response[Any]:
    missing = ", ".join(name for name, state in data.items() if state == "unavailable")
    answer = ERRORS[Unavailable]
    return Response(
        NotReadyEnvelope(
            data=data, error=ErrorBody(code=answer.code, message=f"Unavailable: {missing}")
        ),
        status_code=answer.status,
        headers=answer.headers,
    )


async def _state(check: Check) -> DependencyState:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except (Unavailable, TimeoutError):
        return "unavailable"
    return "ok"


@get(
    "/files/{key:path}",
    tags=["Files"],
    summary="Get a picture",
    media_type="image/*",
    response_description="The picture.",
    responses=failures(404, 503),
)
async def get_file(
    files: Injected[SignedReadPort],
    clock: Injected[Callable[[], datetime]],
    key: Annotated[str, PathParameter(description="The picture's key, as the link has it.")],
    expires: Annotated[str, QueryParameter(description="Until when the link is good.")] = "",
    signature: Annotated[str, QueryParameter(description="What makes the link good.")] = "",
) -> Response[bytes]:
    """The links in `generated_image_url` lead here; whoever has one may follow it until it
    expires. Do not make them up: the signature is part of them."""
    if not TIMESTAMP.fullmatch(expires):
        raise NotFound(key)
    picture = await files.read_signed(
        key.removeprefix("/"), expires=int(expires), signature=signature
    )
    max_age = max(0, int(expires) - int(clock().timestamp()))
    return Response(
        picture.data,
        media_type=picture.media_type,
        headers={
            "Cache-Control": f"private, max-age={max_age}",
            "X-Content-Type-Options": "nosniff",
        },
    )


@get("/samples/{name:str}", include_in_schema=False)
async def get_sample(
    samples: Injected[Callable[[str], bytes]], name: FromPath[str]
) -> Response[bytes]:
    """A PNG picture to try the service with, while developing."""
    try:
        data = samples(name)
    except KeyError as error:
        raise NotFound(name) from error
    return Response(data, media_type="image/png")
