"""Arrays as parameters: as texts, which PostgreSQL reads (``$1::text::uuid[]``).

The driver looks at each element of a list several times. For the lists of a busy statement that
takes up to three times as long as to write this text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID


def array_of_ids(ids: Iterable[UUID]) -> str:
    return f"{{{b''.join([each.bytes for each in ids]).hex(',', 16)}}}"


def array_of_numbers(numbers: Iterable[float | None]) -> str:
    """Also of booleans."""
    return f"{{{','.join(['NULL' if each is None else str(each) for each in numbers])}}}"


def array_of_texts(texts: Sequence[str | None]) -> str:
    known = [each for each in texts if each is not None]
    if len(known) < len(texts):
        return f"{{{','.join(['NULL' if each is None else _quoted(each) for each in texts])}}}"
    joined = '","'.join(known)
    if "\\" in joined or joined.count('"') != 2 * (len(known) - 1):
        joined = '","'.join([_escaped(each) for each in known])
    return f'{{"{joined}"}}' if known else "{}"


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


WRITERS: Mapping[str, Callable[[Sequence[Any]], str]] = {
    "bigint": array_of_numbers,
    "boolean": array_of_numbers,
    "text": array_of_texts,
    "uuid": array_of_ids,
}
"""What writes an array, by the type of its elements."""
