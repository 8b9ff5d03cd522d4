"""Builds what workers make pictures with. Its adapters are loaded only here, so that an API starts
faster."""

from collections.abc import Callable
from datetime import datetime
from random import Random
from time import monotonic
from typing import assert_never

from adapters.images.inputs import InputPictures
from adapters.images.inspection import inspect_in_thread
from adapters.images.local import LocalPictureGenerator
from adapters.images.pool import PicturePool
from adapters.limits.memory import InMemoryStartLimit
from adapters.limits.redis import RedisStartLimit
from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3PictureStorage
from adapters.storage.signing import UrlSigner
from config import options, policies
from config.closing import Opened, closing
from config.services import Storage
from config.settings import Settings
from config.tracing import HttpCalls
from domain.picture_ports import PictureFetcherPort, PictureGeneratorPort, StartLimitPort

Clock = Callable[[], datetime]


def fetcher(settings: Settings, *, storage: Storage, opened: Opened) -> PictureFetcherPort:
    from adapters.images.fetcher import HttpPictureFetcher

    prepare = closing(opened, PicturePool(policies.picture_pool(settings))).prepare
    downloads = HttpPictureFetcher(**policies.downloads(settings), prepare=prepare)
    return InputPictures(
        pictures=storage,
        uploads=storage,
        prepare=prepare,
        download=closing(opened, downloads).download,
        **policies.inputs(settings),
    )


def generator(
    settings: Settings, *, opened: Opened, clock: Clock, random: Random, calls: HttpCalls = list
) -> PictureGeneratorPort:
    """``calls`` builds what watches the provider's calls."""
    match settings.generator:
        case None | options.Generator.LOCAL:
            return LocalPictureGenerator(
                delay_seconds=settings.local_generator_seconds,
                plays_cards=settings.serves_samples,
            )
        case options.Generator.OPENAI:
            from adapters.images.openai import OpenAiPictureGenerator

            made = OpenAiPictureGenerator(
                **policies.openai(settings), clock=clock, watched_by=calls()
            )
            return closing(opened, made)
        case options.Generator.REPLICATE:
            return _replicate_generator(settings, opened, clock, random, calls)
        case unknown:
            assert_never(unknown)


def _replicate_generator(
    settings: Settings, opened: Opened, clock: Clock, random: Random, calls: HttpCalls
) -> PictureGeneratorPort:
    from adapters.images.fetcher import HttpPictureFetcher
    from adapters.images.jobs import JobPictureGenerator
    from adapters.images.replicate import ReplicateJobs

    results = HttpPictureFetcher(**policies.results(settings), prepare=inspect_in_thread)
    download = closing(opened, results).fetch
    jobs = ReplicateJobs(
        **policies.replicate(settings), download=download, clock=clock, watched_by=calls()
    )
    closing(opened, jobs)
    limits = policies.replicate_jobs(settings)
    return JobPictureGenerator(jobs, name="replicate", limits=limits, random=random)


def start_limit(settings: Settings, *, opened: Opened) -> StartLimitPort | None:
    if not settings.generator_is_paid:
        return None
    pace = policies.provider_pace(settings)
    match settings.queue:
        case options.Queue.REDIS:
            share = InMemoryStartLimit(policies.fallback_pace(settings), clock=monotonic)
            limit = RedisStartLimit(pace, share=share, **policies.redis(settings))
            return closing(opened, limit)
        case options.Queue.MEMORY:
            return InMemoryStartLimit(pace, clock=monotonic)
        case unknown:
            assert_never(unknown)


def storage(settings: Settings, *, signer: Callable[[], UrlSigner]) -> Storage:
    """``signer`` is not built for S3, which signs its own links: no secret is needed there."""
    match settings.storage:
        case options.Storage.LOCAL:
            return LocalPictureStorage(settings.pictures_dir, signer=signer())
        case options.Storage.MEMORY:
            return InMemoryPictureStorage(signer=signer())
        case options.Storage.S3:
            return S3PictureStorage(**policies.s3(settings))
        case unknown:
            assert_never(unknown)
