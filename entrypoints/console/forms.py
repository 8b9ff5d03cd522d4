"""What an action is: what it shows before, what its form has, and what it says afterwards."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from domain.console_actions import Act
from domain.credits import Discrepancy, Owner
from domain.errors import InvalidInput
from entrypoints.console import queries
from entrypoints.console.services import Services

Given = Mapping[str, str]
"""What the form is about, and the values of its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of the form. ``choices`` are values with their labels."""

    name: str
    label: str
    value: str = ""
    is_number: bool = False
    is_required: bool = True
    choices: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What the action would do. ``blocked`` says why it cannot be done now. ``is_grave`` is hard to
    undo."""

    title: str
    button: str
    back: str
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    fields: Sequence[Field] = ()
    blocked: str | None = None
    is_grave: bool = False
    needs_reason: bool = True
    is_read_by_owner: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, and where to look. ``secret`` is shown this once."""

    title: str
    lines: Sequence[str]
    path: str
    path_label: str
    secret: str | None = field(default=None, repr=False)
    findings: Sequence[Discrepancy] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """``names`` are what the form is about, ``presets`` fields that a link may fill. ``reads``: the
    action changes nothing. ``resumes``: a press that failed half-way is continued under its own id.
    """

    names: Sequence[str]
    preview: Callable[[Services, Given], Awaitable[Preview]]
    run: Callable[[Services, Given, Act], Awaitable[Outcome]]
    presets: Sequence[str] = ()
    reads: bool = False
    resumes: bool = False


def session_id_of(given: Given) -> UUID:
    return required_id(given, "session")


def required_id(given: Given, name: str) -> UUID:
    found = queries.id_of(given.get(name, ""), field=name)
    if found is None:
        raise InvalidInput(name, "is required")
    return found


def owner_of(given: Given) -> Owner:
    found = queries.owner_of(given.get("owner", ""))
    if found is None:
        raise InvalidInput("owner", "is required")
    return found


def amount_of(given: Given) -> int:
    found = queries.number_of(given.get("amount", ""), field="amount")
    if found is None:
        raise InvalidInput("amount", "is required")
    return found
