"""Every parameter of a PostgreSQL or Redis URL is passed on, translated, dropped, or refused."""

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres import urls as postgres_urls
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.urls import check_postgres_url, parse_postgres_url
from adapters.queue import urls as redis_urls
from adapters.queue.redis import RedisTaskQueue, redis_client
from adapters.queue.urls import check_redis_url, redis_py_url
from adapters.urls import InvalidUrl
from tests.support.clock import START
from tests.support.examples import a_task

pytestmark = pytest.mark.anyio

PG = "postgresql://user:pass@db.example:5432/wearon"
REDIS = "redis://cache.example:6379/1"
REDISS = "rediss://cache.example:6379/1"

OF_PROVIDERS = {
    "Neon": "sslmode=require&channel_binding=require",
    "Neon for Prisma": "sslmode=require&connect_timeout=10&pgbouncer=true",
    "Neon with an endpoint": "options=endpoint%3Dep-cool-1&sslmode=require",
    "Supabase for Prisma": "pgbouncer=true&connection_limit=1",
    "Supabase": "supa=base-pooler.x&sslmode=require",
    "Railway": "sslmode=no-verify",
    "Heroku for node": "ssl=true",
    "Prisma": "schema=public&pool_timeout=20&socket_timeout=5&statement_cache_size=0",
    "libpq": "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3",
    "highly available": "target_session_attrs=read-write&application_name=wearon",
    "Vercel": "workaround=supabase-pooler.vercel",
}


@pytest.mark.parametrize("query", OF_PROVIDERS.values(), ids=OF_PROVIDERS)
def test_postgres_urls_of_providers(query: str) -> None:
    """asyncpg gets only what it knows, and the server only its settings."""
    check_postgres_url(f"{PG}?{query}")
    parsed = parse_postgres_url(f"{PG}?{query}")

    left = dict(item.split("=") for item in parsed.dsn.partition("?")[2].split("&") if item)
    assert parsed.dsn.startswith(PG)
    assert left.keys() <= postgres_urls.PASSED_ON
    assert parsed.server_settings.keys() <= postgres_urls.SERVER_SETTINGS


@pytest.mark.parametrize(
    ("query", "passed"),
    [
        ("sslmode=require&channel_binding=require", "sslmode=require"),
        ("sslmode=no-verify", "sslmode=require"),
        ("ssl=true", "sslmode=require"),
        ("ssl=0", "sslmode=disable"),
        ("ssl=true&sslmode=verify-full", "sslmode=verify-full"),
        ("sslmode=verify-full&sslrootcert=%2Fca.pem", "sslmode=verify-full&sslrootcert=%2Fca.pem"),
        ("sslmode=verify-full&sslrootcert=system", "sslmode=verify-full"),
        ("host=%2Frun%2Fpostgresql&user=me", "host=%2Frun%2Fpostgresql&user=me"),
        ("sslmode=", ""),
        ("connection_limit", ""),
    ],
)
def test_parameters_that_asyncpg_gets(query: str, passed: str) -> None:
    """Translated where another client names them otherwise; an empty one counts as not given."""
    assert parse_postgres_url(f"{PG}?{query}").dsn.partition("?")[2] == passed


@pytest.mark.parametrize(
    ("query", "search_path", "options"),
    [
        ("search_path=wearon", "wearon", None),
        ("search_path=a%2C%20b", "a, b", None),
        ("schema=wearon", '"wearon"', None),
        ('schema=our"own', '"our""own"', None),
        ("schema=public", None, None),
        ("schema=", None, None),
        ("schema=wearon&search_path=other", "other", None),
        ("options=-csearch_path%3Dwearon", "wearon", None),
        ("options=-c%20search_path%3Dwearon%20-c%20geqo%3Doff", "wearon", "-c geqo=off"),
        ("options=--search-path%3Da%2C%5C%20b", "a, b", None),
        ("options=-csearch_path%3Da%20-csearch_path%3Db", "b", None),
        ("options=endpoint%3Dsearch_path-1", None, "endpoint=search_path-1"),
        ("options=-cmy.search_path%3Dx", None, "-cmy.search_path=x"),
    ],
)
def test_schema_of_a_url(query: str, search_path: str | None, options: str | None) -> None:
    """However the URL names it, it is known apart, because a pooler does not pass it on. Prisma's
    `schema=public` leaves it to the server."""
    check_postgres_url(f"{PG}?{query}")
    parsed = parse_postgres_url(f"{PG}?{query}")

    assert parsed.search_path == search_path
    assert parsed.server_settings == ({} if options is None else {"options": options})


def test_parameters_that_asyncpg_gets_otherwise() -> None:
    """Settings of the server, the time to connect, the kind of pooler and the authorities."""
    parsed = parse_postgres_url(
        f"{PG}?fallback_application_name=us&options=-c%20geqo%3Doff&connect_timeout=7"
        "&pgbouncer=true&sslrootcert=system&sslmode=verify-full"
    )
    plain = parse_postgres_url(f"{PG}?connect_timeout=0&pgbouncer=false")

    assert parsed.server_settings == {"application_name": "us", "options": "-c geqo=off"}
    assert (parsed.connect_seconds, parsed.transaction_pooler, parsed.system_ca) == (7, True, True)
    assert (plain.connect_seconds, plain.transaction_pooler, plain.system_ca) == (
        None,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"{PG}?ssl_mode=require", "the parameter `ssl_mode` is not known; did you mean `sslmode`"),
        (f"{PG}?secret=1", "the parameter `secret` is not known"),
        (f"{PG}?sslmode=on", "`sslmode` must be one of `disable`, `allow`, "),
        (f"{PG}?target_session_attrs=master", "`target_session_attrs` must be one of `any`, "),
        (f"{PG}?channel_binding=yes", "`channel_binding` must be one of `disable`, "),
        (f"{PG}?connect_timeout=soon", "`connect_timeout` must be a whole number of seconds"),
        ("postgresql://user:a?b=c@db.example/wearon", "a `#` or `?` in the password"),
        ("postgresql://user:a#b@db.example/wearon", "a `#` or `?` in the password"),
    ],
)
def test_unusable_postgres_url(url: str, problem: str) -> None:
    """One sentence with the parameter's name, without any value."""
    with pytest.raises(InvalidUrl) as error:
        check_postgres_url(url)

    assert str(error.value).startswith(problem)
    assert "pass" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "passed"),
    [
        (f"{REDIS}?decode_responses=True&protocol=3&socket_timeout=1&encoding=latin-1", REDIS),
        (f"{REDIS}?family=0", REDIS),
        (f"{REDIS}?family=6&keepAlive=1&maxRetriesPerRequest=3", REDIS),
        (f"{REDIS}?max_connections=10&health_check_interval=30", REDIS),
        (f"{REDIS}?db=3&client_name=us", f"{REDIS}?db=3&client_name=us"),
        (f"{REDIS}?database=3&clientName=us", f"{REDIS}?db=3&client_name=us"),
        (f"{REDISS}?ssl_cert_reqs=CERT_NONE", f"{REDISS}?ssl_cert_reqs=none"),
        (f"{REDISS}?ssl_cert_reqs=required", f"{REDISS}?ssl_cert_reqs=required"),
        (f"{REDISS}?skip_verify=true", f"{REDISS}?ssl_cert_reqs=none"),
        (f"{REDIS}?tls=true&ssl_check_hostname=no", f"{REDISS}?ssl_check_hostname=false"),
        ("redis://x.upstash.io?ssl_cert_reqs=none", "rediss://x.upstash.io?ssl_cert_reqs=none"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_redis_urls(url: str, passed: str) -> None:
    """redis-py gets what it knows and what does not break our client."""
    assert redis_py_url(url) == passed
    redis_client(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"{REDIS}?decode_response=True", "the parameter `decode_response` is not known; did you "),
        (f"{REDIS}?keyPrefix=us", "the parameter `keyPrefix` is not known"),
        (f"{REDIS}?ssl_cert_reqs=none", "`ssl_cert_reqs` needs a URL that begins with `rediss://`"),
        (f"{REDISS}?ssl_cert_reqs=maybe", "`ssl_cert_reqs` must be one of `none`, "),
        (f"{REDIS}?db=one", "the database must be a number"),
        ("redis://cache.example/tasks", "the database must be a number"),
        ("redis://:a?b=c@cache.example/0", "a `#` or `?` in the password"),
    ],
)
def test_unusable_redis_url(url: str, problem: str) -> None:
    """One sentence with the parameter's name, without any value."""
    with pytest.raises(InvalidUrl) as error:
        check_redis_url(url)

    assert str(error.value).startswith(problem)


async def test_urls_that_would_have_dropped_every_task(valkey: EmbeddedValkey) -> None:
    """The pushed task is popped, and the queue is measured."""
    url = f"{valkey.url}?decode_responses=True&family=0&protocol=3&socket_timeout=0.001"
    queue = RedisTaskQueue(client=redis_client(url), timeout_seconds=5, clock=lambda: START)
    task = a_task()

    await queue.push(task)

    assert await queue.pop(timeout_seconds=1) == task
    await queue.close()


@pytest.mark.parametrize("query", OF_PROVIDERS.values(), ids=OF_PROVIDERS)
async def test_database_connects_with_the_urls_of_providers(
    postgres: EmbeddedPostgres, query: str
) -> None:
    """Apart from TLS and the pooler's options, which this server does not have."""
    kept = "&".join(
        item for item in query.split("&") if not item.startswith(("ssl", "options", "pgbouncer"))
    )
    database = Database(f"{postgres.url()}&{kept}", limits=DatabaseLimits())

    assert await database.fetch_value("SELECT 1") == 1
    if "application_name" in kept:
        assert await database.fetch_value("SHOW application_name") == "wearon"
    await database.close()


def test_each_parameter_is_in_one_table() -> None:
    """None is both passed on and dropped."""
    for tables in (
        (
            postgres_urls.PASSED_ON,
            postgres_urls.SERVER_SETTINGS,
            postgres_urls.TRANSLATED,
            postgres_urls.IGNORED,
        ),
        (redis_urls.PASSED_ON, redis_urls.TLS, redis_urls.TRANSLATED, redis_urls.IGNORED),
    ):
        assert sum(map(len, tables)) == len(frozenset().union(*tables))
