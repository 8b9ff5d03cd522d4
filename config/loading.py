"""Reads the settings from the environment and explains which variables are unusable."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import inspect

from config.settings import PREFIX, SETTINGS, Settings, SettingsError, about, variable_of

RENAMED = {
    "WEARON_STORE": "WEARON_DATABASE",
    "WEARON_CALLER_SECONDS": "WEARON_AUTH_CACHE_SECONDS",
    "WEARON_FOREIGN_SECONDS": "WEARON_EXTERNAL_WORKER_TIMEOUT_SECONDS",
    "WEARON_QUEUED_SECONDS": "WEARON_QUEUE_TTL_SECONDS",
    "WEARON_PUSH_AGAIN_SECONDS": "WEARON_REQUEUE_AFTER_SECONDS",
    "WEARON_PICTURE_SECONDS": "WEARON_PICTURE_DECODE_SECONDS",
    "WEARON_PICTURE_DAYS": "WEARON_PICTURE_LIFETIME_SECONDS",
    "WEARON_UPLOAD_DAYS": "WEARON_UPLOAD_LIFETIME_SECONDS",
}
"""Old names of settings. They are refused, because a setting under its old name has no effect."""


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings. An empty variable counts as not set. Raises ``SettingsError``."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in SETTINGS:
        variable = variable_of(field.name)
        if not (text := environ.get(variable, "").strip()):
            continue
        try:
            values[field.name] = _converted(text, field)
        except msgspec.ValidationError:
            problems.append(f"{variable}: must be {allowed(field)}")
    problems += _unknown(environ)
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        return Settings(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _converted(text: str, field: msgspec.structs.FieldInfo) -> object:
    """The value of a setting; a list's is separated by commas. Raises ``ValidationError``."""
    is_list = isinstance(about(field).type, inspect.VarTupleType)
    value = [part.strip() for part in text.split(",")] if is_list else text
    return msgspec.convert(
        value, field.type, strict=False, dec_hook=lambda kind, given: kind(given)
    )


def allowed(field: msgspec.structs.FieldInfo) -> str:
    """The allowed values of a setting, as the end of a sentence that begins with ``must be``."""
    meta = about(field)
    if examples := meta.extra_json_schema.get("examples"):
        return f"like `{examples[0]}`"
    return _described(meta.type.types[0] if isinstance(meta.type, inspect.UnionType) else meta.type)


def _described(kind: inspect.Type) -> str:
    match kind:
        case inspect.EnumType(cls=cls):
            return "one of " + ", ".join(f"`{option.value}`" for option in cls)
        case inspect.VarTupleType(item_type=item):
            return _list_of(item)
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.IntType() | inspect.FloatType():
            return _range(kind)
        case inspect.StrType(min_length=int(length)):
            return f"at least {length} characters"
    return "any text"


def _list_of(item: inspect.Type) -> str:
    if isinstance(item, inspect.EnumType):
        options = ", ".join(f"`{option.value}`" for option in item.cls)
        return f"one or more of {options}, separated by commas"
    return "one or more words, separated by commas"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    number = "an integer" if isinstance(kind, inspect.IntType) else "a number"
    least = f"above {kind.gt:.0f}" if kind.ge is None else f"from {kind.ge:.0f}"
    return f"{number} {least} to {kind.le:.0f}"


def _unknown(environ: Mapping[str, str]) -> list[str]:
    known = {variable_of(field.name) for field in SETTINGS}
    names = (name for name in sorted(environ) if name.startswith(PREFIX) and name not in known)
    return [f"{name}: {_renamed(name) or _no_such_setting(name, known)}" for name in names]


def _renamed(name: str) -> str | None:
    if (now := RENAMED.get(name)) is None:
        return None
    unit = ", in seconds instead of days" if name.endswith("_DAYS") else ""
    return f"renamed to {now}{unit}"


def _no_such_setting(name: str, known: set[str]) -> str:
    short = {variable.removeprefix(PREFIX): variable for variable in sorted(known)}
    nearest = get_close_matches(name.removeprefix(PREFIX), short, n=1, cutoff=0.5)
    hint = f"; did you mean {short[nearest[0]]}?" if nearest else ""
    return f"no such setting{hint} (`wearon settings` lists all)"
