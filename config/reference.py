"""The settings as documentation: `wearon settings`, `.env.example` and `docs/settings.md`."""

import msgspec

from config.loading import allowed
from config.settings import SETTINGS, about, variable_of

_ENV_HEAD = """\
# All settings of wearon with their defaults. Copy this file to .env, uncomment the lines to change,
# and load it with:  set -a; . ./.env; set +a
# `wearon dev` and `wearon demo` need no settings. An empty variable counts as not set.
"""

_PAGE_HEAD = """\
# Settings

Every setting is an environment variable, and an empty variable counts as not set; times are in \
seconds. `wearon settings --markdown` prints this page.

"""


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """One environment variable. ``default`` is empty if there is none."""

    name: str
    default: str
    allowed: str
    description: str


def variables() -> list[Variable]:
    """All variables in the order of their declaration."""
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
    """The contents of ``.env.example``."""
    entries = (
        f"\n# {variable.description} ({variable.allowed})\n# {variable.name}={variable.default}\n"
        for variable in variables()
    )
    return _ENV_HEAD + "".join(entries)


def markdown_page() -> str:
    """The contents of ``docs/settings.md``."""
    rows = (
        f"| `{variable.name}` | {_code(variable.default)} | {variable.allowed} |"
        f" {variable.description} |\n"
        for variable in variables()
    )
    table = "| Variable | Default | Allowed | Description |\n|---|---|---|---|\n"
    return _PAGE_HEAD + table + "".join(rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _text(value: object) -> str:
    """A default as it would be written in the environment."""
    match value:
        case None:
            return ""
        case tuple():
            return ",".join(value)
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)
