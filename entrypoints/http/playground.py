"""The playground: one static page that uses the public API, and where ``/`` leads.

The page is for people who try the service. It gets no cookie and no credential from us: the token
is in the part of its address that browsers do not send.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Redirect

from domain.errors import NotFound
from entrypoints.http.inputs import AnyRequest

PLAYGROUND_PATH = "/playground"

_FOLDER = Path(__file__).parent / "static" / "playground"
_PAGE = "index.html"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Playground:
    """``samples_url`` is where sample pictures are, without the last ``/``; None where there are
    none. ``picture_origins`` are those of links to pictures and uploads."""

    samples_url: str | None
    picture_origins: Sequence[str]

    @property
    def page_policy(self) -> str:
        """The page's content security policy: its own files, the API and pictures."""
        sources = " ".join(["'self'", *self.picture_origins])
        return (
            "default-src 'none'; script-src 'self'; style-src 'self';"
            f" img-src {sources} blob: data:; connect-src {sources};"
            " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
        )


def leading_to(path: str) -> HTTPRouteHandler:
    """``GET /``, which leads to a page for people."""

    @get("/", include_in_schema=False, status_code=307)
    async def get_root() -> Redirect:
        return Redirect(path, status_code=307)

    return get_root


def declare_playground(playground: Playground) -> list[HTTPRouteHandler]:
    """The page and its files, read once."""
    files = {path.name: _File.read(path) for path in sorted(_FOLDER.iterdir())}
    page = files.pop(_PAGE).with_text("SAMPLES_URL", escape(playground.samples_url or ""))
    page_headers = {"Content-Security-Policy": playground.page_policy}

    @get(PLAYGROUND_PATH, include_in_schema=False)
    async def get_playground(request: AnyRequest) -> Response[bytes]:
        return page.answer(request, page_headers)

    @get(f"{PLAYGROUND_PATH}/{{name:str}}", include_in_schema=False)
    async def get_playground_file(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        if name not in files:
            raise NotFound(name)
        return files[name].answer(request, {})

    return [get_playground, get_playground_file]


@dataclass(frozen=True, slots=True)
class _File:
    """One of the page's files. Browsers keep it and ask each time whether it is still current, so
    that a page never meets the script of another version."""

    data: bytes
    media_type: str

    @classmethod
    def read(cls, path: Path) -> "_File":
        return cls(path.read_bytes(), _TYPES[path.suffix])

    def with_text(self, placeholder: str, text: str) -> "_File":
        return _File(self.data.replace(placeholder.encode(), text.encode()), self.media_type)

    def answer(self, request: AnyRequest, headers: dict[str, str]) -> Response[bytes]:
        tag = f'"{sha256(self.data).hexdigest()[:32]}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag, **headers}
        if request.headers.get("if-none-match") == tag:
            return Response(b"", status_code=304, headers=headers, media_type=self.media_type)
        return Response(self.data, media_type=self.media_type, headers=headers)
