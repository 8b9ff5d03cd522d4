"""Pages from templates, the same data as JSON, and the static files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Response

from domain.console_access import ConsoleAccess, SignIn
from entrypoints.console.services import ROLES, Setup
from entrypoints.console.texts import FILTERS
from entrypoints.http.inputs import AnyRequest

_FOLDER = Path(__file__).parent
_STATIC = _FOLDER / "static"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

MENU = (
    ("/console", "Overview"),
    ("/console/sessions", "Sessions"),
    ("/console/owners", "Owners"),
    ("/console/queue", "Queue"),
    ("/console/workers", "Workers"),
    ("/console/costs", "Costs"),
    ("/console/keys", "Keys"),
    ("/console/audit", "Audit log"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """A file that never changes under its URL, which has its hash."""

    data: bytes
    media_type: str
    version: str


def static_files() -> dict[str, StaticFile]:
    """All of them, by name: a few, which stay in memory."""
    return {
        path.name: StaticFile(
            data=(data := path.read_bytes()),
            media_type=_MEDIA_TYPES[path.suffix],
            version=hashlib.sha256(data).hexdigest()[:12],
        )
        for path in sorted(_STATIC.rglob("*"))
        if path.suffix in _MEDIA_TYPES
    }


class Pages:
    """Renders templates. Every value is escaped, and a name that a template misspells fails."""

    def __init__(
        self, *, access: ConsoleAccess, setup: Setup, files: Mapping[str, StaticFile]
    ) -> None:
        self._access = access
        self._setup = setup
        self._environment = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {each.__name__: each for each in FILTERS}
        self._environment.globals |= {
            "static": lambda name: f"/console/static/{name}?v={files[name].version}",
            "environment": setup.environment,
            "menu": MENU,
        }

    def answer(
        self,
        request: AnyRequest,
        template: str,
        data: Mapping[str, Any],
        *,
        only_html: Mapping[str, Any] | None = None,
        status: int = 200,
    ) -> Response[Any]:
        """The page, or its data for a program. ``only_html`` is what a program has no use for."""
        if wants_json(request):
            return json_response({"data": data, "error": None}, status)
        html = self.render(request, template, {**data, **(only_html or {})})
        return Response(html, status_code=status, media_type="text/html")

    def render(self, request: AnyRequest, template: str, data: Mapping[str, Any]) -> str:
        person = person_of(request)
        path = request.scope["path"]
        section = next((top for top, _ in reversed(MENU) if path.startswith(top)), "")
        return self._environment.get_template(template).render(
            person=None if person is None else _shown(person),
            token="" if person is None else self._access.form_token(person),
            allowed=self.allowed(person),
            section=section if section != MENU[0][0] or path == section else "",
            **data,
        )

    def allowed(self, person: SignIn | None) -> set[str]:
        """The actions that this person may begin here."""
        if person is None or self._setup.read_only or not person.verified:
            return set()
        return {name for name, role in ROLES.items() if person.role.includes(role)}


def _shown(person: SignIn) -> dict[str, Any]:
    return {
        "name": person.name,
        "role": person.role,
        "verified": person.verified,
        "has_cookie": not person.proof.startswith("header."),
    }


def person_of(request: AnyRequest) -> SignIn | None:
    """Who is signed in; None on the pages before that."""
    person = request.scope["state"].get("person")
    return person if isinstance(person, SignIn) else None


def wants_json(request: AnyRequest) -> bool:
    """Browsers name text/html in all that they load as pages."""
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def json_response(value: object, status: int = 200) -> Response[bytes]:
    return Response(
        msgspec.json.encode(value, enc_hook=str),
        status_code=status,
        media_type="application/json",
    )
