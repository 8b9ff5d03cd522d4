"""How what callers send becomes values, and how what is wrong with it is put in words."""

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from litestar import Request
from litestar.di import NamedDependency
from litestar.dto import AbstractDTO
from litestar.exceptions import HTTPException
from litestar.params import HeaderParameter, PathParameter, QueryParameter, SkipValidation

from domain.credits import Owner
from domain.errors import InvalidInput
from entrypoints.http.schemas import NewGeneration, NewUpload

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.openapi.spec import Reference, Schema
    from litestar.typing import FieldDefinition

T = TypeVar("T")

Injected: TypeAlias = NamedDependency[SkipValidation[T]]
"""A handler's argument that the application provides, by its name."""

OwnedRequest: TypeAlias = Request[Owner, Any, Any]
"""A request whose ``user`` is known."""

SessionIdInPath = Annotated[UUID, PathParameter(description="The session's id.")]
Limit = Annotated[int, QueryParameter(ge=1, le=50, description="How many to return at most.")]
CursorText = Annotated[
    str | None,
    QueryParameter(description="The `next_cursor` of the part before; none for the first part."),
]

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Yours to choose, 1 to 255 visible ASCII characters, new for every new request."
        " Kept as long as the session.",
    ),
]

TIMESTAMP = re.compile(r"[0-9]{1,12}")
"""What a signed link's ``expires`` may be."""


class StrictBody(AbstractDTO[T]):
    """Decodes the body from its bytes in one go, strictly, and only if it says that it is JSON.

    Left alone, Litestar decodes twice, coerces types and takes any Content-Type.
    """

    decoder: ClassVar[msgspec.json.Decoder[Any]]

    def decode_bytes(self, value: bytes) -> T:
        """Raises InvalidInput, which names the field."""
        content_type, _, _ = self.asgi_connection.headers.get("content-type", "").partition(";")
        if content_type.strip().lower() != "application/json":
            raise HTTPException("The Content-Type must be application/json", status_code=415)
        body: T = decoded(value, self.decoder)
        return body

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Nothing to prepare."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: "FieldDefinition",
        handler_id: str,  # noqa: ARG003 - the base class has it
        schema_creator: "SchemaCreator",
    ) -> "Reference | Schema":
        return schema_creator.for_field_definition(field_definition)


class NewGenerationBody(StrictBody[NewGeneration]):
    decoder = msgspec.json.Decoder(NewGeneration)


class NewUploadBody(StrictBody[NewUpload]):
    decoder = msgspec.json.Decoder(NewUpload)


def decoded(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What a body says. Raises InvalidInput, which names the field."""
    try:
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("body", "is not valid UTF-8") from error
    except msgspec.DecodeError as error:
        problem = humanize(str(error).removeprefix("JSON is malformed: "))
        raise InvalidInput("body", f"is not valid JSON: {problem}") from error
    # A name that is there twice has quotes that the same request, as we would write it, has not.
    if b"\\" in body or body.count(b'"') != _encode(request).count(b'"'):
        json.loads(body, object_pairs_hook=_refuse_repeated)
    return request


_encode = msgspec.json.Encoder().encode


def _refuse_repeated(fields: list[tuple[str, object]]) -> None:
    """Refuse what JSON allows and msgspec takes: a name twice, of which each reader picks one."""
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(name, "is given more than once")


def _misfit(complaint: str) -> InvalidInput:
    """msgspec's complaint, such as "Expected `str`, got `int` - at `$.accessories[0].url`"."""
    problem, _, place = complaint.partition(" - at `$")
    place = place.strip(".`")
    for beginning, meaning in _ABOUT_A_NAMED_FIELD.items():
        if problem.startswith(beginning):
            name = problem.removeprefix(beginning).strip("`")
            return InvalidInput(f"{place}.{name}" if place else name, meaning)
    return InvalidInput(place or "body", humanize(problem))


_ABOUT_A_NAMED_FIELD = {
    "Object missing required field ": "is required",
    "Object contains unknown field ": "is not a field of this request",
}


def humanize(problem: str) -> str:
    """What msgspec says about a value, in the style of our messages."""
    if "matching regex" in problem:
        return "has a character that is not allowed"
    return problem[:1].lower() + problem[1:].replace("`", "")


def check_given_once(request: OwnedRequest, header: str) -> None:
    """Raises InvalidInput for a header that is given twice: which one is meant?"""
    if len(request.headers.getall(header, [])) > 1:
        raise InvalidInput(header.title(), "is given more than once")


class Cursor(Generic[T]):
    """An opaque text that stands for a place in a listing: base64url of the place's JSON."""

    def __init__(self, decoder: msgspec.json.Decoder[T]) -> None:
        self._decoder = decoder

    def encode(self, place: T) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")

    def decode(self, cursor: str) -> T:
        """Raises InvalidInput for anything that ``encode`` did not make."""
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            return self._decoder.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, UnicodeError, msgspec.DecodeError) as error:
            raise InvalidInput("cursor", "is not one that this listing gave out") from error
