"""Uploads: a caller's own picture, to be used in a request as any link may be."""

from dataclasses import dataclass
from typing import Annotated, Any

from litestar import Request, post, put
from litestar.exceptions import HTTPException
from litestar.openapi.spec import Example, OpenAPIMediaType, RequestBody, Schema
from litestar.openapi.spec.operation import Operation
from litestar.params import BodyKwarg, PathParameter, QueryParameter

from adapters.storage.keys import media_type_of
from adapters.storage.receiving import UploadReceiver
from domain.errors import NotFound
from domain.uploads import Uploads
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
    dto=NewUploadBody,
    return_dto=None,
    tags=_TAGS,
    summary="Bring a picture of your own",
    response_description="Where to send the picture, and the link to use it by.",
    responses=failures(401, 413, 415, 429, 503),
)
async def offer_upload(
    request: OwnedRequest, data: Body, uploads: Injected[Uploads]
) -> UploadEnvelope:
    """Then send the picture's bytes to `upload_url`, with `method` and `headers` as they are here
    and without your token, and use `image_url` in a request for a picture. It is deleted after a
    few days. A picture costs nothing; a day's are bounded."""
    offer = await uploads.offer(request.user, data.content_type)
    return UploadEnvelope(data=Upload.of(offer, data.content_type), error=None)


@dataclass
class _TakesAPicture(Operation):
    """Litestar describes no body that it does not decode."""

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
    summary="Send your picture",
    response_description="The picture is there, and stays as it is.",
    responses=failures(404, 409, 413, 415, 429, 503),
    operation_class=_TakesAPicture,
)
async def put_upload(
    request: Request[Any, Any, Any],
    receiver: Injected[UploadReceiver],
    key: Annotated[str, PathParameter(description="The picture's key, as the link has it.")],
    expires: Annotated[str, QueryParameter(description="Until when the link is good.")] = "",
    signature: Annotated[str, QueryParameter(description="What makes the link good.")] = "",
) -> UploadedEnvelope:
    """An `upload_url` leads here where no other service takes your picture; it needs no token. Each
    takes one JPEG, PNG or WebP picture, once."""
    if not TIMESTAMP.fullmatch(expires):
        raise NotFound(key)
    object_key = f"uploads/{key.removeprefix('/')}"
    announced = media_type_of(object_key)
    content_type, _, _ = request.headers.get("content-type", "").partition(";")
    if content_type.strip().lower() != announced:
        raise HTTPException(f"The Content-Type must be {announced}", status_code=415)
    picture = await receiver.receive(
        object_key, expires=int(expires), signature=signature, body=request.body
    )
    uploaded = Uploaded(content_type=picture.media_type, bytes=len(picture.data))
    return UploadedEnvelope(data=uploaded, error=None)
