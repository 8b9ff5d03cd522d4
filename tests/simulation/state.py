"""All that a world holds, as values that can be compared."""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

VALUES = (type(None), str, bytes, int, float, Enum, UUID, datetime, timedelta)
OURS = ("adapters.", "domain.", "tests.")


def state_of(thing: Any, path: tuple[int, ...] = ()) -> object:
    """What can be reached from ``thing`` through our objects and the collections in them. Two
    states are equal only if no object of ours can tell the difference."""
    if isinstance(thing, VALUES):
        return thing
    if id(thing) in path:
        return "itself"
    inside = (*path, id(thing))
    if isinstance(thing, dict):
        return [(state_of(key, inside), state_of(value, inside)) for key, value in thing.items()]
    if isinstance(thing, list | tuple | deque):
        return [state_of(item, inside) for item in thing]
    if isinstance(thing, set | frozenset):
        return {repr(state_of(item, inside)) for item in thing}
    return [(name, state_of(value, inside)) for name, value in _attributes(thing)]


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    """The type, and what an object of ours holds in its dictionary and its slots."""
    yield "type", type(thing).__qualname__
    if type(thing).__module__.startswith(OURS):
        yield from getattr(thing, "__dict__", {}).items()
        for name in getattr(type(thing), "__slots__", ()):
            yield name, getattr(thing, name)
