"""The table of columns has every field of a session."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from adapters.sessions.columns import COLUMNS, MAPPED
from domain.sessions import GenerationInput, GenerationSession


def paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Where a session keeps its values: ``usage.input_tokens``."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        nested = part(hints[field.name])
        if nested is None:
            yield prefix + field.name
        else:
            yield from paths(nested, f"{prefix}{field.name}.")


def part(hint: Any) -> type | None:
    """The dataclass of a plain or optional hint. A tuple of dataclasses is one JSON column."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    found = [option for option in options if is_dataclass(option)]
    return found[0] if found else None  # type: ignore[return-value]


def test_every_field_of_a_session_has_a_column() -> None:
    """And every mapped column has its field."""
    assert sorted(str(column.path) for column in MAPPED) == sorted(paths(GenerationSession))


def test_every_column_of_the_input_is_inserted_and_immutable() -> None:
    """CREATE writes what was paid for, and no later statement may change it."""
    columns = [column for column in COLUMNS if column.part == "input"]

    protected = {column.attribute for column in columns if column.inserted and column.immutable}
    assert protected == {field.name for field in fields(GenerationInput)}


def test_no_column_is_listed_twice() -> None:
    names = [column.name for column in COLUMNS]

    assert len(set(names)) == len(names)
