"""Settings: read once from the environment, typed, each one checked."""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

MIN_SECRET_LENGTH = 32

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Secret = Annotated[str, Meta(min_length=MIN_SECRET_LENGTH)]


class SettingsError(Exception):
    """One or more variables cannot be used; the message has a line for each and names it."""


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Store(StrEnum):
    POSTGRES = "postgres"
    MEMORY = "memory"


class Queue(StrEnum):
    REDIS = "redis"
    MEMORY = "memory"


class Storage(StrEnum):
    LOCAL = "local"
    MEMORY = "memory"


class Generator(StrEnum):
    LOCAL = "local"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def _about(description: str, *, variable: str | None = None) -> Meta:
    """The line of the settings table, and the variable where it is not ``WEARON_`` + name."""
    return Meta(description=description, extra={"variable": variable})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Times are seconds."""

    environment: Annotated[
        Environment,
        _about("`development` serves sample pictures and allows loopback addresses to be allowed"),
    ] = Environment.PRODUCTION
    database_url: Annotated[
        str | None,
        _about("PostgreSQL, as a `postgresql://` URL", variable="DATABASE_URL"),
    ] = None
    redis_url: Annotated[
        str | None,
        _about("Redis: `redis://`, `rediss://` (TLS) or `unix://`", variable="REDIS_URL"),
    ] = None
    store: Annotated[Store, _about("Where sessions and credits live: `postgres`, `memory`")] = (
        Store.POSTGRES
    )
    queue: Annotated[Queue, _about("What carries tasks: `redis`, `memory`")] = Queue.REDIS
    storage: Annotated[Storage, _about("Where pictures are kept: `local`, `memory`")] = (
        Storage.LOCAL
    )
    generator: Annotated[Generator, _about("What makes the pictures: `local`, a contact sheet")] = (
        Generator.LOCAL
    )
    data_dir: Annotated[Path, _about("Folder of pictures and of embedded servers' data")] = Path(
        ".wearon"
    )

    host: Annotated[str, _about("Address the API listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535), _about("Port the API listens on")] = 8000
    api_workers: Annotated[int, Meta(ge=1, le=64), _about("API processes")] = 1
    public_url: Annotated[
        str,
        Meta(pattern=r"^https?://[^\s]+[^/\s]$"),
        _about("Where clients reach the API; begins the URLs of pictures"),
    ] = "http://127.0.0.1:8000"
    max_body_bytes: Annotated[
        int, Meta(ge=1_024, le=10_000_000), _about("Largest request body; more is a 413")
    ] = 65_536
    jwt_secret: Annotated[
        Secret | None, _about("HS256 key of the users' tokens, 32 characters or more")
    ] = None
    jwt_issuer: Annotated[str, _about("`iss` that users' tokens must have")] = "wearon"
    jwt_audience: Annotated[str, _about("`aud` that users' tokens must have")] = "wearon"
    signing_secret: Annotated[
        Secret | None, _about("Key of the pictures' signed URLs, 32 characters or more")
    ] = None
    picture_url_seconds: Annotated[Seconds, _about("How long a picture's URL is valid")] = 21_600

    database_connections: Annotated[
        int, Meta(ge=1, le=1_000), _about("Connections to PostgreSQL per process, at most")
    ] = 10
    database_transaction_pooler: Annotated[
        bool, _about("`true` behind PgBouncer and its like; assumed for port 6543")
    ] = False
    database_connect_seconds: Annotated[Seconds, _about("Longest wait for a new connection")] = 3
    database_acquire_seconds: Annotated[
        Seconds, _about("Longest wait for a free connection of the pool")
    ] = 3
    database_command_seconds: Annotated[Seconds, _about("Longest run of a statement")] = 5
    redis_seconds: Annotated[Seconds, _about("Longest wait for Redis, connecting included")] = 2

    worker_concurrency: Annotated[
        int, Meta(ge=1, le=1_000), _about("Tasks a worker process works on at once")
    ] = 4
    lease_seconds: Annotated[
        Seconds, _about("After this long without a sign of life a worker is taken for dead")
    ] = 30
    max_attempts: Annotated[
        int, Meta(ge=1, le=100), _about("Attempts at a picture before it fails with a refund")
    ] = 3
    attempt_seconds: Annotated[Seconds, _about("Longest attempt at a picture")] = 180
    backoff_base_seconds: Annotated[
        Seconds, _about("Longest wait before the second attempt; doubles with each further one")
    ] = 1
    backoff_cap_seconds: Annotated[Seconds, _about("Longest wait before any attempt")] = 60
    drain_seconds: Annotated[
        float,
        Meta(ge=5, le=86_400),
        _about("After SIGTERM a worker finishes its tasks for this long"),
    ] = 25
    recovery_seconds: Annotated[Seconds, _about("Pause between two runs of recovery")] = 2
    push_again_seconds: Annotated[
        float,
        Meta(ge=5, le=86_400),
        _about("A task that is not in the queue after this long is lost"),
    ] = 15
    foreign_seconds: Annotated[
        Seconds, _about("How long another system's consumer may work without a lease")
    ] = 900
    queued_seconds: Annotated[
        Seconds, _about("A session that waited longer fails as `EXPIRED` with a refund")
    ] = 3_600

    fetch_seconds: Annotated[Seconds, _about("Longest download of an input picture")] = 15
    fetch_max_bytes: Annotated[
        int, Meta(ge=1_024, le=100_000_000), _about("Largest input picture")
    ] = 10_000_000
    fetch_allow_loopback: Annotated[
        bool, _about("Let inputs come from this machine; only in `development`")
    ] = False
    local_generator_seconds: Annotated[
        float, Meta(ge=0, le=600), _about("Pretend working time of the `local` generator")
    ] = 0

    log_level: Annotated[
        str, Meta(pattern="^(debug|info|warning|error)$"), _about("`debug` ... `error`")
    ] = "info"
    log_format: Annotated[LogFormat, _about("`json`, a line each, or `console`")] = LogFormat.JSON

    def __post_init__(self) -> None:
        if self.fetch_allow_loopback and self.environment is not Environment.DEVELOPMENT:
            raise ValueError(
                "WEARON_FETCH_ALLOW_LOOPBACK: only with WEARON_ENVIRONMENT=development"
            )

    def require(self, name: str) -> str:
        """The value of an optional setting that the caller cannot do without.

        Raises SettingsError, which names the variable.
        """
        value: str | None = getattr(self, name)
        if value is None:
            raise SettingsError(f"{variable_of(name)}: must be set (try `wearon dev` for a start)")
        return value

    @property
    def pictures_dir(self) -> Path:
        """Where the local storage keeps its pictures."""
        return self.data_dir / "pictures"

    def duration(self, name: str) -> timedelta:
        """A setting in seconds as a timedelta."""
        return timedelta(seconds=getattr(self, name))


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """One environment variable, for the documentation."""

    name: str
    default: str
    description: str


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    for meta in _metas(field):
        if meta.extra and meta.extra["variable"]:
            return str(meta.extra["variable"])
    return f"WEARON_{field.upper()}"


def variables() -> list[Variable]:
    """All variables, in the order in which they are declared."""
    return [
        Variable(
            name=variable_of(field.name),
            default=_text(field.default),
            description=next(meta.description for meta in _metas(field.name) if meta.description),
        )
        for field in msgspec.structs.fields(Settings)
    ]


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings. Raises ``SettingsError``; an empty variable counts as not set."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in msgspec.structs.fields(Settings):
        variable = variable_of(field.name)
        if not (text := environ.get(variable, "").strip()):
            continue
        try:
            values[field.name] = msgspec.convert(
                text, field.type, strict=False, dec_hook=lambda kind, value: kind(value)
            )
        except msgspec.ValidationError as error:
            problems.append(f"{variable}: {error}")
    problems += _unknown(environ)
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        return Settings(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _unknown(environ: Mapping[str, str]) -> list[str]:
    known = {variable_of(field.name) for field in msgspec.structs.fields(Settings)}
    return [
        f"{name}: no such setting"
        for name in sorted(environ)
        if name.startswith("WEARON_") and name not in known
    ]


def _text(value: object) -> str:
    """A default as one would write it into the environment."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _metas(field: str) -> list[Meta]:
    annotation = Settings.__annotations__[field]
    return [argument for argument in get_args(annotation)[1:] if isinstance(argument, Meta)]
