"""The row mapping, both ways, as the table of columns says."""

from collections.abc import Callable
from operator import attrgetter

import asyncpg

from adapters.sessions.columns import INSERTED, MAPPED, RESULTS
from domain.callers import Shopper
from domain.credits import Owner
from domain.sessions import Failure, GenerationInput, GenerationSession, StoredPicture, Usage

SELECTED = ", ".join(f"s.{column.name}" for column in MAPPED)
"""What a statement returns of each session ``s``. Rows are read by position, so a statement may add
columns of its own only after these."""

_PARTS = {"owner": Owner, "input": GenerationInput}
_OPTIONAL_PARTS = {"shopper": Shopper, "picture": StoredPicture, "usage": Usage, "failure": Failure}
"""None if the first of their columns is NULL; usage, of which a part may be known, if all are."""


def _row_mapping() -> Callable[[asyncpg.Record], GenerationSession]:
    """Write the mapping out as one expression, as ``dataclasses`` does with its constructors. It
    runs for every session that is read or claimed; a loop over the columns takes 1.5 times as long.
    """
    names: dict[str, object] = {"Session": GenerationSession, **_PARTS, **_OPTIONAL_PARTS}

    def fields(part: str) -> str:
        terms = []
        for place, column in enumerate(MAPPED):
            if column.part == part:
                names[f"decode_{place}"] = column.decode
                value = (
                    f"row[{place}]" if column.decode is None else f"decode_{place}(row[{place}])"
                )
                terms.append(f"{column.attribute}={value}")
        return ", ".join(terms)

    def is_null(part: str) -> str:
        places = [place for place, column in enumerate(MAPPED) if column.part == part]
        deciding = places if part == "usage" else places[:1]
        return " and ".join(f"row[{place}] is None" for place in deciding)

    terms = [fields("")]
    terms += [f"{part}={part}({fields(part)})" for part in _PARTS]
    terms += [
        f"{part}=None if {is_null(part)} else {part}({fields(part)})" for part in _OPTIONAL_PARTS
    ]
    mapping: Callable[[asyncpg.Record], GenerationSession] = eval(  # noqa: S307 - no outside text
        f"lambda row: Session({', '.join(terms)})", names
    )
    return mapping


session_of = _row_mapping()
"""The session of a row that begins with SELECTED."""

_inserted = attrgetter(*(str(column.path) for column in INSERTED))
_encoders = tuple(
    (place, column.encode) for place, column in enumerate(INSERTED) if column.encode is not None
)


def inserted_values(session: GenerationSession) -> list[object]:
    """The values of INSERTED, in its order."""
    values = list(_inserted(session))
    for place, encode in _encoders:
        values[place] = encode(values[place])
    return values


def _attributes(part: str) -> Callable[[object], tuple[object, ...]]:
    return attrgetter(*(column.attribute for column in RESULTS if column.part == part))


_picture_values = _attributes("picture")
_usage_values = _attributes("usage")
_NO_USAGE = (None,) * sum(column.part == "usage" for column in RESULTS)


def result_values(picture: StoredPicture, usage: Usage | None) -> tuple[object, ...]:
    """The values of RESULTS, in its order."""
    return *_picture_values(picture), *(_NO_USAGE if usage is None else _usage_values(usage))
