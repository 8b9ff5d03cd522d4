"""Name look-ups, against a name server on this machine that is silent about some names."""

import asyncio
import socket
from collections.abc import AsyncIterator
from time import monotonic
from typing import cast

import pytest

from adapters.images.lookups import DnsLookup

pytestmark = pytest.mark.anyio

_V4, _V6 = "93.184.216.34", "2606:2800:220:1::1"
_A, _AAAA = 1, 28


class NameServer(asyncio.DatagramProtocol):
    """Answers with ``_V4`` and ``_V6``; never if the name contains "silent", and with "no such
    name" if it contains "unknown"."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.release()
        if b"silent" in data:
            return
        assert self.transport is not None
        self.transport.sendto(_unknown(data) if b"unknown" in data else _answer(data), addr)


def _question(query: bytes) -> bytes:
    end = 12
    while query[end]:
        end += query[end] + 1
    return query[12 : end + 5]


def _answer(query: bytes) -> bytes:
    question = _question(query)
    kind = int.from_bytes(question[-4:-2], "big")
    address = {
        _A: socket.inet_pton(socket.AF_INET, _V4),
        _AAAA: socket.inet_pton(socket.AF_INET6, _V6),
    }[kind]
    record = b"\xc0\x0c" + question[-4:] + bytes([0, 0, 0, 60, 0, len(address)]) + address
    return query[:2] + bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]) + question + record


def _unknown(query: bytes) -> bytes:
    return query[:2] + bytes([0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]) + _question(query)


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    yield server
    transport.close()


@pytest.fixture
async def lookup(server: NameServer) -> AsyncIterator[DnsLookup]:
    assert server.transport is not None
    host, port = server.transport.get_extra_info("sockname")
    lookup = DnsLookup([f"{host}:{port}"])
    yield lookup
    await lookup.close()


async def test_all_addresses_of_both_families_are_found(lookup: DnsLookup) -> None:
    """Each of them is checked before a connection, so none may be missing."""
    assert sorted(await lookup("pictures.example.com")) == [_V6, _V4]


async def test_the_hosts_file_is_read(lookup: DnsLookup, server: NameServer) -> None:
    """Names such as ``localhost`` need no name server."""
    found = await lookup("localhost")

    assert (("127.0.0.1" in found or "::1" in found), server.asked.locked()) == (True, True)


async def test_an_unknown_name_is_an_os_error(lookup: DnsLookup) -> None:
    """As with the system's own look-up."""
    with pytest.raises(OSError, match="not found"):
        await lookup("unknown.example.com")


async def test_silent_look_ups_hold_up_nobody(lookup: DnsLookup, server: NameServer) -> None:
    """Look-ups that wait for a silent server take neither a place from other look-ups nor a thread
    of the pool that decodes the provider's answers."""
    silent = [asyncio.create_task(lookup(f"silent-{number}.example.com")) for number in range(100)]
    for _ in silent:
        await server.asked.acquire()
    began = monotonic()

    await lookup("pictures.example.com")
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(20)))

    assert (monotonic() - began < 1, any(task.done() for task in silent)) == (True, False)
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)


async def test_a_silent_look_up_ends(lookup: DnsLookup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an ``OSError`` after its deadline."""
    monkeypatch.setattr("adapters.images.lookups.LOOKUP_SECONDS", 0.05)

    with pytest.raises(OSError):  # noqa: PT011 - a timeout has no text
        await lookup("silent.example.com")
