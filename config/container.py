"""The composition root: which adapter stands behind which port. No other file chooses one.

Everything here is made without connecting to anything; connections open when they are used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from time import monotonic
from typing import TYPE_CHECKING
from uuid import UUID

from dependency_injector import containers, providers
from uuid_utils.compat import uuid7

from adapters.auth.bearer import (
    BearerAuthenticator,
    JwtRules,
    key_sha256,
    mint_user_token,
    new_api_key,
)
from adapters.auth.memory import InMemoryApiKeyRepo
from adapters.auth.postgres import PostgresApiKeyRepo
from adapters.coalescing import BatchLimits
from adapters.credits.memory import InMemoryCreditRepo
from adapters.credits.postgres import PostgresCreditRepo
from adapters.images.inputs import InputPictures
from adapters.images.inspection import inspect_picture
from adapters.images.local import LocalPictureGenerator
from adapters.images.pool import PicturePool, PoolLimits
from adapters.images.samples import draw_sample
from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.limits.redis import RedisStartLimit
from adapters.postgres.database import Database, DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from adapters.queue.memory import InMemoryTaskQueue
from adapters.queue.redis import RedisTaskQueue, redis_client
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3Bucket, S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from config.settings import Settings
from domain.credits import Channel, Owner
from domain.generation import Generation, WorkPolicy
from domain.operations import ApiKeyIssuer, CreditGrants, DeadLetters
from domain.ports import CreditRepoPort, DeadLetterPort, Picture, SessionReadPort, TaskQueuePort
from domain.recovery import Recovery, RecoveryPolicy
from domain.sessions import GenerationSession
from domain.submission import Submission, SubmissionPolicy
from domain.uploads import UploadPolicy, UploadReceiver, Uploads
from domain.views import SessionViews

if TYPE_CHECKING:
    from adapters.images.fetcher import HttpPictureFetcher
    from adapters.images.jobs import JobPictureGenerator
    from adapters.images.openai import OpenAiPictureGenerator

Check = Callable[[], Awaitable[None]]
"""Returns if a dependency answers; raises ``Unavailable`` otherwise."""

POP_SECONDS = 1.0
"""How long a worker's pop waits: the time in which a stopping worker comes to rest."""

FIRST_LOOK_SECONDS = 0.5
"""When a provider's job is looked at for the first time."""

RESULT_SECONDS = 30
RESULT_BYTES = 32_000_000
"""Bounds of the download of a finished picture."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def _database(settings: Settings, opened: AsyncExitStack) -> Database:
    database = Database(
        settings.require("database_url"),
        limits=DatabaseLimits(
            connections=settings.database_connections,
            command_seconds=settings.database_seconds,
        ),
        transaction_pooler=settings.database_transaction_pooler,
    )
    opened.push_async_callback(database.close)
    return database


def _redis_queue(
    settings: Settings, clock: Callable[[], datetime], opened: AsyncExitStack
) -> RedisTaskQueue:
    queue = RedisTaskQueue(
        client=redis_client(settings.require("redis_url")),
        timeout_seconds=settings.redis_seconds,
        clock=clock,
        batches=BatchLimits(calls=settings.batch_limit, in_flight=1),
    )
    opened.push_async_callback(queue.close)
    return queue


def _redis_start_limit(settings: Settings, opened: AsyncExitStack) -> RedisStartLimit:
    per_minute = settings.provider_per_minute
    share = min(per_minute, settings.provider_fallback_per_minute)
    limit = RedisStartLimit(
        Pace.of(per_minute),
        client=redis_client(settings.require("redis_url")),
        share=InMemoryStartLimit(Pace.of(share), clock=monotonic),
        timeout_seconds=settings.redis_seconds,
    )
    opened.push_async_callback(limit.close)
    return limit


def _in_memory_start_limit(settings: Settings) -> InMemoryStartLimit:
    return InMemoryStartLimit(Pace.of(settings.provider_per_minute), clock=monotonic)


def _batches(settings: Settings) -> BatchLimits:
    return BatchLimits(calls=settings.batch_limit)


def _jwt_rules(settings: Settings) -> JwtRules:
    return JwtRules(
        secret=settings.require("jwt_secret"),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
    )


def _signer(settings: Settings, clock: Callable[[], datetime]) -> UrlSigner:
    return UrlSigner(
        base_url=settings.public_url,
        secret=settings.require("signing_secret").encode(),
        lifetime=settings.duration("picture_url_seconds"),
        clock=clock,
    )


def _s3_storage(settings: Settings) -> S3PictureStorage:
    bucket = S3Bucket(
        name=settings.require("s3_bucket"),
        region=settings.s3_region,
        endpoint=settings.s3_endpoint,
        path_style=settings.s3_path_style,
        access_key_id=settings.require("s3_access_key_id"),
        secret_access_key=settings.require("s3_secret_access_key"),
        timeout_seconds=settings.s3_seconds,
    )
    return S3PictureStorage(
        s3_store(bucket),
        url_lifetime=settings.duration("picture_url_seconds"),
        conditional_put=settings.s3_conditional_put,
    )


def _picture_pool(settings: Settings, opened: AsyncExitStack) -> PicturePool:
    pool = PicturePool(
        PoolLimits(
            processes=settings.picture_processes,
            memory_bytes=settings.picture_memory_mb * 1_000_000,
            seconds=settings.picture_seconds,
        )
    )
    opened.push_async_callback(pool.close)
    return pool


def _downloads(
    settings: Settings, pool: PicturePool, opened: AsyncExitStack
) -> "HttpPictureFetcher":
    from adapters.images.fetcher import FetchLimits, HttpPictureFetcher

    fetcher = HttpPictureFetcher(
        limits=FetchLimits(
            total_timeout_seconds=settings.fetch_seconds, max_bytes=settings.fetch_max_bytes
        ),
        prepare=pool.prepare,
        allow_loopback=settings.fetch_allow_loopback,
    )
    opened.push_async_callback(fetcher.close)
    return fetcher


def _openai_generator(
    settings: Settings, clock: Callable[[], datetime], opened: AsyncExitStack
) -> "OpenAiPictureGenerator":
    from adapters.images.openai import OpenAiPictureGenerator, Prices, ProviderLimits

    generator = OpenAiPictureGenerator(
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
        clock=clock,
    )
    opened.push_async_callback(generator.close)
    return generator


def _replicate_generator(
    settings: Settings, clock: Callable[[], datetime], random: Random, opened: AsyncExitStack
) -> "JobPictureGenerator":
    from adapters.images.fetcher import FetchLimits, HttpPictureFetcher
    from adapters.images.jobs import JobLimits, JobPictureGenerator
    from adapters.images.replicate import CallLimits, ReplicateJobs, ReplicateModel

    results = HttpPictureFetcher(
        limits=FetchLimits(total_timeout_seconds=RESULT_SECONDS, max_bytes=RESULT_BYTES),
        prepare=_inspected,
        allow_loopback=settings.fetch_allow_loopback,
    )
    jobs = ReplicateJobs(
        base_url=settings.replicate_base_url,
        token=settings.require("replicate_api_token"),
        model=ReplicateModel(
            name=settings.replicate_model, image_field=settings.replicate_image_field
        ),
        deadline_seconds=settings.replicate_total_seconds,
        limits=CallLimits(),
        download=results.fetch,
        clock=clock,
    )
    opened.push_async_callback(results.close)
    opened.push_async_callback(jobs.close)
    limits = JobLimits(
        total_seconds=settings.replicate_total_seconds,
        first_pause_seconds=min(FIRST_LOOK_SECONDS, settings.replicate_poll_seconds),
        longest_pause_seconds=settings.replicate_poll_seconds,
    )
    return JobPictureGenerator(jobs, name="replicate", limits=limits, random=random)


async def _inspected(data: bytes) -> Picture:
    """A finished picture, kept as it is if it is one."""
    return await asyncio.to_thread(inspect_picture, data)


def _submission_policy(settings: Settings) -> SubmissionPolicy:
    return SubmissionPolicy(
        deadline=settings.duration("submit_seconds"),
        max_waiting=settings.max_waiting,
        max_active=settings.max_active,
    )


def _work_policy(settings: Settings) -> WorkPolicy:
    return WorkPolicy(
        lease=settings.duration("lease_seconds"),
        max_attempts=settings.max_attempts,
        attempt_timeout=settings.duration("attempt_seconds"),
        backoff_base=settings.duration("backoff_base_seconds"),
        backoff_cap=settings.duration("backoff_cap_seconds"),
    )


def _recovery_policy(settings: Settings) -> RecoveryPolicy:
    return RecoveryPolicy(
        requeue_after=settings.duration("push_again_seconds"),
        max_attempts=settings.max_attempts,
        external_timeout=settings.duration("foreign_seconds"),
        queue_ttl=settings.duration("queued_seconds"),
        picture_lifetime=timedelta(days=settings.picture_days),
        keep_uploads=timedelta(days=settings.upload_days),
    )


def _upload_policy(settings: Settings) -> UploadPolicy:
    return UploadPolicy(max_per_day=settings.max_uploads, max_bytes=settings.fetch_max_bytes)


def _readiness(store: CreditRepoPort, queue: TaskQueuePort) -> Mapping[str, Check]:
    """What the API cannot do without, by name, and how to see that it answers."""

    async def store_answers() -> None:
        await store.account(Owner(channel=Channel.B2C, id="readiness"))

    async def queue_answers() -> None:
        await queue.depth()

    return {"database": store_answers, "queue": queue_answers}


def _dead_letters(letters: DeadLetterPort, sessions: Callable[[], SessionReadPort]) -> DeadLetters:
    """Asks for ``sessions`` only for a letter that names one: others need no database."""

    async def read_session(session_id: UUID) -> GenerationSession:
        return await sessions().get(session_id, None)

    return DeadLetters(letters=letters, read_session=read_session)


class Container(containers.DeclarativeContainer):
    """Who gets what. Override a provider to put another adapter behind a port."""

    settings = providers.Dependency(instance_of=Settings)
    clock = providers.Object(utc_now)
    new_id = providers.Object(uuid7)
    random = providers.Singleton(Random)
    opened = providers.Singleton(AsyncExitStack[bool | None])

    database = providers.Singleton(_database, settings, opened)
    migrate = providers.Callable(migrate, database, providers.Callable(all_migrations))
    in_memory_credits = providers.Singleton(InMemoryCreditRepo, clock=clock)

    queue = providers.Selector(
        settings.provided.queue,
        redis=providers.Singleton(_redis_queue, settings, clock, opened),
        memory=providers.Singleton(InMemoryTaskQueue, clock=clock),
    )
    sessions = providers.Selector(
        settings.provided.store,
        postgres=providers.Singleton(
            PostgresSessionRepo, database, batches=providers.Callable(_batches, settings)
        ),
        memory=providers.Singleton(InMemorySessionRepo, accounts=in_memory_credits, clock=clock),
    )
    accounts = providers.Selector(
        settings.provided.store,
        postgres=providers.Singleton(PostgresCreditRepo, database),
        memory=in_memory_credits,
    )
    api_keys = providers.Selector(
        settings.provided.store,
        postgres=providers.Singleton(PostgresApiKeyRepo, database),
        memory=providers.Singleton(InMemoryApiKeyRepo, clock=clock),
    )
    signer = providers.Singleton(_signer, settings, clock)
    local_storage = providers.Singleton(
        LocalPictureStorage, settings.provided.pictures_dir, signer=signer
    )
    in_memory_storage = providers.Singleton(InMemoryPictureStorage, signer=signer)
    storage = providers.Selector(
        settings.provided.storage,
        local=local_storage,
        s3=providers.Singleton(_s3_storage, settings),
        memory=in_memory_storage,
    )
    files = providers.Selector(
        settings.provided.storage,
        local=local_storage,
        s3=providers.Object(None),
        memory=in_memory_storage,
    )
    picture_pool = providers.Singleton(_picture_pool, settings, opened)
    downloads = providers.Singleton(_downloads, settings, picture_pool, opened)
    fetcher = providers.Singleton(
        InputPictures,
        pictures=storage,
        uploads=storage,
        download=downloads.provided.fetch,
        prepare=picture_pool.provided.prepare,
        max_bytes=settings.provided.fetch_max_bytes,
    )
    uploads = providers.Singleton(
        Uploads,
        storage=storage,
        policy=providers.Singleton(_upload_policy, settings),
        new_id=new_id,
        clock=clock,
    )
    own_receiver = providers.Singleton(
        UploadReceiver,
        sink=storage,
        check_quota=uploads.provided.check_quota,
        inspect=providers.Object(_inspected),
    )
    receiver = providers.Selector(
        settings.provided.storage,
        local=own_receiver,
        s3=providers.Object(None),
        memory=own_receiver,
    )
    generator = providers.Selector(
        settings.provided.generator,
        local=providers.Singleton(
            LocalPictureGenerator, delay_seconds=settings.provided.local_generator_seconds
        ),
        openai=providers.Singleton(_openai_generator, settings, clock, opened),
        replicate=providers.Singleton(_replicate_generator, settings, clock, random, opened),
    )
    provider_limit = providers.Selector(
        settings.provided.queue,
        redis=providers.Singleton(_redis_start_limit, settings, opened),
        memory=providers.Singleton(_in_memory_start_limit, settings),
    )
    start_limit = providers.Selector(
        settings.provided.generator,
        local=providers.Object(None),
        openai=provider_limit,
        replicate=provider_limit,
    )

    samples = providers.Selector(
        settings.provided.environment,
        development=providers.Object(draw_sample),
        production=providers.Object(None),
    )

    jwt_rules = providers.Singleton(_jwt_rules, settings)
    user_token = providers.Callable(mint_user_token, rules=jwt_rules)
    new_api_key = providers.Callable(new_api_key)
    key_sha256 = providers.Callable(key_sha256)
    authenticate = providers.Singleton(
        BearerAuthenticator,
        keys=api_keys,
        rules=jwt_rules,
        cache_seconds=settings.provided.caller_seconds,
    )
    readiness = providers.Singleton(_readiness, accounts, queue)

    submission = providers.Singleton(
        Submission,
        sessions=sessions,
        reads=sessions,
        queue=queue,
        policy=providers.Singleton(_submission_policy, settings),
        new_id=new_id,
        clock=clock,
    )
    views = providers.Singleton(SessionViews, reads=sessions, storage=storage)
    generation = providers.Singleton(
        Generation,
        sessions=sessions,
        attempts=sessions,
        queue=queue,
        fetcher=fetcher,
        generator=generator,
        storage=storage,
        policy=providers.Singleton(_work_policy, settings),
        random=random,
        new_id=new_id,
    )
    recovery = providers.Singleton(
        Recovery,
        sessions=sessions,
        recovery_repo=sessions,
        queue=queue,
        storage=storage,
        uploads=storage,
        policy=providers.Singleton(_recovery_policy, settings),
        new_id=new_id,
        clock=clock,
    )
    grants = providers.Singleton(CreditGrants, accounts=accounts)
    key_issuer = providers.Singleton(
        ApiKeyIssuer,
        api_keys=api_keys,
        new_secret=new_api_key.provider,
        hash_secret=key_sha256.provider,
        new_id=new_id,
        clock=clock,
    )
    dead_letters = providers.Singleton(_dead_letters, queue, sessions.provider)


async def close(container: Container) -> None:
    """Close what was made and holds connections; call once, at the end of the process."""
    opened: AsyncExitStack = container.opened()
    await opened.aclose()
