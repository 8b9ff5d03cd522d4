"""Arrays that travel as texts: PostgreSQL reads what was written."""

from collections.abc import Sequence
from random import Random
from uuid import UUID

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.arrays import WRITERS
from tests.adapters.databases import connected

pytestmark = pytest.mark.anyio

PARTS = ['"', "\\", "{", "}", ",", " ", "'", "\n", "\t", "NULL", "a", "é", "𝄞", "\u2028"]
"""All that the syntax of arrays uses, and more."""


def texts(count: int) -> list[str]:
    random = Random(1)
    return ["".join(random.choices(PARTS, k=random.randrange(5))) for _ in range(count)]


def with_nulls(values: Sequence[object]) -> list[object]:
    return [value if place % 3 else None for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("type_", "arrays"),
    [
        ("text", [texts(2_000), with_nulls(texts(2_000)), *([text] for text in texts(200))]),
        ("text", [[], [""], ["a", "b"], [None]]),
        ("uuid", [[], [UUID(int=0)], [UUID(int=place << 64) for place in range(100)]]),
        ("bigint", [[], [-(2**63), 2**63 - 1, 0], with_nulls([1, 2, 3])]),
        ("boolean", [[], [True, False], with_nulls([True, False, True])]),
    ],
)
async def test_array_is_read_as_written(
    postgres: EmbeddedPostgres, type_: str, arrays: list[list[object]]
) -> None:
    read = f"SELECT $1::text::{type_}[]"
    async with connected(postgres.url()) as database:
        found = [await database.fetch_value(read, WRITERS[type_](array)) for array in arrays]

    assert found == arrays
