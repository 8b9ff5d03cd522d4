"""A database as Supabase sets it up, as far as it decides who may do what."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from adapters.embedded.postgres import EmbeddedPostgres
from tests.support import servers
from tests.support.roles import Connection, url_as

ROLES = """
    CREATE ROLE anon NOLOGIN;
    CREATE ROLE authenticated NOLOGIN;
    CREATE ROLE service_role NOLOGIN BYPASSRLS;
    CREATE ROLE authenticator LOGIN NOINHERIT;
    GRANT anon, authenticated, service_role TO authenticator;
    CREATE ROLE postgres LOGIN CREATEROLE CREATEDB REPLICATION BYPASSRLS;
    CREATE ROLE supabase_auth_admin NOLOGIN NOINHERIT CREATEROLE"""

DATABASE = """
    GRANT CREATE ON DATABASE "{database}" TO postgres;
    ALTER SCHEMA public OWNER TO postgres;
    GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
    CREATE SCHEMA auth AUTHORIZATION supabase_auth_admin;
    CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT nullif(current_setting('request.jwt.claims', true)::jsonb ->> 'sub', '')::uuid $$;
    GRANT USAGE ON SCHEMA auth TO postgres, anon, authenticated, service_role;
    SET ROLE postgres;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public
        GRANT ALL ON TABLES TO anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public
        GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public
        GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
    CREATE PUBLICATION supabase_realtime;
    RESET ROLE"""


@contextmanager
def server() -> Iterator[EmbeddedPostgres]:
    """A cluster with Supabase's roles, and no database of ours."""
    with (
        servers.folder() as path,
        EmbeddedPostgres(
            Path(path) / "postgres", durable=False, settings={"wal_level": "logical"}
        ) as started,
    ):
        asyncio.run(_execute(started.url(), ROLES))
        yield started


async def create_database(server: EmbeddedPostgres, name: str) -> str:
    """The URL of a new database for ``postgres``, who owns everything but is no superuser."""
    await asyncio.to_thread(server.create_database, name)
    await _execute(server.url(name), DATABASE.format(database=name))
    return url_as(server.url(name), "postgres")


@asynccontextmanager
async def request_as(url: str, role: str, user_id: str = "") -> AsyncIterator[Connection]:
    """A connection as Supabase's REST API has it for a request with a token of the role."""
    connection = await asyncpg.connect(url_as(url, "authenticator"))
    try:
        claims = json.dumps({"role": role, "sub": user_id})
        await connection.execute("SELECT set_config('request.jwt.claims', $1, false)", claims)
        await connection.execute(f"SET ROLE {role}")
        yield connection
    finally:
        await connection.close()


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
