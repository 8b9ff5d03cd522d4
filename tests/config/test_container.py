"""The composition root: every choice of the settings works, and nothing connects before use."""

import asyncio
import inspect
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen
from uuid import UUID, uuid4

import msgspec
import pytest

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.inputs import InputPictures
from adapters.images.jobs import JobPictureGenerator
from adapters.images.limits import RESULT_LIMITS, JobLimits, ProviderLimits
from adapters.images.openai import OpenAiPictureGenerator, Prices
from adapters.images.pool import PicturePool
from adapters.images.replicate import ReplicateJobs, ReplicateModel
from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.limits.redis import RedisStartLimit
from adapters.postgres.database import Database
from adapters.queue.redis import RedisTaskQueue
from adapters.sessions.memory import InMemorySessionRepo
from config import options, policies
from config.closing import close
from config.container import Container, replace
from config.options import Environment, Generator, OutputFormat, Quality, Queue, Storage
from config.settings import Settings, SettingsError
from domain.account_ports import AccountRepoPort, AuditLogPort, ServiceKeyRepoPort
from domain.credits import LedgerKind
from domain.errors import DatabaseUnavailable, QueueUnavailable
from domain.generation import Outcome
from domain.operator_ports import BookCheck, Switch
from domain.operators import Operator
from domain.picture_ports import (
    Picture,
    PictureFetcherPort,
    PictureGeneratorPort,
    PictureStoragePort,
    SignedReadPort,
    StartLimitPort,
    UploadSinkPort,
    UploadStoragePort,
)
from domain.ports import (
    ApiKeyRepoPort,
    AttemptRepoPort,
    CreditRepoPort,
    DeadLetterPort,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    TaskQueuePort,
)
from domain.sessions import SessionStatus
from domain.tasks import GenerationTask
from entrypoints.http.server import application, services_of
from entrypoints.worker import build_worker
from tests.contracts.operating import a_worker_state
from tests.support.clock import START
from tests.support.examples import MODEL_URL, OPERATOR, OUTFIT_URL, STORE, a_request
from tests.support.images import FakePictureFetcher, FakePictureGenerator, encoded
from tests.support.servers import new_bucket

T = TypeVar("T")
S = timedelta(seconds=1)
SECRET = "signs the tokens of the users: 0123456789"
OTHER_SECRET = "signs the links to the pictures: 9876543210"
NOWHERE = Settings(
    environment=Environment.DEVELOPMENT,
    database_url="postgresql://nobody@127.0.0.1:1/nothing",
    redis_url="redis://127.0.0.1:1/0",
    jwt_secret=SECRET,
    signing_secret=SECRET,
    console_secret=OTHER_SECRET[::-1],
    openai_api_key=SECRET,
    replicate_api_token=SECRET,
    data_dir=Path("/nonexistent/wearon"),
    s3_bucket="nothing",
    s3_endpoint="http://127.0.0.1:1",
    s3_access_key_id="nobody",
    s3_secret_access_key=SECRET,
)
"""Every setting is set, and none of the servers and folders that they name exists."""

ARGUMENTS: dict[str, dict[str, Any]] = {"key_sha256": {"api_key": "wk_1"}}
"""Arguments of the providers that take some."""


def in_memory(**changes: Any) -> Container:
    values: dict[str, Any] = {
        "environment": Environment.DEVELOPMENT,
        "database": options.Database.MEMORY,
        "queue": Queue.MEMORY,
        "storage": Storage.MEMORY,
        "jwt_secret": SECRET,
        "signing_secret": SECRET,
    }
    return Container(settings=Settings(**values | changes))


@pytest.mark.anyio
async def test_service_runs_in_one_process() -> None:
    """With every adapter in memory, a submission becomes a picture with a signed link, for one
    credit and without any server."""
    container = in_memory()
    picture = Picture(data=encoded(), media_type="image/png")
    replace(container.fetcher, FakePictureFetcher({MODEL_URL: picture, OUTFIT_URL: picture}))
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
async def test_pictures_are_stored_in_s3(s3_url: str) -> None:
    """A picture is stored in the bucket of the settings. Its link is made when the session is read,
    and requires no signing secret of ours. The API serves no files."""
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
    picture = Picture(data=encoded(), media_type="image/png")
    replace(container.fetcher, FakePictureFetcher({MODEL_URL: picture}))
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


@pytest.mark.anyio
async def test_api_that_starts_during_a_pause_accepts_nothing() -> None:
    """The pauses are read before the first request, and followed until the process ends."""
    container = in_memory()
    pauses, submission = container.pauses(), container.submission()
    operator = Operator(actor="cli:alice", reason="an update")
    await pauses.pause(Switch.INTAKE, by=operator)

    async with application(container).lifespan(), asyncio.timeout(20):
        paused_at_first = submission.is_paused
        await pauses.resume(Switch.INTAKE, by=operator)
        while submission.is_paused:  # noqa: ASYNC110 - a pause that ends sets no event
            await asyncio.sleep(0.01)

    assert paused_at_first


def downloaded(url: str) -> bytes:
    with urlopen(url) as response:
        return bytes(response.read())


@pytest.mark.parametrize(("storage", "served"), [(Storage.MEMORY, True), (Storage.S3, False)])
def test_files_have_a_route_unless_the_storage_serves_them(storage: Storage, served: bool) -> None:
    """Clients fetch and upload pictures in S3 without our API."""
    container = in_memory(
        storage=storage, s3_bucket="b", s3_access_key_id="us", s3_secret_access_key=SECRET
    )

    routes = {route.path for route in application(container).routes}

    assert any(path.startswith("/files") for path in routes) is served
    assert any(path.startswith("/uploads") for path in routes) is served
    assert "/api/v1/uploads" in routes
    assert "/health/live" in routes


@pytest.mark.parametrize("storage", [Storage.LOCAL, Storage.MEMORY])
def test_served_files_are_those_of_the_storage(storage: Storage) -> None:
    """The API serves the pictures that the worker saved."""
    container = in_memory(storage=storage)

    assert container.files() is container.storage()


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("database", options.Database),
        ("queue", options.Queue),
        ("storage", options.Storage),
        ("generator", options.Generator),
        ("environment", options.Environment),
    ],
)
def test_every_option_has_adapters(setting: str, options: type[StrEnum]) -> None:
    """With every value of a setting that chooses adapters, the whole service can be built, and each
    adapter inherits its ports."""
    for option in options:
        settings = msgspec.structs.replace(NOWHERE, **{"jwt_secret": OTHER_SECRET, setting: option})
        container = Container(settings=settings)

        services_of(container), build_worker(container, concurrency=1, recovery=True)
        for name, ports in PORTS.items():
            adapter = container.providers[name]()
            assert adapter is None or ports <= {*type(adapter).__mro__}, (option, name)


PORTS: dict[str, set[type]] = {
    "queue": {TaskQueuePort, DeadLetterPort},
    "sessions": {SessionRepoPort, SessionReadPort, RecoveryRepoPort, AttemptRepoPort},
    "accounts": {CreditRepoPort, AccountRepoPort},
    "api_keys": {ApiKeyRepoPort},
    "service_keys": {ServiceKeyRepoPort},
    "audit_log": {AuditLogPort},
    "storage": {PictureStoragePort, UploadStoragePort},
    "files": {SignedReadPort, UploadSinkPort},
    "fetcher": {PictureFetcherPort},
    "generator": {PictureGeneratorPort},
    "start_limit": {StartLimitPort},
}


@pytest.mark.anyio
async def test_operators_in_memory_see_what_processes_report() -> None:
    """And a worker is told what operators have paused."""
    repositories = in_memory().repositories()
    state = a_worker_state(UUID(int=1))
    await repositories.pauses.pause(Switch.WORKERS, by=OPERATOR)
    controls = await repositories.workers.report(state)
    await repositories.book_checks.record(
        BookCheck(at=START, took=timedelta(0), discrepancies=3), again_after=timedelta(0)
    )

    snapshot = await repositories.operator_reads.snapshot()
    assert controls.paused is not None
    assert [*snapshot.pauses] == [controls.paused]
    assert [worker.id for worker in snapshot.workers] == [state.id]
    assert snapshot.books is not None
    assert snapshot.books.discrepancies == 3


def test_sessions_in_memory_debit_the_accounts() -> None:
    """The repositories in memory share their accounts, and every use case has the same queue."""
    container = in_memory()
    sessions, accounts = container.sessions(), container.accounts()

    assert isinstance(sessions, InMemorySessionRepo)
    assert sessions._accounts is accounts is container.accounts()
    assert container.queue() is container.submission()._queue is container.generation()._queue


@pytest.mark.parametrize("name", sorted({*Container.providers} - {"settings"}))
def test_building_a_service_connects_to_nothing(name: str) -> None:
    """This runs without an event loop, on servers and a folder that do not exist. A provider
    returns the service itself: one asynchronous resource would turn all services that depend on it
    into futures, unseen by the type checker."""
    container = Container(settings=NOWHERE)

    built = container.providers[name](**ARGUMENTS.get(name, {}))

    assert not inspect.isawaitable(built)


@pytest.mark.anyio
async def test_unavailable_servers_are_noticed_on_use() -> None:
    """The whole service can be built while database and queue are unavailable."""
    container = Container(settings=NOWHERE)
    container.submission(), container.generation(), container.recovery(), container.authenticate()
    readiness = services_of(container).readiness

    with pytest.raises(DatabaseUnavailable):
        await readiness["database"]()
    with pytest.raises(QueueUnavailable):
        await readiness["queue"]()

    await close(container)


@pytest.mark.parametrize(
    ("name", "changes", "variable"),
    [
        ("database", {}, "DATABASE_URL"),
        ("queue", {}, "REDIS_URL"),
        ("authenticate", {"database_url": "postgresql://db/x"}, "WEARON_JWT_SECRET"),
        ("signer", {}, "WEARON_SIGNING_SECRET"),
        ("storage", {"storage": Storage.S3}, "WEARON_S3_BUCKET"),
        ("generator", {"generator": Generator.OPENAI}, "OPENAI_API_KEY"),
        ("generator", {"generator": Generator.REPLICATE}, "REPLICATE_API_TOKEN"),
    ],
)
def test_missing_setting_is_named(name: str, changes: dict[str, Any], variable: str) -> None:
    """Building a service that requires a setting which is not set names its variable."""
    container = Container(settings=Settings(**changes))

    with pytest.raises(SettingsError, match=rf"^{variable}: must be set"):
        container.providers[name]()


def test_adapter_can_be_replaced() -> None:
    """A replaced adapter reaches every use case that is built afterwards; at the end of the
    ``with`` block the chosen adapter is back."""
    container = in_memory()
    generator = FakePictureGenerator()

    with replace(container.generator, generator):
        assert container.generation()._generator is generator
    container.generation.reset()

    assert container.generation()._generator is not generator


def test_samples_are_for_development() -> None:
    """Sample pictures are drawn in development and do not exist in production."""
    in_production = Container(settings=Settings())
    samples = in_memory().samples()

    assert samples is not None
    assert samples("model.png").startswith(b"\x89PNG")
    assert in_production.samples() is None


def test_cards_are_played_in_development() -> None:
    """In production, a picture that looks like a test card is a picture."""
    in_production = Container(settings=Settings(generator=Generator.LOCAL))

    played = [container.generator() for container in (in_memory(), in_production)]

    assert [getattr(generator, "_plays_cards", None) for generator in played] == [True, False]


def test_settings_reach_the_limits_of_input_pictures() -> None:
    """The limits of downloads, uploads and decoding are those of the settings."""
    container = in_memory(
        fetch_seconds=7, fetch_budget_seconds=9, fetch_max_bytes=4_096, fetch_allow_loopback=True,
        picture_processes=3, picture_memory_mb=400, picture_decode_seconds=6, max_uploads=12,
    )  # fmt: skip

    fetcher = container.fetcher()
    assert isinstance(fetcher, InputPictures)
    downloads = owner_of(fetcher._download, HttpPictureFetcher)
    pool = owner_of(fetcher._prepare, PicturePool)._limits
    uploads = container.uploads()._policy

    assert (downloads._limits.total_timeout_seconds, downloads._limits.max_bytes) == (7, 4_096)
    assert downloads._web._allow_loopback
    assert fetcher._limits.seconds == 9
    assert (pool.processes, pool.memory_bytes, pool.seconds) == (3, 400_000_000, 6)
    assert fetcher._max_bytes == 4_096
    assert (uploads.max_per_day, uploads.max_bytes) == (12, 4_096)


def owner_of(method: object, kind: type[T]) -> T:
    """The object whose bound method this is."""
    owner = getattr(method, "__self__", None)
    assert isinstance(owner, kind)
    return owner


def test_settings_reach_the_policies() -> None:
    """Submission, work and recovery follow the settings."""
    container = in_memory(
        submit_seconds=3, max_waiting=4, max_active=5, lease_seconds=9, max_attempts=6,
        attempt_seconds=8, backoff_base_seconds=0.5, backoff_cap_seconds=7, queue_ttl_seconds=11,
        requeue_after_seconds=12, external_worker_timeout_seconds=13,
        picture_lifetime_seconds=14_000, upload_lifetime_seconds=150_000,
    )  # fmt: skip

    submission = container.submission()._policy
    work = container.generation()._policy
    recovery = container.recovery()._policy

    assert (submission.deadline, submission.max_waiting, submission.max_active) == (3 * S, 4, 5)
    assert (work.lease, work.max_attempts, work.attempt_timeout) == (9 * S, 6, 8 * S)
    assert (work.backoff_base, work.backoff_cap) == (S / 2, 7 * S)
    assert (recovery.queue_ttl, recovery.max_attempts, recovery.requeue_after) == (
        11 * S, 6, 12 * S,
    )  # fmt: skip
    assert recovery.external_timeout == 13 * S
    assert recovery.picture_lifetime == 14_000 * S
    assert recovery.upload_lifetime == 150_000 * S


def test_settings_reach_the_provider() -> None:
    """Address, options, prices, limits and key of the image API; the key is in no ``repr``."""
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
    assert generator._client._api_key == "sk-1"
    assert "sk-1" not in f"{generator!r} {container.settings()!r}"
    assert generator._options == {
        "model": "gpt-image-2", "size": "1024x1536", "quality": "high", "output_format": "webp"
    }  # fmt: skip
    assert generator._prices == Prices(
        input_usd_per_million=Decimal("0.1"), output_usd_per_million=Decimal("9999.999999")
    )
    assert generator._limits == ProviderLimits(connect_seconds=1, answer_seconds=2, total_seconds=3)


def test_settings_reach_replicate() -> None:
    """The price of a picture, which is unknown unless it is set."""
    unpriced = policies.replicate(in_memory(replicate_api_token="r8_1").settings())
    priced = in_memory(replicate_api_token="r8_1", replicate_usd_per_picture="0.039").settings()

    assert unpriced["usd_per_picture"] is None
    assert policies.replicate(priced)["usd_per_picture"] == Decimal("0.039")


@pytest.mark.parametrize(("fallback", "share"), [(7, 7), (500, 120)])
def test_settings_reach_the_start_limit(fallback: int, share: int) -> None:
    """The shared pace, and the pace of each process while Redis is unavailable, which is never
    higher."""
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
    assert build_worker(container, concurrency=1, recovery=False).start_limit is limit


def test_budget_reaches_the_worker() -> None:
    """One that runs once reports only to learn what is left of it."""
    unbound, bound = in_memory(), in_memory(provider_budget_usd="50.5")
    once = [
        build_worker(container, concurrency=1, recovery=False, once=True)
        for container in (unbound, bound)
    ]
    worker = build_worker(bound, concurrency=1, recovery=False)

    assert unbound.budget() is None
    budget = bound.budget()
    assert budget is not None
    assert "budget of $50.50 " in str(budget.cause)
    assert worker._tasks._budget is budget
    assert [each._reports is not None for each in once] == [False, True]


@pytest.mark.anyio
async def test_pause_in_memory_is_seen_by_workers_and_operators() -> None:
    """The answer to a worker's report names the pause, and the snapshot has both."""
    container = in_memory()
    operator, me = Operator(actor="cli:alice", reason="an update"), uuid4()

    await container.pauses().pause(Switch.WORKERS, by=operator)

    controls = await container.repositories().workers.report(a_worker_state(me))
    snapshot = await container.operator_reads().snapshot()
    assert controls.paused is not None
    assert controls.paused.reason == "an update"
    assert list(snapshot.pauses) == [controls.paused]
    assert [worker.id for worker in snapshot.workers] == [me]


def test_only_a_paid_generator_has_a_start_limit() -> None:
    """The local generator has none. In a single process the limit is kept in its memory."""
    openai = {"generator": Generator.OPENAI, "openai_api_key": SECRET, "provider_per_minute": 40}

    limit = in_memory(**openai).start_limit()

    assert in_memory().start_limit() is None
    assert isinstance(limit, InMemoryStartLimit)
    assert limit._pace == Pace.of(40)


def test_settings_reach_the_provider_of_jobs() -> None:
    """Address, model, limits and token of Replicate; the token is in no ``repr``. Results may come
    from this machine only if input pictures may."""
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
    results = owner_of(jobs._download, HttpPictureFetcher)
    assert generator._limits == JobLimits(
        total_seconds=33, first_pause_seconds=0.2, longest_pause_seconds=0.2
    )
    assert (str(jobs._root), jobs._client._api_key) == ("https://gateway.example/v1", "r8_1")
    assert "r8_1" not in f"{generator!r} {jobs!r} {container.settings()!r}"
    assert jobs._model == ReplicateModel(name="google/nano-banana-2", image_field="images")
    assert jobs._deadline == 33
    assert (results._limits, results._web._allow_loopback) == (RESULT_LIMITS, True)


@pytest.mark.anyio
async def test_only_built_services_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing builds nothing, so a command that needs only the database runs without a Redis URL.
    Built services are closed once, in reverse order."""
    closed: list[object] = []

    async def record(adapter: object) -> None:
        closed.append(adapter)

    for kind in (Database, RedisTaskQueue, OpenAiPictureGenerator, PicturePool, HttpPictureFetcher):
        monkeypatch.setattr(kind, "close", record)
    container = Container(
        settings=Settings(
            database_url="postgresql://127.0.0.1:1/nothing",
            signing_secret=SECRET,
            generator=Generator.OPENAI,
            openai_api_key="sk-1",
        )
    )
    database, generator, fetcher = container.database(), container.generator(), container.fetcher()

    await close(container)
    await close(container)

    assert isinstance(fetcher, InputPictures)
    downloads = owner_of(fetcher._download, HttpPictureFetcher)
    pool = owner_of(fetcher._prepare, PicturePool)
    assert closed == [downloads, pool, generator, database]
