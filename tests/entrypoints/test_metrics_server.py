"""The server of ``/metrics``: it answers, and a slow or silent scraper holds up no other one."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from structlog.testing import capture_logs

from config.settings import SettingsError
from entrypoints.metrics import server as module
from entrypoints.metrics.server import MAX_SCRAPES, MetricsServer

DEADLINE_SECONDS = 30.0


def page(accept: str) -> tuple[bytes, str]:
    return f"for {accept}".encode(), "text/plain; version=0.0.4"


def broken_page(_: str) -> tuple[bytes, str]:
    raise RuntimeError("a bug")


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with started(MetricsServer("127.0.0.1", 0, page)) as server:
        yield server


@contextmanager
def started(server: MetricsServer) -> Iterator[MetricsServer]:
    server.start()
    try:
        yield server
    finally:
        server.close()


def get(server: MetricsServer, path: str = "/metrics") -> bytes:
    request = Request(f"http://127.0.0.1:{server.port}{path}", headers={"Accept": "text/x"})
    with urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        return bytes(answer.read())


def silent(server: MetricsServer) -> socket.socket:
    """A scraper that sends nothing."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_SECONDS)


def test_page_is_answered_in_the_format_that_is_asked_for(server: MetricsServer) -> None:
    assert get(server, "/metrics?a=b") == b"for text/x"


def test_other_paths_are_unknown(server: MetricsServer) -> None:
    with pytest.raises(HTTPError) as caught:
        get(server, "/")

    assert caught.value.code == 404
    caught.value.close()


def test_page_that_fails_is_a_500_and_one_log_line() -> None:
    with (
        started(MetricsServer("127.0.0.1", 0, broken_page)) as server,
        capture_logs() as logs,
        pytest.raises(HTTPError) as caught,
    ):
        get(server)

    assert caught.value.code == 500
    caught.value.close()
    assert [line["event"] for line in logs] == ["metrics_failed"]


def test_taken_port_is_one_line_that_names_the_setting(server: MetricsServer) -> None:
    """Two workers with the same environment: the second one says what to change."""
    with pytest.raises(SettingsError) as caught:
        MetricsServer("127.0.0.1", server.port, page)

    assert str(caught.value) == (
        f"WEARON_METRICS_PORT: cannot listen on 127.0.0.1, port {server.port}: Address already in"
        " use. Each worker on a host needs a port of its own"
    )


def test_further_scrapers_are_closed_at_once(server: MetricsServer) -> None:
    """However many there are, as long as the first ones last."""
    with ExitStack() as stack:
        scrapers = [stack.enter_context(silent(server)) for _ in range(MAX_SCRAPES + 2)]

        endings = [one.recv(1) for one in scrapers[MAX_SCRAPES:]]
        for one in scrapers[:MAX_SCRAPES]:
            one.settimeout(0)

        assert endings == [b"", b""]
        for one in scrapers[:MAX_SCRAPES]:
            with pytest.raises(BlockingIOError):
                one.recv(1)


def test_scraper_that_drips_is_cut_off(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, and the whole request never does. Others are answered again."""
    monkeypatch.setattr(module, "SCRAPE_SECONDS", 0.2)
    deadline = time.monotonic() + DEADLINE_SECONDS
    with silent(server) as dripping:
        dripping.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
        dripping.settimeout(0.05)

        ending = None
        while ending is None and time.monotonic() < deadline:
            try:
                dripping.sendall(b"a")
                ending = dripping.recv(1)
            except TimeoutError:
                continue
            except OSError:
                ending = b""

    assert ending == b""
    assert get(server) == b"for text/x"
