"""The policies, limits and arguments of services, built from the settings.

Arguments are those of an adapter's constructor that come from the settings alone.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, TypedDict

from obstore.store import S3Store
from redis.asyncio import Redis

from adapters.auth.claims import JwtRules
from adapters.auth.user_keys import KeyRules
from adapters.coalescing import BatchLimits
from adapters.images.limits import (
    RESULT_LIMITS,
    FetchLimits,
    InputLimits,
    JobLimits,
    PoolLimits,
    ProviderLimits,
)
from adapters.limits.memory import Pace
from adapters.postgres.limits import BACKGROUND, OPERATORS, DatabaseLimits
from adapters.queue.redis import redis_client
from adapters.storage.s3 import S3Bucket, s3_store
from adapters.storage.signing import UrlSigner
from config.options import Storage
from config.settings import Settings
from domain.books import BookPolicy
from domain.budget import Budget
from domain.generation import WorkPolicy
from domain.links import LinkRules
from domain.origins import origin_of_url
from domain.plans import AccountLimits, Plan, PlanRates
from domain.recovery import RecoveryPolicy
from domain.signup import SignupPolicy
from domain.submission import SubmissionPolicy
from domain.uploads import UploadPolicy
from domain.watching import StreamLimits

if TYPE_CHECKING:
    from adapters.images.openai import Prices
    from adapters.images.replicate import CallLimits, ReplicateModel


class DatabaseArguments(TypedDict):
    url: str
    limits: DatabaseLimits
    transaction_pooler: bool


class RedisArguments(TypedDict):
    client: Redis
    timeout_seconds: float


class RedisQueueArguments(RedisArguments):
    batches: BatchLimits


class S3Arguments(TypedDict):
    store: S3Store
    url_lifetime: timedelta
    conditional_put: bool


class FetchArguments(TypedDict):
    limits: FetchLimits
    allow_loopback: bool


class InputArguments(TypedDict):
    max_bytes: int
    limits: InputLimits


class OpenAiArguments(TypedDict):
    base_url: str
    api_key: str
    model: str
    quality: str
    output_format: str
    prices: "Prices"
    limits: ProviderLimits


class ReplicateArguments(TypedDict):
    base_url: str
    token: str
    model: "ReplicateModel"
    usd_per_picture: Decimal | None
    deadline_seconds: float
    limits: "CallLimits"


def submission(settings: Settings) -> SubmissionPolicy:
    return SubmissionPolicy(
        deadline=timedelta(seconds=settings.submit_seconds),
        max_waiting=settings.max_waiting,
        max_active=settings.max_active,
        age_b2b=settings.age_verification_b2b,
        age_b2c=settings.age_verification_b2c,
        signup=signup(settings),
    )


def signup(settings: Settings) -> SignupPolicy:
    return SignupPolicy(
        credits=settings.signup_credits,
        anonymous_credits=settings.signup_anonymous_credits,
        per_day=settings.signups_per_day,
    )


def account_limits(settings: Settings) -> AccountLimits:
    per_minute = _numbers(settings.rate_per_minute)
    per_hour = _numbers(settings.rate_per_hour)
    return AccountLimits(
        rates={
            plan: PlanRates(
                submissions_per_minute=per_minute.get(plan), submissions_per_hour=per_hour.get(plan)
            )
            for plan in per_minute.keys() | per_hour.keys()
        },
        refunds_per_hour=settings.refunds_per_hour or None,
        shopper_refunds_per_hour=settings.shopper_refunds_per_hour or None,
        max_active_of_token=settings.shopper_max_active,
        signups_per_day=settings.signups_per_day,
    )


def _numbers(text: str | None) -> dict[Plan, int]:
    """From `default=60,starter=120`."""
    pairs = [entry.split("=") for entry in (text or "").split(",") if entry]
    return {Plan(plan): int(number) for plan, number in pairs}


def links(settings: Settings, *, is_own: Callable[[str], bool]) -> LinkRules:
    return LinkRules(allow_loopback=settings.fetch_allow_loopback, is_own=is_own)


def work(settings: Settings) -> WorkPolicy:
    return WorkPolicy(
        lease=timedelta(seconds=settings.lease_seconds),
        max_attempts=settings.max_attempts,
        attempt_timeout=timedelta(seconds=settings.attempt_seconds),
        backoff_base=timedelta(seconds=settings.backoff_base_seconds),
        backoff_cap=timedelta(seconds=settings.backoff_cap_seconds),
        provider_patience=timedelta(seconds=settings.provider_patience_seconds),
        storage_patience=timedelta(seconds=settings.storage_patience_seconds),
        queue_ttl=timedelta(seconds=settings.queue_ttl_seconds),
    )


def recovery(settings: Settings) -> RecoveryPolicy:
    return RecoveryPolicy(
        requeue_after=timedelta(seconds=settings.requeue_after_seconds),
        max_attempts=settings.max_attempts,
        external_timeout=timedelta(seconds=settings.external_worker_timeout_seconds),
        queue_ttl=timedelta(seconds=settings.queue_ttl_seconds),
        picture_lifetime=timedelta(seconds=settings.picture_lifetime_seconds),
        upload_lifetime=timedelta(seconds=settings.upload_lifetime_seconds),
    )


def settled_within(settings: Settings) -> timedelta:
    """The longest that a session takes to its end while nothing is broken."""
    interval = timedelta(seconds=settings.recovery_seconds)
    return recovery(settings).settle_bound(work(settings), interval=interval)


def uploads(settings: Settings) -> UploadPolicy:
    return UploadPolicy(
        max_per_day=settings.max_uploads,
        max_per_shopper=settings.max_shopper_uploads,
        max_bytes=settings.fetch_max_bytes,
    )


def database(settings: Settings) -> DatabaseArguments:
    """Raises ``SettingsError`` if the URL is not set."""
    return DatabaseArguments(
        url=settings.require("database_url"),
        limits=DatabaseLimits(
            connections=settings.database_connections, command_seconds=settings.database_seconds
        ),
        transaction_pooler=settings.database_transaction_pooler,
    )


def reserve(settings: Settings) -> DatabaseArguments:
    """Raises ``SettingsError`` if the URL is not set."""
    limits = replace(BACKGROUND, command_seconds=settings.database_seconds)
    return DatabaseArguments(**database(settings) | {"limits": limits})


def operator_reads(settings: Settings) -> DatabaseArguments:
    """Raises ``SettingsError`` if the URL is not set."""
    limits = replace(OPERATORS, command_seconds=settings.database_seconds)
    return DatabaseArguments(**database(settings) | {"limits": limits})


def audits(settings: Settings) -> DatabaseArguments:
    """One connection, closed between two audits. Raises ``SettingsError`` if the URL is not
    set."""
    limits = DatabaseLimits(connections=1, command_seconds=settings.database_seconds)
    return DatabaseArguments(**database(settings) | {"limits": limits})


def books(settings: Settings) -> BookPolicy:
    """What is wrong is confirmed after the next run of recovery."""
    default = BookPolicy()
    recovery_ran = timedelta(seconds=2 * settings.recovery_seconds)
    return replace(default, confirm_after=max(default.confirm_after, recovery_ran))


def batches(settings: Settings, kind: type[BatchLimits] = BatchLimits) -> BatchLimits:
    return kind(calls=settings.batch_limit)


def redis(settings: Settings) -> RedisArguments:
    """Raises ``SettingsError`` if the URL is not set."""
    client = redis_client(settings.require("redis_url"))
    return RedisArguments(client=client, timeout_seconds=settings.redis_seconds)


def redis_queue(settings: Settings) -> RedisQueueArguments:
    """One batch of pushes in flight at a time, which keeps their order."""
    in_order = replace(batches(settings), in_flight=1)
    return RedisQueueArguments(**redis(settings), batches=in_order)


def streams(settings: Settings) -> StreamLimits:
    """Streams take at most four fifths of the connections, so that other requests get through."""
    return StreamLimits(
        per_process=max(1, settings.http_max_connections * 4 // 5),
        per_owner=settings.streams_per_owner,
        per_shopper=settings.streams_per_shopper,
        lifetime=timedelta(seconds=settings.stream_seconds),
    )


def provider_pace(settings: Settings) -> Pace:
    return Pace.of(settings.provider_per_minute)


def fallback_pace(settings: Settings) -> Pace:
    """The share of one process while Redis is unavailable, never above the shared pace."""
    return Pace.of(min(settings.provider_per_minute, settings.provider_fallback_per_minute))


def downloads(settings: Settings) -> FetchArguments:
    """For input pictures."""
    limits = FetchLimits(
        total_timeout_seconds=settings.fetch_seconds, max_bytes=settings.fetch_max_bytes
    )
    return FetchArguments(limits=limits, allow_loopback=settings.fetch_allow_loopback)


def inputs(settings: Settings) -> InputArguments:
    limits = InputLimits(seconds=settings.fetch_budget_seconds)
    return InputArguments(max_bytes=settings.fetch_max_bytes, limits=limits)


def results(settings: Settings) -> FetchArguments:
    """For generated pictures, from their provider."""
    return FetchArguments(limits=RESULT_LIMITS, allow_loopback=settings.fetch_allow_loopback)


def picture_pool(settings: Settings) -> PoolLimits:
    return PoolLimits(
        processes=settings.picture_processes,
        memory_bytes=settings.picture_memory_mb * 1_000_000,
        seconds=settings.picture_decode_seconds,
    )


def openai(settings: Settings) -> OpenAiArguments:
    """Raises ``SettingsError`` if the key is not set."""
    from adapters.images.openai import Prices

    return OpenAiArguments(
        base_url=settings.openai_base_url,
        api_key=settings.require("openai_api_key"),
        model=settings.openai_model,
        quality=settings.openai_quality,
        output_format=settings.openai_output_format,
        prices=Prices(
            input_usd_per_million=Decimal(settings.openai_input_usd_per_million),
            output_usd_per_million=Decimal(settings.openai_output_usd_per_million),
        ),
        limits=ProviderLimits(
            connect_seconds=settings.openai_connect_seconds,
            answer_seconds=settings.openai_answer_seconds,
            total_seconds=settings.openai_total_seconds,
        ),
    )


def replicate(settings: Settings) -> ReplicateArguments:
    """Raises ``SettingsError`` if the token is not set."""
    from adapters.images.replicate import CallLimits, ReplicateModel

    return ReplicateArguments(
        base_url=settings.replicate_base_url,
        token=settings.require("replicate_api_token"),
        model=ReplicateModel(
            name=settings.replicate_model, image_field=settings.replicate_image_field
        ),
        usd_per_picture=_dollars(settings.replicate_usd_per_picture),
        deadline_seconds=settings.replicate_total_seconds,
        limits=CallLimits(),
    )


def budget(settings: Settings, clock: Callable[[], datetime]) -> Budget | None:
    """The day's budget, if the setting has one."""
    usd = _dollars(settings.provider_budget_usd)
    return None if usd is None else Budget(usd, clock=clock)


def _dollars(amount: str | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)


def replicate_jobs(settings: Settings) -> JobLimits:
    longest = settings.replicate_poll_seconds
    return JobLimits(
        total_seconds=settings.replicate_total_seconds,
        first_pause_seconds=min(JobLimits().first_pause_seconds, longest),
        longest_pause_seconds=longest,
    )


def jwt(settings: Settings) -> JwtRules:
    """Raises ``SettingsError`` if neither a key set nor a secret is set."""
    for name in settings.for_users:
        settings.require(name)
    return JwtRules(
        secret=settings.jwt_secret,
        previous_secret=settings.jwt_previous_secret,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        roles=frozenset(settings.jwt_roles),
    )


def user_keys(settings: Settings) -> KeyRules:
    return KeyRules(
        algorithms=tuple(settings.jwt_algorithms),
        refresh_seconds=settings.jwt_jwks_refresh_seconds,
        keep_seconds=settings.jwt_jwks_keep_seconds,
    )


def url_signer(settings: Settings, clock: Callable[[], datetime]) -> UrlSigner:
    """Raises ``SettingsError`` if the secret is not set."""
    previous = settings.signing_previous_secret
    return UrlSigner(
        base_url=settings.public_url,
        secret=settings.require("signing_secret").encode(),
        previous_secret=None if previous is None else previous.encode(),
        lifetime=timedelta(seconds=settings.picture_url_seconds),
        clock=clock,
    )


def s3(settings: Settings) -> S3Arguments:
    """Raises ``SettingsError`` if the bucket's name or the credentials are not set."""
    return S3Arguments(
        store=s3_store(_bucket(settings)),
        url_lifetime=timedelta(seconds=settings.picture_url_seconds),
        conditional_put=settings.s3_conditional_put,
    )


def picture_origins(settings: Settings) -> tuple[str, ...]:
    """The origins of links to pictures and uploads: the API's, and those of cloud storage."""
    urls = [settings.public_url]
    if settings.storage is Storage.S3:
        urls.append(_bucket(settings).url)
    return tuple(origin_of_url(url) for url in urls)


def _bucket(settings: Settings) -> S3Bucket:
    return S3Bucket(
        name=settings.require("s3_bucket"),
        region=settings.s3_region,
        endpoint=settings.s3_endpoint,
        path_style=settings.s3_path_style,
        access_key_id=settings.require("s3_access_key_id"),
        secret_access_key=settings.require("s3_secret_access_key"),
        timeout_seconds=settings.s3_seconds,
    )
