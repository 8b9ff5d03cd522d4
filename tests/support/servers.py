"""Real servers for tests: one of each per test process, gone with it."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres.database import Database, DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets, that a server's own user may pass through."""
    with tempfile.TemporaryDirectory(prefix="wearon-") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@contextmanager
def postgres() -> Iterator[EmbeddedPostgres]:
    """PostgreSQL with our tables in its database, and no care for a crash of the machine."""
    with folder() as path, EmbeddedPostgres(path / "postgres", durable=False) as server:
        asyncio.run(_migrate(server.url()))
        yield server


@contextmanager
def valkey() -> Iterator[EmbeddedValkey]:
    with folder() as path, EmbeddedValkey(path / "valkey", durable=False) as server:
        yield server


async def _migrate(url: str) -> None:
    database = Database(url, limits=DatabaseLimits())
    try:
        await migrate(database, all_migrations())
    finally:
        await database.close()
