"""Real servers for tests. Each test process has its own, which end with it."""

import asyncio
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from uuid import uuid4

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from adapters.storage.s3 import S3Bucket
from tests.suite import needs


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets, which a server's own user may traverse."""
    with tempfile.TemporaryDirectory(prefix="wearon-") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@contextmanager
def postgres() -> Iterator[EmbeddedPostgres]:
    """PostgreSQL with our tables, without durability."""
    with folder() as path, EmbeddedPostgres(path / "postgres", durable=False) as server:
        asyncio.run(_migrate(server.url()))
        yield server


@contextmanager
def valkey() -> Iterator[EmbeddedValkey]:
    with folder() as path, EmbeddedValkey(path / "valkey", durable=False) as server:
        yield server


@contextmanager
def s3() -> Iterator[str]:
    """The URL of an S3 server (moto). It supports conditional uploads, but does not check
    signatures or their expiry. It handles one request at a time: with several threads it loses
    objects that are written twice."""
    needs.GUARD.check(needs.S3, "the start of an S3 service")
    # Importing moto takes a second, so only tests that need S3 do it.
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def new_bucket(s3_url: str, *, timeout_seconds: float = 10) -> S3Bucket:
    """An empty bucket on the server."""
    name = f"pictures-{uuid4()}"
    request = urllib.request.Request(f"{s3_url}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    return bucket_at(s3_url, name=name, timeout_seconds=timeout_seconds)


def bucket_at(s3_url: str, *, name: str = "pictures", timeout_seconds: float = 10) -> S3Bucket:
    """A bucket that need not exist."""
    return S3Bucket(
        name=name,
        region="us-east-1",
        endpoint=s3_url,
        path_style=True,
        access_key_id="us",
        secret_access_key="hunter2hunter2",
        timeout_seconds=timeout_seconds,
    )


async def _migrate(url: str) -> None:
    database = Database(url, limits=DatabaseLimits())
    try:
        await migrate(database, all_migrations())
    finally:
        await database.close()
