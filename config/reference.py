"""The settings as documentation: what ``.env.example``, the README and ``wearon settings`` say."""

import msgspec

from config.settings import SETTINGS, about, allowed, variable_of

_HEAD = """\
# Every setting of wearon, with its default. Copy this file to .env, uncomment what you change, and
# read it with:  set -a; . ./.env; set +a
# `wearon dev` and `wearon demo` need none of it. An empty variable counts as not set.
"""


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """One environment variable. Without a default, ``default`` is empty."""

    name: str
    default: str
    allowed: str
    description: str


def variables() -> list[Variable]:
    """All variables, in the order in which they are declared."""
    return [
        Variable(
            name=variable_of(field.name),
            default=_text(field.default),
            allowed=allowed(field),
            description=about(field).extra_json_schema["description"],
        )
        for field in SETTINGS
    ]


def env_example() -> str:
    """The text of ``.env.example``."""
    entries = (
        f"\n# {variable.description} ({variable.allowed})\n# {variable.name}={variable.default}\n"
        for variable in variables()
    )
    return _HEAD + "".join(entries)


def markdown_table() -> str:
    """The settings table of the README."""
    rows = (
        f"| `{variable.name}` | {_code(variable.default)} | {variable.allowed} |"
        f" {variable.description} |\n"
        for variable in variables()
    )
    return "| variable | default | allowed | what it is |\n|---|---|---|---|\n" + "".join(rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _text(value: object) -> str:
    """A default as one would write it into the environment."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
