"""Calls of the console's pages, as a browser or a program sends them."""

from http.cookies import SimpleCookie
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Leave redirects to the test."""


OPENER = build_opener(_NoRedirect)


def call(
    url: str, cookie: str = "", fields: dict[str, object] | None = None
) -> tuple[int, str, str]:
    """Status, body, and the cookie that was set or else the one that was sent."""
    body = None if fields is None else urlencode(fields).encode()
    headers = {"Accept": "application/json" if fields is None else "text/html", "Cookie": cookie}
    try:
        with OPENER.open(Request(url, body, headers)) as answer:
            status, text, sent = answer.status, answer.read().decode(), answer.headers
    except HTTPError as error:
        status, text, sent = error.code, error.read().decode(), error.headers
        error.close()
    jar = SimpleCookie(sent.get("Set-Cookie", ""))
    return status, text, "; ".join(f"{name}={jar[name].value}" for name in jar) or cookie
