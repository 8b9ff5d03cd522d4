"""Pages in Debian's chromium, driven by playwright.

A page's content security policy stops the ``eval`` of ``wait_for_function``: wait with ``expect``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.clients.dev import Dev, running_dev
from tests.support.chromium import PROGRAM

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

WAIT_MS = 45_000.0
"""How long an expectation waits: for a machine with two slow processors that run other tests."""

LOCAL = {"127.0.0.1"}
WITHOUT_HOST = {"blob", "data", "about"}


class Pages:
    """Opens pages, each with a profile of its own, and notes what they must not do: an error in the
    console, an uncaught exception, a request to another host."""

    def __init__(self, browser: "Browser") -> None:
        self._browser = browser
        self._expected: list[str] = []
        self._complaints: list[str] = []

    @property
    def complaints(self) -> list[str]:
        return [
            complaint
            for complaint in self._complaints
            if not any(text in complaint for text in self._expected)
        ]

    def open(self, url: str, **options: Any) -> "Page":
        """A new page at ``url``. The options are those of playwright's ``new_context``."""
        context = self._browser.new_context(**options)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self._complaints.append(f"exception: {error}"))
        page.on("request", self._note_request)
        page.goto(url)
        return page

    def expect_complaint(self, text: str) -> None:
        """The test provokes a complaint with this text, as browsers log each failed response."""
        self._expected.append(text)

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()

    def _note_console(self, message: "ConsoleMessage") -> None:
        if message.type in {"error", "warning"}:
            self._complaints.append(f"console: {message.text}")

    def _note_request(self, request: "Request") -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in WITHOUT_HOST and parts.hostname not in LOCAL:
            self._complaints.append(f"request: {request.url}")


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    """Ends with the package: while it runs, no event loop can run in this thread."""
    from playwright.sync_api import expect, sync_playwright  # noqa: PLC0415 - it may be missing

    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def pages(browser: "Browser") -> Iterator[Pages]:
    """Opens pages, and fails the test at its end if one of them complained."""
    opened = Pages(browser)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture(scope="package")
def dev() -> Iterator[Dev]:
    """A running `wearon dev --in-memory`."""
    with running_dev() as running:
        yield running
