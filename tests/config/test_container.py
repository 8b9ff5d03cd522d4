"""The composition root: whatever the settings choose fits, and nothing connects before it must."""

import asyncio
import inspect
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID

import pytest
from dependency_injector import providers

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.jobs import JobLimits, JobPictureGenerator
from adapters.images.openai import OpenAiPictureGenerator, Prices, ProviderLimits
from adapters.images.replicate import ReplicateJobs, ReplicateModel
from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.limits.redis import RedisStartLimit
from adapters.postgres.database import Database
from config.container import Container, close
from config.settings import (
    Environment,
    Generator,
    OutputFormat,
    Quality,
    Queue,
    Settings,
    SettingsError,
    Storage,
    Store,
)
from domain.credits import LedgerKind
from domain.errors import DatabaseUnavailable, QueueUnavailable
from domain.generation import Outcome
from domain.ports import (
    ApiKeyRepoPort,
    AttemptRepoPort,
    CreditRepoPort,
    Picture,
    PictureGeneratorPort,
    PictureStoragePort,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    StartLimitPort,
    TaskQueuePort,
    UploadStoragePort,
)
from domain.sessions import SessionStatus
from domain.tasks import GenerationTask
from entrypoints.http.server import application, services_of
from entrypoints.worker import build_worker
from tests.support.clock import START
from tests.support.examples import MODEL_URL, OUTFIT_URL, STORE, USER, a_request
from tests.support.images import FakeImageFetcher, FakeImageGenerator, encoded
from tests.support.servers import new_bucket

SECRET = "s" * 32
NOWHERE = Settings(
    environment=Environment.DEVELOPMENT,
    database_url="postgresql://nobody@127.0.0.1:1/nothing",
    redis_url="redis://127.0.0.1:1/0",
    jwt_secret=SECRET,
    signing_secret=SECRET,
    openai_api_key=SECRET,
    replicate_api_token=SECRET,
    data_dir=Path("/nonexistent/wearon"),
    s3_bucket="nothing",
    s3_endpoint="http://127.0.0.1:1",
    s3_access_key_id="nobody",
    s3_secret_access_key=SECRET,
)
"""Everything is set, and nothing that it names is there."""

ASYNCHRONOUS = {"migrate"}
"""Providers that give something to await; all others give the thing itself."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "user_token": {"user_id": UUID(USER.id), "now": START, "lifetime": timedelta(hours=1)},
    "key_sha256": {"api_key": "wk_1"},
}
"""What providers of functions are called with."""


def in_memory(**changes: Any) -> Container:
    values: dict[str, Any] = {
        "environment": Environment.DEVELOPMENT,
        "store": Store.MEMORY,
        "queue": Queue.MEMORY,
        "storage": Storage.MEMORY,
        "jwt_secret": SECRET,
        "signing_secret": SECRET,
    }
    return Container(settings=Settings(**values | changes))


@pytest.mark.anyio
async def test_the_service_works_in_one_process() -> None:
    """With every adapter in memory, a submission becomes a picture whose signed link can be
    followed, for one credit and without any server."""
    container = in_memory()
    picture = Picture(data=encoded(), media_type="image/png")
    container.fetcher.override(
        providers.Object(FakeImageFetcher({MODEL_URL: picture, OUTFIT_URL: picture}))
    )
    await container.accounts().grant(STORE, 1, note="test")

    receipt = await container.submission().submit(a_request(STORE, outfit_image_url=OUTFIT_URL))
    task = await container.queue().pop(timeout_seconds=0.1)
    assert isinstance(task, GenerationTask)
    outcome = await container.generation().run(task)
    report = await container.recovery().run_once()

    view = await container.views().get(receipt.session.id, STORE)
    (debit, _) = await container.accounts().ledger(STORE, limit=10, before_id=None)
    assert outcome is Outcome.COMPLETED
    assert view.session.status is SessionStatus.COMPLETED
    assert view.session.picture is not None
    assert view.session.picture.media_type == "image/jpeg"
    assert view.picture_url is not None
    assert view.picture_url.startswith(f"{container.settings().public_url}/files/stores/{STORE.id}")
    assert (debit.kind, debit.session_id) == (LedgerKind.DEBIT, receipt.session.id)
    assert report.total == 0
    await close(container)


@pytest.mark.anyio
async def test_pictures_may_lie_in_s3(s3_url: str) -> None:
    """A picture ends in the bucket of the settings, under a link for anybody which is made when
    the session is read, and which needs no signing secret of ours. The API serves no files."""
    bucket = new_bucket(s3_url)
    container = in_memory(
        storage=Storage.S3,
        signing_secret=None,
        s3_bucket=bucket.name,
        s3_endpoint=s3_url,
        s3_access_key_id="us",
        s3_secret_access_key=SECRET,
        picture_url_seconds=60,
    )
    container.fetcher.override(
        providers.Object(
            FakeImageFetcher({MODEL_URL: Picture(data=encoded(), media_type="image/png")})
        )
    )
    await container.accounts().grant(STORE, 1, note="test")

    receipt = await container.submission().submit(a_request(STORE))
    task = await container.queue().pop(timeout_seconds=0.1)
    assert isinstance(task, GenerationTask)
    outcome = await container.generation().run(task)

    view = await container.views().get(receipt.session.id, STORE)
    url = view.picture_url or ""
    assert outcome is Outcome.COMPLETED
    assert url.startswith(f"{s3_url}/{bucket.name}/stores/{STORE.id}/generated/{view.session.id}.")
    assert "X-Amz-Expires=60&" in url
    assert url.partition("?")[2] not in repr(view.session)
    assert services_of(container).files is None
    assert (await asyncio.to_thread(downloaded, url)).startswith(b"\xff\xd8")
    await close(container)


def downloaded(url: str) -> bytes:
    with urlopen(url) as response:
        return bytes(response.read())


@pytest.mark.parametrize(("storage", "served"), [(Storage.MEMORY, True), (Storage.S3, False)])
def test_files_have_a_route_where_we_serve_them(storage: Storage, served: bool) -> None:
    """Where the storage does, there is nothing to ask us for."""
    container = in_memory(
        storage=storage, s3_bucket="b", s3_access_key_id="us", s3_secret_access_key=SECRET
    )

    routes = {route.path for route in application(container).routes}

    assert any(path.startswith("/files") for path in routes) is served
    assert any(path.startswith("/uploads") for path in routes) is served
    assert "/api/v1/uploads" in routes
    assert "/health/live" in routes


@pytest.mark.parametrize("storage", [Storage.LOCAL, Storage.MEMORY])
def test_what_serves_its_own_pictures_is_the_storage(storage: Storage) -> None:
    """The API gives out what the worker saved."""
    container = in_memory(storage=storage)

    assert container.files() is container.storage()


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("queue", Queue),
        ("sessions", Store),
        ("accounts", Store),
        ("api_keys", Store),
        ("storage", Storage),
        ("files", Storage),
        ("receiver", Storage),
        ("generator", Generator),
        ("provider_limit", Queue),
        ("start_limit", Generator),
        ("samples", Environment),
    ],
)
def test_every_option_has_its_adapter(option: str, options: type[StrEnum]) -> None:
    """What the settings allow can be provided, and nothing is provided that they do not allow."""
    selector = Container.providers[option]

    assert isinstance(selector, providers.Selector)
    assert set(selector.providers) == {member.value for member in options}


def test_every_selector_is_in_the_list_above() -> None:
    """A new switch gets its row there."""
    selectors = {
        name
        for name, provider in Container.providers.items()
        if isinstance(provider, providers.Selector)
    }

    assert selectors == {
        "queue", "sessions", "accounts", "api_keys", "storage", "files", "receiver", "generator",
        "samples", "provider_limit", "start_limit",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ports"),
    [
        ("queue", [TaskQueuePort]),
        ("sessions", [SessionRepoPort, SessionReadPort, RecoveryRepoPort, AttemptRepoPort]),
        ("accounts", [CreditRepoPort]),
        ("api_keys", [ApiKeyRepoPort]),
        ("storage", [PictureStoragePort, UploadStoragePort]),
        ("generator", [PictureGeneratorPort]),
        ("provider_limit", [StartLimitPort]),
    ],
)
def test_every_adapter_is_one_of_its_port(name: str, ports: list[type]) -> None:
    """Whichever option is chosen, what stands behind the port inherits it."""
    selector = Container(settings=NOWHERE).providers[name]

    assert isinstance(selector, providers.Selector)
    for option, provider in selector.providers.items():
        kinds = type(provider()).__mro__
        assert set(ports) <= set(kinds), option


def test_sessions_and_accounts_in_memory_share_the_books() -> None:
    """The sessions in memory debit the very accounts that the container gives out, and every user
    of the queue has the same one."""
    container = in_memory()

    assert container.accounts() is container.accounts()
    assert container.sessions()._accounts is container.accounts()
    assert container.queue() is container.submission()._queue is container.generation()._queue


@pytest.mark.parametrize("name", sorted({*Container.providers} - {"settings"}))
def test_the_graph_is_synchronous(name: str) -> None:
    """A provider gives the thing itself: one asynchronous resource would turn all that depend on
    it into futures, unseen by the type checker. This runs without an event loop, on servers that
    are not there and a folder that cannot be made, so nothing connects or touches a disk either."""
    container = Container(settings=NOWHERE)

    thing = container.providers[name](**ARGUMENTS.get(name, {}))

    if inspect.iscoroutine(thing):
        thing.close()
        assert name in ASYNCHRONOUS
    assert not asyncio.isfuture(thing)


@pytest.mark.anyio
async def test_servers_that_are_away_are_noticed_when_used() -> None:
    """The whole service can be made while store and queue are away; using them says so."""
    container = Container(settings=NOWHERE)
    container.submission(), container.generation(), container.recovery(), container.authenticate()
    readiness = container.readiness()

    with pytest.raises(DatabaseUnavailable):
        await readiness["database"]()
    with pytest.raises(QueueUnavailable):
        await readiness["queue"]()

    await close(container)


def test_what_is_not_set_is_missed_by_name() -> None:
    """Whoever needs a server or a secret that is not set is told which variable it is."""
    container = Container(settings=Settings(generator=Generator.OPENAI))
    with pytest.raises(SettingsError, match=r"^REPLICATE_API_TOKEN: must be set"):
        Container(settings=Settings(generator=Generator.REPLICATE)).generator()

    for name, variable in (
        ("database", "DATABASE_URL"),
        ("queue", "REDIS_URL"),
        ("jwt_rules", "WEARON_JWT_SECRET"),
        ("signer", "WEARON_SIGNING_SECRET"),
        ("generator", "OPENAI_API_KEY"),
    ):
        with pytest.raises(SettingsError, match=rf"^{variable}: must be set"):
            container.providers[name]()


def test_an_adapter_can_be_put_behind_a_port() -> None:
    """An overridden provider reaches every use case that depends on it, and can be taken back."""
    container = in_memory()
    generator = FakeImageGenerator()

    with container.generator.override(providers.Object(generator)):
        assert container.generation()._generator is generator
    container.generation.reset()

    assert container.generation()._generator is not generator


def test_samples_are_for_development() -> None:
    """Sample pictures are drawn in development and do not exist in production."""
    in_production = Container(settings=Settings())

    assert in_memory().samples()("model.png").startswith(b"\x89PNG")
    assert in_production.samples() is None


def test_settings_reach_what_they_set() -> None:
    """The limits of the settings are those of the adapters and policies."""
    container = in_memory(
        fetch_seconds=7, fetch_max_bytes=4_096, lease_seconds=9, max_attempts=5, queued_seconds=11,
        picture_processes=3, picture_memory_mb=400, picture_seconds=6, picture_days=4,
        max_uploads=12, upload_days=13,
    )  # fmt: skip

    limits = container.downloads()._limits
    pictures = container.picture_pool()._limits
    work = container.generation()._policy
    recovery = container.recovery()._policy
    uploads = container.uploads()._policy

    assert (limits.total_timeout_seconds, limits.max_bytes) == (7, 4_096)
    assert (pictures.processes, pictures.memory_bytes, pictures.seconds) == (3, 400_000_000, 6)
    assert (work.lease.total_seconds(), work.max_attempts) == (9, 5)
    assert (recovery.queue_ttl.total_seconds(), recovery.max_attempts) == (11, 5)
    assert recovery.picture_lifetime.days == 4
    assert recovery.keep_uploads.days == 13
    assert container.fetcher()._max_bytes == 4_096
    assert (uploads.max_per_day, uploads.max_bytes) == (12, 4_096)


def test_settings_reach_the_provider() -> None:
    """Its address, options, prices and bounds; and its key, which its words do not show."""
    container = in_memory(
        generator=Generator.OPENAI,
        openai_api_key="sk-1",
        openai_base_url="https://gateway.example/v1",
        openai_model="gpt-image-2",
        openai_quality=Quality.HIGH,
        openai_output_format=OutputFormat.WEBP,
        openai_connect_seconds=1,
        openai_answer_seconds=2,
        openai_total_seconds=3,
        openai_input_usd_per_million="0.1",
        openai_output_usd_per_million="9999.999999",
    )

    generator = container.generation()._generator

    assert isinstance(generator, OpenAiPictureGenerator)
    assert str(generator._url) == "https://gateway.example/v1/images/edits"
    assert generator._api_key == "sk-1"
    assert "sk-1" not in f"{generator!r} {container.settings()!r}"
    assert generator._options == {
        "model": "gpt-image-2", "size": "1024x1536", "quality": "high", "output_format": "webp"
    }  # fmt: skip
    assert generator._prices == Prices(
        input_usd_per_million=Decimal("0.1"), output_usd_per_million=Decimal("9999.999999")
    )
    assert generator._limits == ProviderLimits(connect_seconds=1, answer_seconds=2, total_seconds=3)


@pytest.mark.parametrize(("fallback", "share"), [(7, 7), (500, 120)])
def test_settings_reach_the_limit_of_the_provider(fallback: int, share: int) -> None:
    """The fleet's pace, and each process's own for when Redis is away: never more than that."""
    container = in_memory(
        queue=Queue.REDIS,
        redis_url="redis://127.0.0.1:1/0",
        generator=Generator.OPENAI,
        openai_api_key=SECRET,
        provider_per_minute=120,
        provider_fallback_per_minute=fallback,
        redis_seconds=3,
    )

    limit = container.start_limit()

    assert isinstance(limit, RedisStartLimit)
    assert (limit._pace, limit._share._pace) == (Pace.of(120), Pace.of(share))
    assert limit._timeout_seconds == 3
    assert build_worker(container, concurrency=1, recovery=False)._limit is limit


def test_only_a_provider_has_a_limit() -> None:
    """The generator that comes with wearon may be asked at any pace; in one process, the limit is
    that process's."""
    openai = {"generator": Generator.OPENAI, "openai_api_key": SECRET, "provider_per_minute": 40}

    limit = in_memory(**openai).start_limit()

    assert in_memory().start_limit() is None
    assert isinstance(limit, InMemoryStartLimit)
    assert limit._pace == Pace.of(40)


def test_settings_reach_the_provider_of_jobs() -> None:
    """Its address, model and bounds; and its token, which its words do not show. Pictures come
    from this machine only where inputs may."""
    container = in_memory(
        generator=Generator.REPLICATE,
        replicate_api_token="r8_1",
        replicate_base_url="https://gateway.example",
        replicate_model="google/nano-banana-2",
        replicate_image_field="images",
        replicate_poll_seconds=0.2,
        replicate_total_seconds=33,
        fetch_allow_loopback=True,
    )

    generator = container.generation()._generator

    assert isinstance(generator, JobPictureGenerator)
    jobs = generator._jobs
    assert isinstance(jobs, ReplicateJobs)
    results = getattr(jobs._download, "__self__", None)
    assert isinstance(results, HttpPictureFetcher)
    assert generator._limits == JobLimits(
        total_seconds=33, first_pause_seconds=0.2, longest_pause_seconds=0.2
    )
    assert (str(jobs._root), jobs._token) == ("https://gateway.example/v1", "r8_1")
    assert "r8_1" not in f"{generator!r} {jobs!r} {container.settings()!r}"
    assert jobs._model == ReplicateModel(name="google/nano-banana-2", image_field="images")
    assert jobs._deadline == 33
    assert results._allow_loopback
    assert results is not container.downloads()


@pytest.mark.anyio
async def test_only_what_was_made_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing makes nothing just to close it, so a command that needs the database alone runs
    where Redis is not set; what was made is closed, once."""
    closed: list[object] = []

    async def closing(adapter: object) -> None:
        closed.append(adapter)

    monkeypatch.setattr(Database, "close", closing)
    monkeypatch.setattr(HttpPictureFetcher, "close", closing)
    monkeypatch.setattr(OpenAiPictureGenerator, "close", closing)
    container = Container(
        settings=Settings(
            database_url="postgresql://127.0.0.1:1/nothing",
            generator=Generator.OPENAI,
            openai_api_key="sk-1",
        )
    )
    made = [container.database(), container.downloads(), container.generator()]

    await close(container)
    await close(container)

    assert closed == made[::-1]
