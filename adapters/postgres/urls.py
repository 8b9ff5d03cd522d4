"""What each parameter of a PostgreSQL URL means for us: the one table of them.

Providers show URLs for libpq, Prisma or another client. asyncpg takes every parameter that it does
not know for a setting of the server, which then refuses the connection.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.urls import SWITCHES, InvalidUrl, checked, joined, refuse_unknown, same, split, words

PASSED_ON = words(
    "host port dbname database user password passfile service sslmode sslcert sslkey sslrootcert",
    "sslcrl sslpassword sslnegotiation ssl_min_protocol_version ssl_max_protocol_version",
    "target_session_attrs krbsrvname gsslib",
)
"""asyncpg knows these as libpq does."""

SERVER_SETTINGS = words(
    "application_name options timezone statement_timeout lock_timeout",
    "idle_in_transaction_session_timeout idle_session_timeout transaction_timeout",
    "default_transaction_read_only default_transaction_isolation",
)
"""Settings of the server for each connection, unless we have one of our own. ``options`` can set
any other, and is where Neon's URLs name the endpoint."""

TRANSLATED = words("connect_timeout fallback_application_name pgbouncer schema search_path ssl")
"""``connect_timeout`` bounds connecting, within our own timeout. ``pgbouncer=true`` (Prisma) says
that the URL leads to a transaction pooler. ``ssl=true`` (node-postgres) means ``sslmode=require``.
``schema`` (Prisma) names one schema for ``search_path``, which ``options`` may set as well."""

IGNORED = words(
    # libpq: asyncpg cannot bind channels (nor does it have to: sslmode=verify-full checks the
    # server), and our own deadlines end a call to a server that is gone.
    "channel_binding keepalives keepalives_idle keepalives_interval keepalives_count",
    "tcp_user_timeout gssencmode sslcompression sslsni client_encoding load_balance_hosts",
    # Prisma
    "connection_limit pool_timeout socket_timeout statement_cache_size sslaccept sslidentity",
    "max_idle_connection_lifetime max_connection_lifetime directurl",
    # node-postgres, postgres.js, Supabase's and Vercel's pages
    "uselibpqcompat prepare max idle_timeout max_lifetime supa workaround pool_mode",
    # SQLAlchemy, Django, pgx
    "prepared_statement_cache_size prepared_statement_name_func async_fallback conn_max_age",
    "pool_max_conns pool_min_conns pool_max_conn_lifetime pool_max_conn_idle_time",
    "pool_health_check_period default_query_exec_mode statement_cache_capacity",
)
"""Of no meaning here: they tune another client's pool, cache or socket."""

_KNOWN = PASSED_ON | SERVER_SETTINGS | TRANSLATED | IGNORED
_SSL_MODES = same("disable", "allow", "prefer", "require", "verify-ca", "verify-full") | {
    "no-verify": "require"  # node-postgres
}
_SESSIONS = same("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
_BINDINGS = same("disable", "prefer", "require")
_PATH_OPTION = re.compile(r"(?:^|\s)(?:-c\s*|--)search[_-]path=((?:\\.|\S)*)")
_SWITCHES = {name: str(value).lower() for name, value in SWITCHES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresUrl:
    """A URL as asyncpg takes it, and what of it asyncpg takes otherwise.

    ``search_path`` is separate from the other settings, because a transaction pooler ignores or
    refuses it when connecting; None: the server's. ``connect_seconds`` of None: no bound of its
    own. ``system_ca``: the server's certificate must be valid for its host, by the authorities that
    this machine trusts.
    """

    dsn: str
    server_settings: Mapping[str, str]
    search_path: str | None
    connect_seconds: float | None
    transaction_pooler: bool
    system_ca: bool


def check_postgres_url(url: str) -> None:
    """Raises ``InvalidUrl``, also for a parameter that is not in the table."""
    parse_postgres_url(url)
    refuse_unknown(split(url)[1], _KNOWN)


def parse_postgres_url(url: str) -> PostgresUrl:
    """A parameter that is not in the table counts as a setting of the server, as for asyncpg; the
    URL of a deployment is checked at the start. Raises ``InvalidUrl``."""
    parts, given = split(url)
    checked(given, "channel_binding", _BINDINGS)
    checked(given, "target_session_attrs", _SESSIONS)
    passed = {name: value for name, value in given.items() if name in PASSED_ON and value}
    if mode := _ssl_mode(given):
        passed["sslmode"] = mode
    system_ca = passed.get("sslrootcert") == "system"
    if system_ca:
        del passed["sslrootcert"]
    others = PASSED_ON | TRANSLATED | IGNORED
    settings = {name: value for name, value in given.items() if name not in others and value}
    if fallback := given.get("fallback_application_name"):
        settings.setdefault("application_name", fallback)
    search_path = _take_search_path(settings) or _search_path(given)
    return PostgresUrl(
        dsn=joined(parts, passed),
        server_settings=settings,
        search_path=search_path,
        connect_seconds=_seconds(given.get("connect_timeout", "")),
        transaction_pooler=checked(given, "pgbouncer", _SWITCHES) == "true",
        system_ca=system_ca,
    )


def _search_path(given: Mapping[str, str]) -> str | None:
    """``schema=public`` is in many pasted URLs and means the server's own search_path."""
    schema = given.get("schema", "public") or "public"
    quoted = None if schema == "public" else '"' + schema.replace('"', '""') + '"'
    return given.get("search_path") or quoted


def _take_search_path(settings: dict[str, str]) -> str | None:
    """The last search_path in ``options``, which is removed from there."""
    options = settings.pop("options", "")
    if rest := _PATH_OPTION.sub("", options).strip():
        settings["options"] = rest
    found = _PATH_OPTION.findall(options)
    return re.sub(r"\\(.)", r"\1", found[-1]) if found else None


def _ssl_mode(given: Mapping[str, str]) -> str | None:
    switch = checked(given, "ssl", _SWITCHES)
    mode = checked(given, "sslmode", _SSL_MODES)
    if mode is not None or switch is None:
        return mode
    return "require" if switch == "true" else "disable"


def _seconds(text: str) -> float | None:
    """As libpq has it: 0, a negative number or nothing is no bound."""
    try:
        seconds = int(text or "0")
    except ValueError as error:
        raise InvalidUrl("`connect_timeout` must be a whole number of seconds") from error
    return seconds if seconds > 0 else None
