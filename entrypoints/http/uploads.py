"""Uploads: callers store a picture with us and use its link in a request."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from litestar import Request, post, put
from litestar.exceptions import HTTPException
from litestar.openapi.spec import Example, OpenAPIMediaType, RequestBody, Schema
from litestar.openapi.spec.operation import Operation
from litestar.params import BodyKwarg, PathParameter, QueryParameter

from domain.errors import BodyTooSlow, InvalidInput, NotFound, UploadTooLarge
from domain.object_keys import MEDIA_TYPES, media_type_of
from domain.uploads import UploadReceiver, Uploads
from entrypoints.http.access import for_shoppers_too
from entrypoints.http.door import Door
from entrypoints.http.inputs import TIMESTAMP, Injected, NewUploadBody, OwnedRequest
from entrypoints.http.openapi import failures
from entrypoints.http.schemas import (
    NewUpload,
    Upload,
    Uploaded,
    UploadedEnvelope,
    UploadEnvelope,
)

_TAGS = ["Uploads"]
_EXAMPLE = Example(value={"content_type": "image/jpeg"})
Body = Annotated[NewUpload, BodyKwarg(examples=[_EXAMPLE])]


@post(
    "/uploads",
    status_code=201,
    opt=for_shoppers_too(),
    dto=NewUploadBody,
    return_dto=None,
    tags=_TAGS,
    summary="Create an upload",
    response_description="Where to send the picture, and its link for requests.",
    responses=failures(401, 402, 403, 413, 415, 429, 503),
)
async def offer_upload(
    request: OwnedRequest, data: Body, uploads: Injected[Uploads]
) -> UploadEnvelope:
    """Returns a signed link to which you send one picture of your own: send its bytes to
    `upload_url` with the given `method` and `headers` and without your token, then use `image_url`
    in a generation request. Uploads are free for callers with credits, limited per day, and deleted
    after a while."""
    media_type = _known(data.content_type)
    if media_type not in MEDIA_TYPES:
        *others, last = MEDIA_TYPES
        raise InvalidInput("content_type", f"must be {', '.join(others)} or {last}")
    caller = request.user
    offer = await uploads.offer(caller, media_type)
    return UploadEnvelope(data=Upload.of(offer, media_type), error=None)


def _known(content_type: str) -> str:
    """The media type without parameters, under its registered name."""
    media_type = content_type.partition(";")[0].strip().lower()
    return "image/jpeg" if media_type == "image/jpg" else media_type


@dataclass
class _PictureBody(Operation):
    """Describes the body: Litestar describes only bodies that it decodes."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            content={"image/*": OpenAPIMediaType(schema=Schema())},
            required=True,
            description="The picture's bytes.",
        )


@put(
    "/uploads/{key:path}",
    status_code=200,
    tags=_TAGS,
    summary="Upload a picture",
    response_description="The picture is stored and cannot be replaced.",
    responses=failures(404, 409, 413, 415, 429, 503),
    operation_class=_PictureBody,
)
async def put_upload(
    *,
    request: Request[Any, Any, Any],
    receiver: Injected[UploadReceiver],
    door: Injected[Door],
    key: Annotated[str, PathParameter(description="The picture's key, from the link.")],
    expires: Annotated[
        str, QueryParameter(description="When the link expires, in Unix seconds.")
    ] = "",
    signature: Annotated[str, QueryParameter(description="The link's signature.")] = "",
) -> UploadedEnvelope:
    """The target of `upload_url`, unless the service stores uploads in cloud storage. Needs no
    token. Each link accepts one JPEG, PNG or WebP picture, once; a refused one uses it up."""
    if not TIMESTAMP.fullmatch(expires):
        raise NotFound(key)
    object_key = f"uploads/{key.removeprefix('/')}"
    announced = media_type_of(object_key)
    if _known(request.headers.get("content-type", "")) != announced:
        raise HTTPException(f"The Content-Type must be {announced}", status_code=415)
    upload = await receiver.receive(
        object_key,
        expires=int(expires),
        signature=signature,
        address=door.address_of(request.scope),
        body=partial(_pieces, request),
    )
    uploaded = Uploaded(content_type=upload.media_type, bytes=upload.size)
    return UploadedEnvelope(data=uploaded, error=None)


async def _pieces(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body as it arrives. Litestar counts it, and a too large announcement is not read; the
    middleware limits its time."""
    try:
        async for piece in request.stream():
            yield piece
    except InvalidInput as error:
        raise BodyTooSlow(str(error)) from error
    except HTTPException as error:
        if error.status_code == 413:
            raise UploadTooLarge(error.detail) from error
        raise
