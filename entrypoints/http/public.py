"""Routes that need no token: probes, pictures behind signed links, sample pictures."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

import structlog
from litestar import Response, get
from litestar.params import FromPath, PathParameter, QueryParameter

from domain.errors import NotFound, Unavailable
from domain.picture_ports import SignedReadPort
from entrypoints.http.errors import ERRORS
from entrypoints.http.inputs import TIMESTAMP, Injected
from entrypoints.http.openapi import failures, not_ready
from entrypoints.http.probe_schemas import (
    Alive,
    AliveEnvelope,
    DependencyState,
    NotReadyEnvelope,
    ReadyEnvelope,
)
from entrypoints.http.schemas import ErrorBody

CHECK_TIMEOUT_SECONDS = 2.0

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]
"""Raises Unavailable if a dependency does not answer."""


@get(
    "/health/live",
    tags=["Health"],
    summary="Liveness probe",
    response_description="The process is alive.",
    responses=failures(),
)
async def check_live() -> AliveEnvelope:
    """Checks no dependency. Restart the process if this does not answer."""
    return AliveEnvelope(data=Alive(status="ok"), error=None)


@get(
    "/health/ready",
    tags=["Health"],
    summary="Readiness probe",
    response_description="All dependencies answer.",
    responses=failures() | not_ready(),
)
async def check_ready(
    readiness: Injected[Mapping[str, Check]],
) -> Response[ReadyEnvelope]:
    """Checks the database, the queue and, if a JWKS is configured, the keys of users' tokens. Send
    no traffic while this answers 503; that response has both `data` and `error`."""
    states = await asyncio.gather(*(_state(name, check) for name, check in readiness.items()))
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


async def _state(name: str, check: Check) -> DependencyState:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except Unavailable as error:
        log.warning("not_ready", dependency=name, cause=str(error.cause))
    except TimeoutError:
        log.warning("not_ready", dependency=name, cause=f"{name} timeout")
    else:
        return "ok"
    return "unavailable"


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
    key: Annotated[str, PathParameter(description="The picture's key, from the link.")],
    expires: Annotated[
        str, QueryParameter(description="When the link expires, in Unix seconds.")
    ] = "",
    signature: Annotated[str, QueryParameter(description="The link's signature.")] = "",
) -> Response[bytes]:
    """The target of `generated_image_url`, unless the service stores pictures in cloud storage.
    Anyone who has a link can use it until it expires. Links are signed: you cannot build one."""
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
            "Content-Disposition": f'inline; filename="{key.rpartition("/")[2]}"',
        },
    )


@get("/samples/{name:str}", include_in_schema=False)
async def get_sample(
    samples: Injected[Callable[[str], bytes]], name: FromPath[str]
) -> Response[bytes]:
    """A PNG picture for trying the service in development."""
    try:
        data = samples(name)
    except KeyError as error:
        raise NotFound(name) from error
    return Response(data, media_type="image/png")
