"""Decoding and validating what callers send, and the wording of validation errors."""

import base64
import binascii
import json
import re
from codecs import BOM_UTF8
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeAlias, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from litestar import Request
from litestar.di import NamedDependency
from litestar.dto import AbstractDTO
from litestar.exceptions import HTTPException
from litestar.params import HeaderParameter, PathParameter, QueryParameter, SkipValidation

from domain.callers import Caller
from domain.endpoints import Delivery
from domain.errors import InvalidInput
from domain.ports import Position
from domain.sessions import GenerationSession
from entrypoints.http.schemas import NewUpload

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.openapi.spec import Reference, Schema
    from litestar.typing import FieldDefinition

T = TypeVar("T")
Requested = TypeVar("Requested", bound=msgspec.Struct)

Injected: TypeAlias = NamedDependency[SkipValidation[T]]
"""A handler's argument that the application injects, by its name."""

AnyRequest: TypeAlias = Request[Any, Any, Any]

OwnedRequest: TypeAlias = Request[Caller, Any, Any]
"""A request whose ``user`` is authenticated."""

SessionIdInPath = Annotated[UUID, PathParameter(description="The session's id.")]
Limit = Annotated[
    int, QueryParameter(ge=1, le=50, description="The maximum number of items to return.")
]
CursorText = Annotated[
    str | None,
    QueryParameter(
        description="The `next_cursor` of the previous page; omit it for the first page."
    ),
]

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Chosen by you: 1 to 255 visible ASCII characters, unique per request. Kept as"
        " long as the session.",
    ),
]

MAX_PARAMETERS = 20

TIMESTAMP = re.compile(r"[0-9]{1,12}")
"""A valid ``expires`` of a signed link."""


class StrictBody(AbstractDTO[T]):
    """Decodes the body once, strictly, and only if its Content-Type is JSON.

    By default, Litestar decodes twice, coerces types and accepts any Content-Type.
    """

    decoder: ClassVar[msgspec.json.Decoder[Any]]

    def decode_bytes(self, value: bytes) -> T:
        """Raises what ``check_is_json`` and ``decoded`` raise."""
        check_is_json(self.asgi_connection.headers.get("content-type", ""))
        body: T = decoded(value, self.decoder)
        return body

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Required by the base class; there is nothing to prepare."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: "FieldDefinition",
        handler_id: str,  # noqa: ARG003 - the base class has it
        schema_creator: "SchemaCreator",
    ) -> "Reference | Schema":
        return schema_creator.for_field_definition(field_definition)


class NewUploadBody(StrictBody[NewUpload]):
    decoder = msgspec.json.Decoder(NewUpload)


def check_query(query: bytes, known: Collection[str] = ()) -> None:
    """Raises InvalidInput for a parameter that is unknown or given twice, like for such a field of
    a body."""
    try:
        given = parse_qsl(query.decode(errors="replace"), True, max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise InvalidInput("query", f"has more than {MAX_PARAMETERS} parameters") from error
    names = [name for name, _ in given]
    for name in names:
        if name not in known:
            raise InvalidInput(name, "is not a parameter of this request")
        if names.count(name) > 1:
            raise InvalidInput(name, "is given more than once")


def check_is_plain(content_encoding: str) -> None:
    """Raises 415 for a compressed body."""
    if content_encoding.strip().lower() not in {"", "identity"}:
        raise HTTPException("A Content-Encoding is not supported", status_code=415)


def check_is_json(content_type: str) -> None:
    """Raises 415 unless the media type is JSON; parameters such as a charset are allowed."""
    media_type, _, _ = content_type.partition(";")
    if media_type.strip().lower() != "application/json":
        raise HTTPException("The Content-Type must be application/json", status_code=415)


def decoded(body: bytes, decoder: msgspec.json.Decoder[Requested]) -> Requested:
    """The body's value; a byte order mark before it is ignored. Raises InvalidInput, which names
    the field."""
    body = body.removeprefix(BOM_UTF8)
    request = converted(body, decoder)
    # A repeated name adds quotes that are missing when the decoded request is encoded again. A
    # request that is encoded with its defaults may have as many other quotes instead.
    if (
        b"\\" in body
        or body.count(b'"') != _encode(request).count(b'"')
        or not decoder.type.__struct_config__.omit_defaults
    ):
        _check_names(body)
    return request


def converted(body: bytes, decoder: msgspec.json.Decoder[Requested]) -> Requested:
    """The same, but the last one of repeated names wins."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("body", "is not valid UTF-8") from error
    except msgspec.DecodeError as error:
        problem = humanize(str(error).removeprefix("JSON is malformed: "))
        raise InvalidInput("body", f"is not valid JSON: {problem}") from error
    except RecursionError as error:
        raise InvalidInput("body", "is nested too deeply") from error


_encode = msgspec.json.Encoder().encode


def check_outer_names(body: bytes) -> None:
    """Reject repeated names of the object itself. Those of objects in it are left alone."""
    try:
        names = json.loads(body, object_pairs_hook=lambda fields: [name for name, _ in fields])
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", "is not valid JSON") from error
    _refuse_repeated([(name, None) for name in names])


def _check_names(body: bytes) -> None:
    """Reject repeated names, which JSON and msgspec allow: parsers disagree on which one wins."""
    try:
        json.loads(body, object_pairs_hook=_refuse_repeated)
    except (ValueError, RecursionError) as error:  # In a field that is ignored.
        raise InvalidInput("body", "is not valid JSON") from error


def _refuse_repeated(fields: list[tuple[str, object]]) -> None:
    names = set()
    for name, _ in fields:
        if name in names:
            raise InvalidInput(name, "is given more than once")
        names.add(name)


def _validation_error(violation: str) -> InvalidInput:
    """From msgspec's message, such as "Expected `str`, got `int` - at `$.accessories[0].url`"."""
    problem, _, place = violation.partition(" - at `$")
    place = place.strip(".`")
    for beginning, meaning in _NAMED_FIELD_PROBLEMS.items():
        if problem.startswith(beginning):
            name = problem.removeprefix(beginning).strip("`")
            return InvalidInput(f"{place}.{name}" if place else name, meaning)
    return InvalidInput(place or "body", humanize(problem))


_NAMED_FIELD_PROBLEMS = {
    "Object missing required field ": "is required",
    "Object contains unknown field ": "is not a field of this request",
}


_TOO_LONG = re.compile(r"Expected `(str|array)` of length <= (\d+)")
_PARTS = {"str": "characters", "array": "items"}


def humanize(problem: str) -> str:
    """msgspec's message about a value, in the style of our own messages."""
    if "matching regex" in problem:
        return "contains a character that is not allowed"
    if too_long := _TOO_LONG.match(problem):
        return f"has more than {too_long[2]} {_PARTS[too_long[1]]}"
    return problem[:1].lower() + problem[1:].replace("`", "")


class Cursor(Generic[T]):
    """An opaque text for a place in a listing: base64url of the place's JSON."""

    def __init__(self, decoder: msgspec.json.Decoder[T]) -> None:
        self._decoder = decoder

    def encode(self, place: T) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")

    def decode(self, cursor: str) -> T:
        """Raises InvalidInput for any text that ``encode`` did not return."""
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            return self._decoder.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, UnicodeError, msgspec.DecodeError) as error:
            raise InvalidInput("cursor", "is not a cursor of this listing") from error


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Microseconds = Annotated[
    int, msgspec.Meta(ge=0, lt=(datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND)
]
_POSITIONS: Cursor[tuple[int, UUID]] = Cursor(msgspec.json.Decoder(tuple[_Microseconds, UUID]))


def position_after(cursor: str | None) -> Position | None:
    """The position of a page; None is the first page. Raises InvalidInput."""
    if cursor is None:
        return None
    microseconds, last_id = _POSITIONS.decode(cursor)
    return Position(created_at=_EPOCH + microseconds * _MICROSECOND, id=last_id)


def cursor_after(last: GenerationSession | Delivery) -> str:
    """The cursor of the page after the one that ends with ``last``."""
    return _POSITIONS.encode(((last.created_at - _EPOCH) // _MICROSECOND, last.id))
