"""Settings: read once from the environment, typed, each one checked."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, assert_never
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, inspect

MIN_SECRET_LENGTH = 32
_CONFIRM_SECONDS = 2
"""A submission may take a second longer than its setting, and is confirmed within another."""
_HIDDEN = "***"
_PREFIX = "WEARON_"

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Secret = Annotated[str, Meta(min_length=MIN_SECRET_LENGTH)]
# A text, for a float would not hold what it says.
Dollars = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$")]


class SettingsError(Exception):
    """One or more variables cannot be used; the message has a line for each and names it, but
    never says what it holds: that may be a secret."""


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
    S3 = "s3"
    MEMORY = "memory"


class Generator(StrEnum):
    LOCAL = "local"
    OPENAI = "openai"
    REPLICATE = "replicate"


class Quality(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"


class OutputFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def _about(
    description: str,
    *,
    variable: str | None = None,
    example: str | None = None,
    secret: bool = False,
) -> Meta:
    """The line of the settings table; the variable where it is not ``WEARON_`` + name; what a
    value looks like, where a pattern says what is allowed; whether to hide the value."""
    return Meta(
        description=description,
        examples=None if example is None else [example],
        extra={"variable": variable, "secret": secret},
    )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Times are seconds."""

    environment: Annotated[
        Environment,
        _about("`development` serves sample pictures and lets go of rules that guard production"),
    ] = Environment.PRODUCTION
    database_url: Annotated[
        Annotated[str, Meta(pattern=r"^postgres(ql)?://\S+$")] | None,
        _about(
            "PostgreSQL, the truth about credits and sessions",
            variable="DATABASE_URL",
            example="postgresql://user:password@host:5432/wearon",
            secret=True,
        ),
    ] = None
    redis_url: Annotated[
        Annotated[str, Meta(pattern=r"^(rediss?|unix)://\S+$")] | None,
        _about(
            "Redis, which carries the tasks; `rediss://` is TLS, `unix://` a socket",
            variable="REDIS_URL",
            example="redis://:password@host:6379/0",
            secret=True,
        ),
    ] = None
    store: Annotated[Store, _about("Where sessions and credits live")] = Store.POSTGRES
    queue: Annotated[Queue, _about("What carries tasks")] = Queue.REDIS
    storage: Annotated[Storage, _about("Where pictures are kept")] = Storage.LOCAL
    generator: Annotated[
        Generator,
        _about("What makes the pictures; `local` lays out what arrived, for development"),
    ] = Generator.LOCAL
    data_dir: Annotated[Path, _about("Folder of pictures and of embedded servers' data")] = Path(
        ".wearon"
    )

    s3_bucket: Annotated[str | None, _about("Bucket of the pictures, for storage `s3`")] = None
    s3_region: Annotated[str, _about("Region of the bucket; `auto` for R2")] = "us-east-1"
    s3_endpoint: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^\s?#]*[^\s?#/]$")] | None,
        _about(
            "Where the S3-compatible service is; empty for Amazon's",
            example="https://project.supabase.co/storage/v1/s3",
        ),
    ] = None
    s3_path_style: Annotated[
        bool,
        _about("The bucket's name is in the path of URLs; if not, the endpoint begins with it"),
    ] = True
    s3_conditional_put: Annotated[
        bool, _about("`false` where the service does not know `If-None-Match` for uploads")
    ] = True
    s3_seconds: Annotated[
        Seconds, _about("Longest wait for an answer of S3; it is asked three times at most")
    ] = 10
    s3_access_key_id: Annotated[
        str | None,
        _about("Who we are at S3", variable="AWS_ACCESS_KEY_ID", secret=True),
    ] = None
    s3_secret_access_key: Annotated[
        str | None,
        _about("The key to that", variable="AWS_SECRET_ACCESS_KEY", secret=True),
    ] = None

    host: Annotated[str, _about("Address the API listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535), _about("Port the API listens on")] = 8000
    api_workers: Annotated[int, Meta(ge=1, le=64), _about("API processes")] = 1
    public_url: Annotated[
        str,
        Meta(pattern=r"^https?://[^\s?#]*[^\s?#/]$"),
        _about(
            "Where clients reach the API; begins the URLs of pictures",
            example="https://wearon.example",
        ),
    ] = "http://127.0.0.1:8000"
    max_body_bytes: Annotated[
        int,
        Meta(ge=1_024, le=10_000_000),
        _about("Largest request body, but for uploads; more is a 413"),
    ] = 65_536
    jwt_secret: Annotated[Secret | None, _about("HS256 key of the users' tokens", secret=True)] = (
        None
    )
    jwt_issuer: Annotated[str, _about("`iss` that users' tokens must have")] = "wearon"
    jwt_audience: Annotated[str, _about("`aud` that users' tokens must have")] = "wearon"
    caller_seconds: Annotated[
        float,
        Meta(ge=0, le=300),
        _about("How long a caller is known by its token: a revoked key is let in so long at most"),
    ] = 5
    signing_secret: Annotated[
        Secret | None, _about("Key of the pictures' signed URLs", secret=True)
    ] = None
    picture_url_seconds: Annotated[Seconds, _about("How long a picture's URL is valid")] = 21_600

    database_connections: Annotated[
        int, Meta(ge=1, le=1_000), _about("Connections to PostgreSQL per process, at most")
    ] = 10
    database_transaction_pooler: Annotated[
        bool, _about("`true` behind PgBouncer and its like; assumed for port 6543")
    ] = False
    database_seconds: Annotated[
        Seconds, _about("Longest wait for PostgreSQL, connecting included")
    ] = 3
    redis_seconds: Annotated[Seconds, _about("Longest wait for Redis, connecting included")] = 2

    batch_limit: Annotated[
        int,
        Meta(ge=1, le=1_000),
        _about("Calls that go to PostgreSQL or Redis together, at most; 1: each one alone"),
    ] = 128

    submit_seconds: Annotated[
        Seconds, _about("A request for a picture is answered within this time, and a second")
    ] = 2
    max_waiting: Annotated[
        int,
        Meta(ge=1, le=100_000_000),
        _about("Tasks in the queue, at which further requests are answered 503"),
    ] = 100_000
    max_active: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        _about("Unfinished sessions of one owner, at which its further requests are answered 429"),
    ] = 1_000

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
    picture_days: Annotated[
        int,
        Meta(ge=1, le=36_500),
        _about("A picture is deleted so many days after its session ended"),
    ] = 30

    fetch_seconds: Annotated[Seconds, _about("Longest download of an input picture")] = 15
    fetch_max_bytes: Annotated[
        int, Meta(ge=1_024, le=100_000_000), _about("Largest input picture")
    ] = 10_000_000
    fetch_allow_loopback: Annotated[
        bool, _about("Let inputs come from this machine; only in `development`")
    ] = False
    max_uploads: Annotated[
        int,
        Meta(ge=1, le=10_000),
        _about("Pictures of one owner and day, at which its further uploads are answered 429"),
    ] = 1_000
    upload_days: Annotated[
        int,
        Meta(ge=1, le=3_650),
        _about("Days after which uploaded pictures are deleted, within a day more"),
    ] = 2
    picture_processes: Annotated[
        int, Meta(ge=1, le=64), _about("Processes of a worker that decode input pictures")
    ] = 2
    picture_memory_mb: Annotated[
        int, Meta(ge=300, le=64_000), _about("Megabytes that such a process may take, at most")
    ] = 1_000
    picture_seconds: Annotated[
        Seconds, _about("Longest decoding of an input picture; a process that takes longer ends")
    ] = 10
    local_generator_seconds: Annotated[
        float, Meta(ge=0, le=600), _about("Pretend working time of the `local` generator")
    ] = 0

    provider_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        _about("Pictures that all workers together may ask the provider for in a minute"),
    ] = 300
    provider_fallback_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        _about("What each worker process may ask for while Redis does not hold them to that"),
    ] = 30
    openai_api_key: Annotated[
        Annotated[str, Meta(pattern=r"^[!-~]+$")] | None,
        _about(
            "Key of the image API; a worker needs it where WEARON_GENERATOR is `openai`",
            variable="OPENAI_API_KEY",
            example="sk-...",
            secret=True,
        ),
    ] = None
    openai_base_url: Annotated[
        str,
        Meta(pattern=r"^https?://[^\s?#@/]+(/[^\s?#@]*)?$"),
        _about(
            "Where the image API is, or a gateway that speaks like it; with or without `/v1`",
            example="https://gateway.example/v1",
        ),
    ] = "https://api.openai.com"
    openai_model: Annotated[
        str,
        Meta(pattern=r"^[!-~]{1,200}$"),
        _about("Model that makes the pictures", example="gpt-image-1.5"),
    ] = "gpt-image-1.5"
    openai_quality: Annotated[Quality, _about("How much work the model puts into a picture")] = (
        Quality.MEDIUM
    )
    openai_output_format: Annotated[OutputFormat, _about("Format of the pictures")] = (
        OutputFormat.JPEG
    )
    openai_connect_seconds: Annotated[
        Seconds, _about("Longest wait for a connection to the image API")
    ] = 10
    openai_answer_seconds: Annotated[
        Seconds, _about("Longest wait until its answer begins, the making of the picture included")
    ] = 150
    openai_total_seconds: Annotated[Seconds, _about("Longest call, to the last byte")] = 170
    openai_input_usd_per_million: Annotated[
        Dollars,
        _about("Price of a million input tokens, for the estimated costs", example="8"),
    ] = "8"
    openai_output_usd_per_million: Annotated[
        Dollars,
        _about("Price of a million output tokens, for the estimated costs", example="32"),
    ] = "32"

    replicate_api_token: Annotated[
        Annotated[str, Meta(pattern=r"^[!-~]+$")] | None,
        _about(
            "Token of Replicate; a worker needs it where WEARON_GENERATOR is `replicate`",
            variable="REPLICATE_API_TOKEN",
            example="r8_...",
            secret=True,
        ),
    ] = None
    replicate_base_url: Annotated[
        str,
        Meta(pattern=r"^https?://[^\s?#@/]+(/[^\s?#@]*)?$"),
        _about(
            "Where Replicate is, or a service that speaks like it; with or without `/v1`",
            example="https://gateway.example/v1",
        ),
    ] = "https://api.replicate.com"
    replicate_model: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}(:[0-9a-f]{64})?$"),
        _about(
            "Model that makes the pictures, and its version where one is wanted",
            example="google/nano-banana",
        ),
    ] = "google/nano-banana"
    replicate_image_field: Annotated[
        str,
        Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$"),
        _about("The model's input that takes the list of pictures", example="image_input"),
    ] = "image_input"
    replicate_poll_seconds: Annotated[
        Seconds, _about("Longest pause between two looks at a job of Replicate")
    ] = 3
    replicate_total_seconds: Annotated[
        Seconds, _about("Longest wait for such a job; then it is cancelled, also if we are gone")
    ] = 170

    log_level: Annotated[LogLevel, _about("The least important events that are logged")] = (
        LogLevel.INFO
    )
    log_format: Annotated[
        LogFormat, _about("`json` is a line for each event, `console` is for people")
    ] = LogFormat.JSON

    def __post_init__(self) -> None:
        if problems := [*self._contradictions()]:
            raise ValueError("\n".join(problems))

    def _contradictions(self) -> Iterator[str]:
        """What is wrong although each value alone is right."""
        for name in ("database_url", "redis_url", "openai_base_url", "replicate_base_url"):
            if not _has_usable_port(getattr(self, name)):
                yield f"{variable_of(name)}: its port must be a number up to 65535"
        if self.push_again_seconds <= self.submit_seconds + _CONFIRM_SECONDS:
            yield (
                "WEARON_PUSH_AGAIN_SECONDS: must be longer than WEARON_SUBMIT_SECONDS and"
                f" {_CONFIRM_SECONDS} seconds, or tasks on their way would count as lost"
            )
        if self.upload_days * 86_400 < self.picture_url_seconds + self.queued_seconds:
            yield (
                "WEARON_UPLOAD_DAYS: an upload must last longer than its link"
                " (WEARON_PICTURE_URL_SECONDS) and a session that waits (WEARON_QUEUED_SECONDS)"
            )
        if self.environment is Environment.DEVELOPMENT:
            return
        if self.fetch_allow_loopback:
            yield "WEARON_FETCH_ALLOW_LOOPBACK: only with WEARON_ENVIRONMENT=development"
        for name in self._in_memory():
            yield (
                f"{variable_of(name)}: `memory` is gone at exit,"
                " so only with WEARON_ENVIRONMENT=development"
            )

    def _in_memory(self) -> list[str]:
        return [name for name in ("store", "queue", "storage") if getattr(self, name) == "memory"]

    def require_shared(self, *names: str) -> None:
        """For one of several processes: what they share is set, and is not one's own memory.

        ``names`` are what it needs besides. Raises SettingsError, which names every variable.
        """
        problems = [
            f"{variable_of(name)}: `memory` cannot be shared with other processes"
            " (try `wearon dev --in-memory`)"
            for name in self._in_memory()
        ]
        problems += [
            _missing(name)
            for name in ("database_url", "redis_url", *names)
            if getattr(self, name) is None
        ]
        if problems:
            raise SettingsError("\n".join(problems))

    def require(self, name: str) -> str:
        """The value of an optional setting that the caller cannot do without.

        Raises SettingsError, which names the variable.
        """
        value: str | None = getattr(self, name)
        if value is None:
            raise SettingsError(_missing(name))
        return value

    @property
    def for_storage(self) -> tuple[str, ...]:
        """The optional settings that the storage cannot do without."""
        if self.storage is Storage.S3:
            return ("s3_bucket", "s3_access_key_id", "s3_secret_access_key")
        return ("signing_secret",)

    @property
    def for_generator(self) -> tuple[str, ...]:
        """The optional settings that the chosen generator cannot do without."""
        match self.generator:
            case Generator.LOCAL:
                return ()
            case Generator.OPENAI:
                return ("openai_api_key",)
            case Generator.REPLICATE:
                return ("replicate_api_token",)
            case _:
                assert_never(self.generator)

    @property
    def outlasts_attempts(self) -> bool:
        """Whether a worker that stops can finish any attempt at a picture within its grace time, or
        loses nothing by cutting it off."""
        return self.generator is Generator.LOCAL or self.drain_seconds >= self.attempt_seconds

    @property
    def pictures_dir(self) -> Path:
        """Where the local storage keeps its pictures."""
        return self.data_dir / "pictures"

    def duration(self, name: str) -> timedelta:
        """A setting in seconds as a timedelta."""
        return timedelta(seconds=getattr(self, name))

    def __repr__(self) -> str:
        """Without the secrets, for it may end in a log."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self._shown())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return self._shown()

    def _shown(self) -> list[tuple[str, Any]]:
        return [
            (field.name, _HIDDEN if about(field).extra["secret"] else getattr(self, field.name))
            for field in SETTINGS
        ]


SETTINGS = msgspec.structs.fields(Settings)


def about(field: msgspec.structs.FieldInfo) -> Any:  # noqa: ANN401 - its extras are not typed
    """What is declared of a setting: ``type``, ``extra_json_schema`` and ``extra``."""
    return inspect.type_info(field.type)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    field = next(field for field in SETTINGS if field.name == name)
    return about(field).extra["variable"] or _PREFIX + name.upper()


def allowed(field: msgspec.structs.FieldInfo) -> str:
    """What the variable of a setting may hold, to complete the words ``must be``."""
    meta = about(field)
    if examples := meta.extra_json_schema.get("examples"):
        return f"like `{examples[0]}`"
    kind = meta.type.types[0] if isinstance(meta.type, inspect.UnionType) else meta.type
    match kind:
        case inspect.EnumType(cls=cls):
            return "one of " + ", ".join(f"`{option.value}`" for option in cls)
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.IntType() | inspect.FloatType():
            return _range(kind)
        case inspect.StrType(min_length=int(length)):
            return f"{length} characters or more"
        case _:
            return "any text"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    least = f"above {kind.gt:.0f}" if kind.ge is None else f"from {kind.ge:.0f}"
    return f"{number} {least} to {kind.le:.0f}"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings. Raises ``SettingsError``; an empty variable counts as not set."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in SETTINGS:
        variable = variable_of(field.name)
        if not (text := environ.get(variable, "").strip()):
            continue
        try:
            values[field.name] = msgspec.convert(
                text, field.type, strict=False, dec_hook=lambda kind, value: kind(value)
            )
        except msgspec.ValidationError:
            problems.append(f"{variable}: must be {allowed(field)}")
    problems += _unknown(environ)
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        return Settings(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _unknown(environ: Mapping[str, str]) -> list[str]:
    known = {variable_of(field.name) for field in SETTINGS}
    return [
        f"{name}: no such setting{_meant(name, known)}"
        for name in sorted(environ)
        if name.startswith(_PREFIX) and name not in known
    ]


def _meant(name: str, known: set[str]) -> str:
    short = {variable.removeprefix(_PREFIX): variable for variable in sorted(known)}
    nearest = get_close_matches(name.removeprefix(_PREFIX), short, n=1, cutoff=0.5)
    hint = f"; did you mean {short[nearest[0]]}?" if nearest else ""
    return f"{hint} (`wearon settings` lists all)"


def _missing(name: str) -> str:
    return f"{variable_of(name)}: must be set (try `wearon dev` for a start)"


def _has_usable_port(url: str | None) -> bool:
    try:
        return urlsplit(url or "").port != 0
    except ValueError:
        return False
