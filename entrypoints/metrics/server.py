"""Answers scrapes in threads of its own. Every number is bounded: connections, their lifetime, the
length of a request. A scraper that is slow, or says nothing, delays no other process."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import structlog

from config.settings import SettingsError

MAX_SCRAPES = 4
"""Connections that are served at a time. Further ones are closed at once."""
SCRAPE_SECONDS = 10.0
"""How long a connection may last."""
_STEP_SECONDS = 5.0
"""How long a read or a write of a connection may take."""
_CLOSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class MetricsServer:
    """Serves ``GET /metrics`` from ``start`` to ``close``. ``page`` returns the body and the
    content type for an ``Accept`` header. Raises ``SettingsError`` if it cannot listen."""

    def __init__(self, host: str, port: int, page: Callable[[str], tuple[bytes, str]]) -> None:
        try:
            self._server = _Server(host, port, page)
        except OSError as error:
            raise SettingsError(
                f"WEARON_METRICS_PORT: cannot listen on {host}, port {port}: {error.strerror}."
                " Each worker on a host needs a port of its own"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(_CLOSE_SECONDS)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_SCRAPES

    def __init__(self, host: str, port: int, page: Callable[[str], tuple[bytes, str]]) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.page = page
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002, ANN401
        with self._lock:
            if len(self._deadlines) >= MAX_SCRAPES:
                return False
            self._deadlines[request] = time.monotonic() + SCRAPE_SECONDS
            return True

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as typeshed has it
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: cut off what lasts too long. Its thread then ends."""
        now = time.monotonic()
        with self._lock:
            late = [each for each, deadline in self._deadlines.items() if deadline < now]
        for connection in late:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A connection that broke is the scraper's; the page's own errors are answered."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "wearon"
    sys_version = ""
    timeout = _STEP_SECONDS

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/metrics":
            self._answer(404, b"See /metrics\n", "text/plain")
            return
        try:
            body, content_type = self.server.page(self.headers.get("Accept", ""))
        except Exception:
            log.exception("metrics_failed")
            self._answer(500, b"The metrics could not be read; see the log\n", "text/plain")
            return
        self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden name
        """Scrapes are not worth a line each."""
