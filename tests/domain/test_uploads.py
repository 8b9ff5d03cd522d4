"""Uploads: folders, offers, quotas, and the order of an upload's checks."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from adapters.storage.memory import InMemoryPictureStorage
from domain.credits import Owner
from domain.errors import Conflict, InvalidInput, NotFound, Overloaded, Refused, TooManyUploads
from domain.ports import Picture, UploadSinkPort
from domain.uploads import UploadPolicy, UploadReceiver, Uploads, is_upload_of, upload_folder
from tests.support.examples import OTHER, STORE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio

ID = UUID("01a20f3c-9fdc-756e-a2e8-4b6c69b0c376")
NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
FOLDER = upload_folder(STORE, NOON.date())
KEY = f"{FOLDER}/{ID}.jpg"
JPEG = b"a jpeg"


@pytest.fixture
def storage() -> InMemoryPictureStorage:
    return Service().storage


def uploads(
    storage: InMemoryPictureStorage, *, max_per_day: int = 2, now: datetime = NOON
) -> Uploads:
    policy = UploadPolicy(
        max_per_day=max_per_day, max_bytes=1_234, send_within=timedelta(minutes=5)
    )
    return Uploads(storage=storage, policy=policy, new_id=lambda: ID, clock=lambda: now)


@pytest.mark.parametrize("owner", [STORE, USER], ids=str)
def test_folder_names_the_owner_and_the_day(owner: Owner) -> None:
    """So an upload's key tells whose it is and how old."""
    folder = upload_folder(owner, date(2026, 1, 2))

    assert folder == f"uploads/2026-01-02/{owner.channel}/{owner.id}"
    assert is_upload_of(owner, f"{folder}/{ID}.jpg")
    assert not is_upload_of(OTHER, f"{folder}/{ID}.jpg")


async def test_offer(storage: InMemoryPictureStorage) -> None:
    """Links of a new object in the owner's folder of today, with expiry and size limit."""
    offer = await uploads(storage, now=NOON.replace(microsecond=999_999)).offer(STORE, "image/webp")

    key = f"uploads/2026-11-24/b2b/{STORE.id}/{ID}.webp"
    assert f"/{key}?" in offer.links.upload_url
    assert offer.links.image_url == storage.url(key)
    assert (offer.expires_at, offer.max_bytes) == (NOON + timedelta(minutes=5), 1_234)


async def test_quota_is_per_owner_and_day(storage: InMemoryPictureStorage) -> None:
    """``TooManyUploads`` with the seconds until the next day (UTC). Other owners and days have
    quotas of their own."""
    for number in range(2):
        await storage.keep_upload(f"{FOLDER}/{number}.jpg", b"")

    with pytest.raises(TooManyUploads, match="limit of 2 uploads") as rejection:
        await uploads(storage).offer(STORE, "image/jpeg")

    assert rejection.value.retry_after_seconds == 12 * 3_600 - 30
    await uploads(storage).offer(USER, "image/jpeg")
    await uploads(storage, max_per_day=3).offer(STORE, "image/jpeg")
    await uploads(storage, now=NOON + timedelta(hours=12)).offer(STORE, "image/jpeg")


class Sink(UploadSinkPort):
    """A storage without signatures: ``valid`` says whether a link is one."""

    def __init__(self, *, valid: bool = True) -> None:
        self.valid = valid
        self.kept: dict[str, bytes] = {}

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:
        assert (object_key, expires, signature) == (KEY, 9, "s")
        if not self.valid:
            raise NotFound("No such picture")

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        if object_key in self.kept:
            return False
        self.kept[object_key] = data
        return True


class Checks:
    """Records the checks of an upload; ``quota`` and ``picture`` fail with their error."""

    def __init__(self, sink: Sink, *, max_in_flight: int = 2) -> None:
        self.calls: list[str] = []
        self.quota: Exception | None = None
        self.picture: Exception | Picture = Picture(data=JPEG, media_type="image/jpeg")
        self.receiver = UploadReceiver(
            sink=sink,
            check_quota=self._check_quota,
            inspect=self._inspect,
            max_in_flight=max_in_flight,
        )

    async def receive(self, body: Callable[[], Awaitable[bytes]] | None = None) -> Picture:
        return await self.receiver.receive(KEY, expires=9, signature="s", body=body or self._body)

    async def _check_quota(self, folder: str) -> None:
        assert folder == FOLDER
        self.calls.append("quota")
        if self.quota is not None:
            raise self.quota

    async def _body(self) -> bytes:
        self.calls.append("body")
        return JPEG

    async def _inspect(self, data: bytes) -> Picture:
        assert data == JPEG
        self.calls.append("inspect")
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


async def test_received_picture_is_kept() -> None:
    """After the link, the quota and the picture have been checked, in this order."""
    checks = Checks(sink := Sink())

    picture = await checks.receive()

    assert picture == Picture(data=JPEG, media_type="image/jpeg")
    assert checks.calls == ["quota", "body", "inspect"]
    assert sink.kept == {KEY: JPEG}


async def test_invalid_link_is_rejected_first() -> None:
    """The body of an unknown caller is not read."""
    checks = Checks(sink := Sink(valid=False))

    with pytest.raises(NotFound):
        await checks.receive()

    assert (checks.calls, sink.kept) == ([], {})


async def test_used_up_quota_is_rejected_before_the_body() -> None:
    """The link was issued while there was quota left."""
    checks = Checks(sink := Sink())
    checks.quota = TooManyUploads("enough", retry_after_seconds=1)

    with pytest.raises(TooManyUploads):
        await checks.receive()

    assert (checks.calls, sink.kept) == (["quota"], {})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Refused("A picture is damaged"), "body: A picture is damaged"),
        (
            Picture(data=JPEG, media_type="image/png"),
            "body: is image/png, not image/jpeg as announced",
        ),
    ],
    ids=["damaged", "another type"],
)
async def test_invalid_picture_is_not_kept(found: Exception | Picture, message: str) -> None:
    """``InvalidInput`` with the reason."""
    checks = Checks(sink := Sink())
    checks.picture = found

    with pytest.raises(InvalidInput) as rejection:
        await checks.receive()

    assert str(rejection.value) == message
    assert sink.kept == {}


async def test_second_upload_to_a_link_conflicts() -> None:
    """The first picture stays."""
    checks = Checks(sink := Sink())
    sink.kept[KEY] = b"first"

    with pytest.raises(Conflict):
        await checks.receive()

    assert sink.kept == {KEY: b"first"}


@pytest.mark.parametrize("outcome", ["kept", "failed", "cancelled"])
async def test_uploads_in_flight_are_bounded(outcome: str) -> None:
    """``Overloaded`` above the bound, before the body is read, until one of them has ended."""
    checks = Checks(Sink(), max_in_flight=1)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow_body() -> bytes:
        started.set()
        await go_on.wait()
        if outcome == "failed":
            raise InvalidInput("body", "did not arrive in time")
        return JPEG

    first = asyncio.create_task(checks.receive(slow_body))
    await started.wait()
    with pytest.raises(Overloaded):
        await checks.receive()
    calls = list(checks.calls)
    first.cancel() if outcome == "cancelled" else go_on.set()
    await asyncio.gather(first, return_exceptions=True)

    assert calls == ["quota"]
    if outcome == "kept":
        with pytest.raises(Conflict):
            await checks.receive()
    else:
        assert (await checks.receive()).data == JPEG
