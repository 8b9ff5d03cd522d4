"""Dataclasses with every field filled, found by their type hints: a test that uses them notices a
new field by itself."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

from tests.support.clock import START

T = TypeVar("T")


def filled(cls: type[T], *, seed: int = 1) -> T:
    """An instance whose fields all have a value of their own: never None, and not the default.
    Another seed makes other values."""
    values = {
        name: _value(hint, name, seed + place)
        for place, (name, hint) in enumerate(_hints(cls).items())
    }
    return cls(**values)


def variations(value: object) -> Iterator[tuple[str, Any]]:
    """Copies of a filled dataclass that differ in one place each, nested ones included, by the name
    of the place."""
    for name, hint in _hints(type(value)).items():
        for place, other in _others(name, getattr(value, name), hint):
            yield place, replace(value, **{name: other})  # type: ignore[type-var]


def _others(name: str, value: object, hint: Any) -> Iterator[tuple[str, Any]]:
    if NoneType in get_args(hint):
        yield f"{name} is None", None
    if isinstance(value, tuple):
        yield f"{name} in another order", value[::-1]
        yield f"{name} without the last", value[:-1]
        for place, other in variations(value[0]):
            yield f"{name}[0].{place}", (other, *value[1:])
    elif is_dataclass(value):
        for place, other in variations(value):
            yield f"{name}.{place}", other
    elif isinstance(value, bool):
        yield name, not value
    else:
        yield name, _value(hint, name, 100)


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _value(hint: Any, name: str, seed: int) -> Any:
    if get_origin(hint) is UnionType:
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], name, seed + place) for place in (10, 20))
    if is_dataclass(hint):
        return filled(hint, seed=seed)  # type: ignore[arg-type]
    if issubclass(hint, Enum):
        members = list(hint)
        return members[1 + seed % (len(members) - 1)]
    simple: dict[type, Any] = {
        bool: True,
        int: 1_000 + seed,
        str: f"https://pictures.example/{name}-{seed}"
        if name.endswith("url")
        else f"{name}-{seed}",
        Decimal: Decimal(seed) / 1_000_000,
        UUID: UUID(int=seed),
        datetime: START + timedelta(seconds=seed),
    }
    return simple[hint]
