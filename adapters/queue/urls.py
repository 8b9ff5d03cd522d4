"""What each parameter of a Redis URL means for us: the one table of them.

redis-py passes every parameter on to its client unchecked: ``decode_responses=True`` would make
each reply a text, and an unknown one fails the first command.
"""

from collections.abc import Mapping
from urllib.parse import SplitResult

from adapters.urls import SWITCHES, InvalidUrl, checked, joined, refuse_unknown, same, split, words

PASSED_ON = words("db username password client_name socket_keepalive")
TLS = words(
    "ssl_cert_reqs ssl_ca_certs ssl_ca_path ssl_ca_data ssl_certfile ssl_keyfile ssl_password",
    "ssl_check_hostname ssl_ciphers",
)
"""redis-py knows these; those of TLS only for a connection with TLS."""

TRANSLATED = words("tls ssl skip_verify database clientName")
"""``tls=true`` (ioredis) and ``ssl=true`` mean ``rediss://``. ``skip_verify=true`` (go-redis) means
``ssl_cert_reqs=none``. ``database`` and ``clientName`` are Lettuce's ``db`` and ``client_name``."""

IGNORED = words(
    # redis-py: replies are always bytes, commands are never retried, and deadlines and the
    # version of the protocol are ours.
    "decode_responses encoding encoding_errors charset errors legacy_responses protocol",
    "socket_timeout socket_connect_timeout socket_read_size retry_on_timeout retry_on_error",
    "health_check_interval max_connections timeout single_connection_client",
    "lib_name lib_version",
    # ioredis and node-redis: the resolver's answers are tried in turn, whatever their family.
    "family keepAlive noDelay connectTimeout commandTimeout maxRetriesPerRequest",
    "enableReadyCheck enableOfflineQueue lazyConnect",
    # go-redis
    "dial_timeout read_timeout write_timeout pool_size pool_timeout pool_fifo max_retries",
    "min_retry_backoff max_retry_backoff min_idle_conns max_idle_conns max_active_conns",
    "conn_max_idle_time conn_max_lifetime idle_timeout",
    # Celery
    "visibility_timeout",
)
"""Of no meaning here: they tune another client, or would break what our client relies on."""

_KNOWN = PASSED_ON | TLS | TRANSLATED | IGNORED
_CHECKS = same("none", "optional", "required") | {
    "cert_none": "none",
    "cert_optional": "optional",
    "cert_required": "required",
}
_SWITCHES = {name: str(value).lower() for name, value in SWITCHES.items()}


def redis_py_url(url: str) -> str:
    """``url`` as redis-py takes it. Raises ``InvalidUrl``, for an unknown parameter too."""
    parts, given = split(url)
    refuse_unknown(given, _KNOWN)
    passed = {name: value for name, value in given.items() if name in PASSED_ON | TLS and value}
    passed |= _translated(given)
    parts = _with_tls(parts, given)
    if parts.scheme != "rediss" and (unusable := passed.keys() & TLS):
        raise InvalidUrl(f"`{min(unusable)}` needs a URL that begins with `rediss://`")
    _check_database(passed.get("db", ""))
    return joined(parts, passed)


def _translated(given: Mapping[str, str]) -> dict[str, str]:
    translated = {
        "db": given.get("database"),
        "client_name": given.get("clientName"),
        "ssl_cert_reqs": checked(given, "ssl_cert_reqs", _CHECKS),
        "ssl_check_hostname": checked(given, "ssl_check_hostname", _SWITCHES),
        "socket_keepalive": checked(given, "socket_keepalive", _SWITCHES),
    }
    if checked(given, "skip_verify", _SWITCHES) == "true":
        translated["ssl_cert_reqs"] = "none"
    return {name: value for name, value in translated.items() if value}


def _with_tls(parts: SplitResult, given: Mapping[str, str]) -> SplitResult:
    """Upstash requires TLS even if its URL says ``redis://``."""
    wanted = "true" in {checked(given, name, _SWITCHES) for name in ("tls", "ssl")}
    is_upstash = f".{parts.hostname}".endswith(".upstash.io")
    if parts.scheme == "redis" and (wanted or is_upstash):
        return parts._replace(scheme="rediss")
    return parts


def check_redis_url(url: str) -> None:
    """Raises ``InvalidUrl``, also for a path that is no number: redis-py would use database 0."""
    parts, _ = split(redis_py_url(url))
    if parts.scheme != "unix":
        _check_database(parts.path.strip("/"))


def _check_database(database: str) -> None:
    if database and not (database.isascii() and database.isdigit()):
        raise InvalidUrl("the database must be a number")
