"""Roles that own nothing, for tests of what a role may do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias
from uuid import uuid4

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def url_as(url: str, role: str) -> str:
    """The URL of an embedded server, which trusts everybody, for another role."""
    return f"postgresql://{role}@{url.partition('@')[2]}"


async def create_member(url: str, name: str, group: str) -> None:
    """Create the login role ``name`` in the group, unless the cluster has it."""
    owner = await asyncpg.connect(url)
    try:
        with suppress(asyncpg.DuplicateObjectError):
            await owner.execute(f"CREATE ROLE {name} LOGIN IN ROLE {group}")
    finally:
        await owner.close()


@asynccontextmanager
async def member(url: str, group: str | None) -> AsyncIterator[Connection]:
    """A connection of a new login role in the group; without one, it has what PUBLIC has."""
    name = f"test_{uuid4().hex}"
    owner = await asyncpg.connect(url)
    try:
        await owner.execute(f"CREATE ROLE {name} LOGIN {f'IN ROLE {group}' if group else ''}")
        connection = await asyncpg.connect(url_as(url, name))
        try:
            yield connection
        finally:
            await connection.close()
            await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    finally:
        await owner.close()


async def outcome(connection: Connection, sql: str) -> str:
    """The SQLSTATE with which a statement is rejected, else the server's word on what it did, such
    as ``UPDATE 1``. Nothing of it stays."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        return await connection.execute(sql)
    except asyncpg.PostgresError as error:
        return error.sqlstate or ""
    finally:
        await transaction.rollback()
