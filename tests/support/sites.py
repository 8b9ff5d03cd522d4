"""A server on this machine that answers with prepared bytes, over HTTP or HTTPS."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from tests.support.tokens import NOW


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Site:
    """Sends ``chunks`` to everyone, with ``pause_seconds`` before each but the first, and then
    closes the connection unless it ``hangs``."""

    def __init__(self) -> None:
        self.chunks: Sequence[bytes] = ()
        self.pause_seconds = 0.0
        self.hangs = False
        self.requests: list[bytes] = []
        self.url = ""
        self._stopped = asyncio.Event()

    def serve(self, *chunks: bytes, pause_seconds: float = 0.0, hangs: bool = False) -> None:
        self.chunks, self.pause_seconds, self.hangs = chunks, pause_seconds, hangs

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            for number, chunk in enumerate(self.chunks):
                if number:
                    await asyncio.sleep(self.pause_seconds)
                writer.write(chunk)
                await writer.drain()
            if self.hangs:
                await self._stopped.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running_site(tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site._respond, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    site.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/keys"
    try:
        yield site
    finally:
        site._stopped.set()
        server.close()


@cache
def certificate() -> tuple[bytes, bytes]:
    """The certificate of 127.0.0.1, signed by itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1_000))
        .not_valid_after(NOW + timedelta(days=10_000))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return signed.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def server_tls() -> ssl.SSLContext:
    """A context with the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        path = Path(folder, "pem")
        path.write_bytes(b"".join(certificate()))
        context.load_cert_chain(path)
    return context


def client_tls() -> ssl.SSLContext:
    """A context that trusts the certificate and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate()[0].decode())
    return context
