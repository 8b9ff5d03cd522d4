"""The texts in the modules of the adapters."""

import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module

import adapters


def constants() -> list[tuple[str, str]]:
    """Every text in a module below ``adapters``, or in a class or container there, by its name."""
    found: list[tuple[str, str]] = []
    for module in pkgutil.walk_packages(adapters.__path__, "adapters."):
        for label, value in _members(module.name, import_module(module.name)):
            found += _texts(label, value)
            if isinstance(value, type) and value.__module__ == module.name:
                for inner_label, inner in _members(label, value):
                    found += _texts(inner_label, inner)
    return found


def _members(label: str, owner: object) -> Iterator[tuple[str, object]]:
    for name, value in vars(owner).items():
        if not name.startswith("__"):
            yield f"{label}.{name}", value


def _texts(label: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield label, value
        return
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((each.name, getattr(value, each.name)) for each in fields(value))
    for key, part in parts:
        yield from _texts(f"{label}[{key!r}]", part)
