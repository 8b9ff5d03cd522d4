"""Why the database is unavailable, in one sentence that names no secret."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.limits import DatabaseLimits
from domain.errors import DatabaseUnavailable
from tests.adapters.databases import connected
from tests.support.proxy import HOST
from tests.support.tls import self_signed

pytestmark = pytest.mark.anyio

PATIENT = DatabaseLimits(connections=1, command_seconds=5)
POOLER = "behind a transaction pooler set WEARON_DATABASE_TRANSACTION_POOLER=true"
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


async def cause_of(url: str, sql: str = "SELECT 1", *, pooled: bool = False) -> str:
    async with connected(url, PATIENT, transaction_pooler=pooled) as database:
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.fetch(sql)
    assert "hunter2" not in f"{caught.value} {caught.value.cause}"
    return str(caught.value.cause)


@asynccontextmanager
async def server_that_says(sqlstate: str, message: str) -> AsyncIterator[str]:
    """The URL of a server that answers every connection with this error."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()
        writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://wearon:hunter2@{HOST}:{port}/wearon?sslmode=disable"


@asynccontextmanager
async def server_with_a_certificate(folder: Path) -> AsyncIterator[str]:
    """The URL of a server with a certificate that no authority has signed."""
    context, _ = self_signed("localhost", folder)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(_SSL_REQUEST)) == _SSL_REQUEST
        writer.write(b"S")
        await writer.drain()
        with suppress(OSError):
            await writer.start_tls(context)
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://wearon:hunter2@{HOST}:{port}/wearon"


@pytest.mark.parametrize(
    ("sqlstate", "message", "more"),
    [
        ("28P01", 'password authentication failed for user "wearon"', ""),
        ("28000", 'no pg_hba.conf entry for host "10.0.0.1", no encryption', ""),
        ("53300", "sorry, too many clients already", ""),
        ("08P01", "unsupported startup parameter: client_connection_check_interval", POOLER),
    ],
)
async def test_refused_connection_has_the_servers_sentence(
    sqlstate: str, message: str, more: str
) -> None:
    """With its code and, if it helps, the name of the setting."""
    async with server_that_says(sqlstate, message) as url:
        cause = await cause_of(url)

    assert cause == f"database {sqlstate} {message}" + (f"; {more}" if more else "")


async def test_missing_database(postgres: EmbeddedPostgres) -> None:
    """Its name is in the cause."""
    url = postgres.url().replace("/wearon?", "/nothing?")

    assert await cause_of(url) == 'database 3D000 database "nothing" does not exist'


async def test_database_that_was_not_migrated(postgres: EmbeddedPostgres) -> None:
    """The message says what to do."""
    cause = await cause_of(postgres.url(), "SELECT * FROM nothing")

    assert cause == 'database 42P01 relation "nothing" does not exist'


async def test_missing_privilege_is_one_sentence(postgres: EmbeddedPostgres) -> None:
    """It is no bug of ours: an operator grants it, and the work goes on."""
    sql = "DO $$ BEGIN CREATE ROLE poor; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    async with connected(postgres.url(), PATIENT) as database:
        await database.fetch(sql)
        await database.fetch("GRANT poor TO CURRENT_USER")

    cause = await cause_of(f"{postgres.url()}&role=poor", "SELECT * FROM generation_sessions")

    assert cause == "database 42501 permission denied for table generation_sessions"


async def test_prepared_statement_of_another_connection(postgres: EmbeddedPostgres) -> None:
    """Behind a transaction pooler that nobody told us about."""
    cause = await cause_of(postgres.url(), "EXECUTE nothing")

    assert cause == f"database 26000 prepared statement of another connection; {POOLER}"


async def test_nobody_listens() -> None:
    """The system's words, without the address."""
    url = f"postgresql://wearon:hunter2@{HOST}:1/wearon"

    assert await cause_of(url) == "database connection refused"


async def test_unknown_host() -> None:
    """A name that leads nowhere."""
    url = "postgresql://wearon:hunter2@nowhere.invalid/wearon"

    assert await cause_of(url) == "database host name not found"


async def test_wrong_certificate(tmp_path: Path) -> None:
    """``sslmode=verify-full`` with a certificate of our own authority only."""
    ours = tmp_path / "ours"
    ours.mkdir()
    self_signed("elsewhere", ours)
    async with server_with_a_certificate(tmp_path) as url:
        cause = await cause_of(f"{url}?sslmode=verify-full&sslrootcert={ours / 'server.pem'}")

    assert cause.startswith("database certificate verify failed: ")
