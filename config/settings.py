"""The settings: each environment variable's type, bounds, default and description.

A default that belongs to a policy or to an adapter's limits is taken from there. ``loading.py``
reads the settings, ``policies.py`` builds policies and limits from them.
"""

from pathlib import Path
from typing import Annotated, Any, assert_never

import msgspec
from msgspec import Meta, inspect

from adapters.coalescing import BatchLimits
from adapters.images.limits import FetchLimits, InputLimits, JobLimits, PoolLimits, ProviderLimits
from adapters.postgres.limits import DatabaseLimits
from config.door_settings import DoorSettings
from config.options import (
    DAY,
    ApiKey,
    Budget,
    Dollars,
    Environment,
    Generator,
    LogFormat,
    LogLevel,
    OutputFormat,
    ProviderUrl,
    Quality,
    Seconds,
    Storage,
    Traces,
    doc,
)
from domain.generation import WorkPolicy
from domain.recovery import RecoveryPolicy
from domain.submission import SubmissionPolicy
from domain.uploads import UploadPolicy

PREFIX = "WEARON_"
_HIDDEN = "***"

_SUBMISSION, _UPLOADS = SubmissionPolicy(), UploadPolicy()
_WORK, _RECOVERY = WorkPolicy(), RecoveryPolicy()
_DATABASE, _POOL, _FETCH, _INPUTS = DatabaseLimits(), PoolLimits(), FetchLimits(), InputLimits()
_OPENAI, _REPLICATE = ProviderLimits(), JobLimits()


class SettingsError(Exception):
    """One or more variables are unusable. The message has one line per variable, with its name but
    never its value, which may be a secret."""


class Settings(DoorSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, in order: the service's, the console's, the door's, and these. Times are in
    seconds."""

    database_connections: Annotated[
        int,
        Meta(ge=1, le=1_000),
        doc(
            "Maximum PostgreSQL connections per process, beside one for recovery and up to three"
            " for operators"
        ),
    ] = _DATABASE.connections
    database_transaction_pooler: Annotated[
        bool, doc("`true` behind a transaction pooler such as PgBouncer; implied by port 6543")
    ] = False
    database_seconds: Annotated[
        Seconds, doc("Timeout of a PostgreSQL statement, including connecting")
    ] = _DATABASE.command_seconds
    redis_seconds: Annotated[Seconds, doc("Timeout of a Redis command, including connecting")] = 2

    batch_limit: Annotated[
        int,
        Meta(ge=1, le=1_000),
        doc("Maximum calls per batch to PostgreSQL or Redis; 1 disables batching"),
    ] = BatchLimits().calls

    submit_seconds: Annotated[
        Seconds,
        doc("Deadline for answering a submission; the answer may take up to one second longer"),
    ] = _SUBMISSION.deadline.total_seconds()
    max_waiting: Annotated[
        int, Meta(ge=1, le=100_000_000), doc("Queue length at which new requests get a 503")
    ] = _SUBMISSION.max_waiting
    max_active: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        doc("Active sessions of one owner at which its new requests get a 429"),
    ] = _SUBMISSION.max_active

    worker_concurrency: Annotated[
        int, Meta(ge=1, le=1_000), doc("Tasks in flight per worker process")
    ] = 4
    lease_seconds: Annotated[
        Seconds,
        doc("Lease of an attempt; a worker that does not renew it for this long counts as dead"),
    ] = _WORK.lease.total_seconds()
    max_attempts: Annotated[
        int,
        Meta(ge=1, le=100),
        doc("Attempts that a session may spend on its own faults and on dead workers"),
    ] = _WORK.max_attempts
    attempt_seconds: Annotated[Seconds, doc("Timeout of one attempt")] = (
        _WORK.attempt_timeout.total_seconds()
    )
    backoff_base_seconds: Annotated[
        Seconds, doc("Longest wait before the second attempt; doubles with each further attempt")
    ] = _WORK.backoff_base.total_seconds()
    backoff_cap_seconds: Annotated[Seconds, doc("Longest wait before any attempt")] = (
        _WORK.backoff_cap.total_seconds()
    )
    provider_patience_seconds: Annotated[
        Seconds,
        doc("How long a busy or broken provider may fail a session's attempts before it fails"),
    ] = _WORK.provider_patience.total_seconds()
    storage_patience_seconds: Annotated[
        Seconds, doc("How long a generated picture is held while the storage cannot keep it")
    ] = _WORK.storage_patience.total_seconds()
    drain_seconds: Annotated[
        float, Meta(ge=5, le=DAY), doc("How long a worker may finish its tasks after SIGTERM")
    ] = 25
    recovery_seconds: Annotated[Seconds, doc("Pause between two recovery runs")] = 2
    requeue_after_seconds: Annotated[
        float,
        Meta(ge=5, le=DAY),
        doc("A task missing from the queue for this long is queued again"),
    ] = _RECOVERY.requeue_after.total_seconds()
    external_worker_timeout_seconds: Annotated[
        Seconds, doc("How long an external consumer may work on a session; it has no lease")
    ] = _RECOVERY.external_timeout.total_seconds()
    queue_ttl_seconds: Annotated[
        Seconds, doc("A session queued for longer fails as `EXPIRED` with a refund")
    ] = _RECOVERY.queue_ttl.total_seconds()
    picture_lifetime_seconds: Annotated[
        float,
        Meta(ge=60, le=36_500 * DAY),
        doc("A picture is deleted this long after its session ended"),
    ] = _RECOVERY.picture_lifetime.total_seconds()

    fetch_seconds: Annotated[Seconds, doc("Timeout of the download of an input picture")] = (
        _FETCH.total_timeout_seconds
    )
    fetch_budget_seconds: Annotated[
        Seconds, doc("Time limit for all downloads of an attempt together, which run in parallel")
    ] = _INPUTS.seconds
    fetch_max_bytes: Annotated[
        int, Meta(ge=1_024, le=100_000_000), doc("Largest input picture, in bytes")
    ] = _FETCH.max_bytes
    fetch_allow_loopback: Annotated[
        bool, doc("Allow input pictures from this machine; only in `development`")
    ] = False
    max_uploads: Annotated[
        int, Meta(ge=1, le=10_000), doc("Uploads per owner and day; further ones get a 429")
    ] = _UPLOADS.max_per_day
    upload_lifetime_seconds: Annotated[
        float,
        Meta(ge=60, le=3_650 * DAY),
        doc("An uploaded picture is deleted after this long; recovery checks once an hour"),
    ] = _RECOVERY.upload_lifetime.total_seconds()
    picture_processes: Annotated[
        int, Meta(ge=1, le=64), doc("Processes per worker that decode input pictures")
    ] = _POOL.processes
    picture_memory_mb: Annotated[
        int, Meta(ge=300, le=64_000), doc("Memory limit of each of these processes, in megabytes")
    ] = _POOL.memory_bytes // 1_000_000
    picture_decode_seconds: Annotated[
        Seconds, doc("Time limit for decoding an input picture; then the process is killed")
    ] = _POOL.seconds
    local_generator_seconds: Annotated[
        float, Meta(ge=0, le=600), doc("Simulated working time of the `local` generator")
    ] = 0

    provider_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        doc("Pictures per minute that all workers together may request from the provider"),
    ] = 300
    provider_fallback_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000), doc("Per-process limit used while Redis is unavailable")
    ] = 30
    provider_budget_usd: Annotated[
        Budget | None,
        doc(
            "Dollars per day (UTC) that pictures may cost by the estimates; once they are spent,"
            " workers take no tasks until the next day",
            example="50",
        ),
    ] = None
    openai_api_key: Annotated[
        ApiKey | None,
        doc(
            "API key of the image API; workers need it if WEARON_GENERATOR is `openai`",
            variable="OPENAI_API_KEY",
            example="sk-...",
            secret=True,
        ),
    ] = None
    openai_base_url: Annotated[
        ProviderUrl,
        doc(
            "Base URL of the image API or of a compatible gateway; with or without `/v1`",
            example="https://gateway.example/v1",
        ),
    ] = "https://api.openai.com"
    openai_model: Annotated[
        str,
        Meta(pattern=r"^[!-~]{1,200}$"),
        doc("Model that generates the pictures", example="gpt-image-1.5"),
    ] = "gpt-image-1.5"
    openai_quality: Annotated[Quality, doc("Quality setting of the model")] = Quality.MEDIUM
    openai_output_format: Annotated[OutputFormat, doc("File format of the pictures")] = (
        OutputFormat.JPEG
    )
    openai_connect_seconds: Annotated[Seconds, doc("Timeout for connecting to the image API")] = (
        _OPENAI.connect_seconds
    )
    openai_answer_seconds: Annotated[
        Seconds, doc("Timeout until the response begins, which includes generating the picture")
    ] = _OPENAI.answer_seconds
    openai_total_seconds: Annotated[Seconds, doc("Timeout of the whole call")] = (
        _OPENAI.total_seconds
    )
    openai_input_usd_per_million: Annotated[
        Dollars, doc("Price of a million input tokens in USD, for cost estimates", example="8")
    ] = "8"
    openai_output_usd_per_million: Annotated[
        Dollars, doc("Price of a million output tokens in USD, for cost estimates", example="32")
    ] = "32"

    replicate_api_token: Annotated[
        ApiKey | None,
        doc(
            "API token of Replicate; workers need it if WEARON_GENERATOR is `replicate`",
            variable="REPLICATE_API_TOKEN",
            example="r8_...",
            secret=True,
        ),
    ] = None
    replicate_base_url: Annotated[
        ProviderUrl,
        doc(
            "Base URL of Replicate or of a compatible service; with or without `/v1`",
            example="https://gateway.example/v1",
        ),
    ] = "https://api.replicate.com"
    replicate_model: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}(:[0-9a-f]{64})?$"),
        doc(
            "Model that generates the pictures, optionally with `:` and its version",
            example="google/nano-banana",
        ),
    ] = "google/nano-banana"
    replicate_image_field: Annotated[
        str,
        Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$"),
        doc("Name of the model's input for the list of pictures", example="image_input"),
    ] = "image_input"
    replicate_usd_per_picture: Annotated[
        Dollars | None,
        doc("Price of a picture in USD, for cost estimates and the budget", example="0.039"),
    ] = None
    replicate_poll_seconds: Annotated[
        Seconds, doc("Longest pause between two polls of a Replicate job")
    ] = _REPLICATE.longest_pause_seconds
    replicate_total_seconds: Annotated[
        Seconds, doc("Timeout of a Replicate job; then it is cancelled, even if its worker is gone")
    ] = _REPLICATE.total_seconds

    log_level: Annotated[LogLevel, doc("Lowest level that is logged")] = LogLevel.INFO
    log_format: Annotated[
        LogFormat, doc("`json` writes one JSON object per line, `console` is for people")
    ] = LogFormat.JSON
    traces: Annotated[
        Traces,
        doc(
            "`otlp` exports spans as the standard variables `OTEL_EXPORTER_OTLP_*` say; it requires"
            " the extra `otel`"
        ),
    ] = Traces.NONE

    def __post_init__(self) -> None:
        from config.rules import problems_of  # noqa: PLC0415 - it needs this class

        if problems := list(problems_of(self)):
            raise ValueError("\n".join(problems))

    @property
    def in_memory(self) -> list[str]:
        """The settings that choose an adapter which keeps its data in this process."""
        names = ("database", "queue", "storage")
        return [name for name in names if getattr(self, name) == "memory"]

    def require_shared(self, *names: str) -> None:
        """Check that this process can share its data with the other ones: the database and the
        queue are set, and nothing is in memory. ``names`` are further required settings.

        Raises ``SettingsError`` with a line for each problem.
        """
        problems = [
            f"{variable_of(name)}: `memory` cannot be shared with other processes"
            " (or try `wearon dev --in-memory`)"
            for name in self.in_memory
        ]
        problems += [
            _missing(name)
            for name in ("database_url", "redis_url", *names)
            if getattr(self, name) is None
        ]
        if problems:
            raise SettingsError("\n".join(problems))

    def require(self, name: str) -> str:
        """The value of an optional setting. Raises ``SettingsError``, which names the variable, if
        it is not set."""
        value: str | None = getattr(self, name)
        if value is None:
            raise SettingsError(_missing(name))
        return value

    @property
    def for_users(self) -> tuple[str, ...]:
        """The optional settings that users' tokens require: the secret, unless there is a JWKS."""
        return ("jwt_secret",) if self.jwt_jwks_url is None else ()

    @property
    def for_storage(self) -> tuple[str, ...]:
        """The optional settings that the chosen storage requires."""
        match self.storage:
            case Storage.S3:
                return ("s3_bucket", "s3_access_key_id", "s3_secret_access_key")
            case Storage.LOCAL | Storage.MEMORY:
                return ("signing_secret",)
            case _:
                assert_never(self.storage)

    @property
    def for_generator(self) -> tuple[str, ...]:
        """The optional settings that the chosen generator requires."""
        match self.generator:
            case None if self.environment is Environment.PRODUCTION:
                return ("generator",)
            case None | Generator.LOCAL:
                return ()
            case Generator.OPENAI:
                return ("openai_api_key",)
            case Generator.REPLICATE:
                return ("replicate_api_token",)
            case _:
                assert_never(self.generator)

    @property
    def generator_is_paid(self) -> bool:
        """Whether the chosen generator belongs to a provider, which bills and limits its calls."""
        return self.generator not in {None, Generator.LOCAL}

    @property
    def drain_outlasts_attempt(self) -> bool:
        """Whether a stopping worker never cuts off a paid attempt."""
        return not self.generator_is_paid or self.drain_seconds >= self.attempt_seconds

    @property
    def serves_samples(self) -> bool:
        """Whether the API serves sample pictures."""
        return self.environment is Environment.DEVELOPMENT

    @property
    def serves_playground(self) -> bool:
        """Whether the API serves the playground."""
        return self.playground or self.environment is Environment.DEVELOPMENT

    @property
    def pictures_dir(self) -> Path:
        """Where the local storage keeps its pictures."""
        return self.data_dir / "pictures"

    def __repr__(self) -> str:
        """Hides the secrets, because settings may be logged."""
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
    """The declared metadata of a setting: ``type``, ``extra_json_schema`` and ``extra``."""
    return inspect.type_info(field.type)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    field = next(field for field in SETTINGS if field.name == name)
    return about(field).extra["variable"] or PREFIX + name.upper()


def _missing(name: str) -> str:
    other = f", or {variable_of('jwt_jwks_url')}" if name == "jwt_secret" else ""
    return f"{variable_of(name)}: must be set{other} (or try `wearon dev`, which needs no settings)"
