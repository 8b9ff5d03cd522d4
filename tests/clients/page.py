"""A page in a real browser that has the TypeScript client's modules beside it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.chromium import PROGRAM, Page, chromium


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """It says nothing."""


@contextmanager
def client_page(modules: Path) -> Iterator[Page]:
    """Of another origin than the API."""
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no chromium: apt-get install chromium")
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    (modules / "page.html").write_text("<!DOCTYPE html><link rel=icon href=data:,>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(modules)))
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    try:
        with chromium() as browser:
            yield browser.open(f"http://localhost:{server.server_address[1]}/page.html")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
