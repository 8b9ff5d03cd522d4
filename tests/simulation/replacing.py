"""Mutants: changes of the code for the duration of a block."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Mutant = Callable[[], AbstractContextManager[None]]


@contextmanager
def instead(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace attributes for the duration of the block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
