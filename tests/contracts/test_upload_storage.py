"""UploadStoragePort on every picture storage, and UploadSinkPort on those whose uploads pass
through our API."""

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import pytest

from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3Bucket, S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from domain.credits import Channel, Owner
from domain.errors import NotFound, Refused
from domain.picture_ports import Picture
from domain.uploads import shopper_folder, upload_folder, upload_path
from tests.support.clock import FakeClock
from tests.support.servers import new_bucket

pytestmark = pytest.mark.anyio

LIFETIME = timedelta(minutes=15)
SECOND = timedelta(seconds=1)
STORE = Owner(channel=Channel.B2B, id="store:1")
USER = Owner(channel=Channel.B2C, id="u")
MONDAY, TUESDAY, WEDNESDAY = (datetime(2026, 11, day, 12, tzinfo=UTC) for day in (23, 24, 25))
"""Noon of each."""
FOLDER = upload_folder(STORE, TUESDAY.date())
JPEG = Picture(data=b"a jpeg", media_type="image/jpeg")

OwnStorage = LocalPictureStorage | InMemoryPictureStorage
Storage = OwnStorage | S3PictureStorage
Upload = Callable[..., Awaitable[str]]
"""``(folder, *, data, at)``: upload a picture that is then stored since ``at``; returns its key."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def own_storages(tmp_path: Path, clock: FakeClock) -> dict[str, OwnStorage]:
    signer = UrlSigner(
        base_url="http://127.0.0.1:8000", secret=b"secret", lifetime=LIFETIME, clock=clock.now
    )
    return {
        "local": LocalPictureStorage(tmp_path / "pictures", signer=signer),
        "memory": InMemoryPictureStorage(signer=signer),
    }


@pytest.fixture(params=["local", "memory"])
def own_storage(request: pytest.FixtureRequest, own_storages: dict[str, OwnStorage]) -> OwnStorage:
    return own_storages[request.param]


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> S3Bucket:
    return new_bucket(request.getfixturevalue("s3_url"))


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, own_storages: dict[str, OwnStorage]) -> Storage:
    if request.param != "s3":
        return own_storages[request.param]
    return S3PictureStorage(s3_store(request.getfixturevalue("bucket")), url_lifetime=LIFETIME)


@pytest.fixture
def upload(request: pytest.FixtureRequest, storage: Storage, clock: FakeClock) -> Upload:
    async def upload(
        folder: str = FOLDER, *, data: bytes = b"a jpeg", at: datetime = TUESDAY
    ) -> str:
        if isinstance(storage, S3PictureStorage):
            return await uploaded_to_s3(
                storage, request.getfixturevalue("bucket"), folder, data, at
            )
        clock.advance(at - clock.now())
        key = f"{folder}/{uuid4()}.jpg"
        assert await storage.keep_upload(key, data)
        if isinstance(storage, LocalPictureStorage):
            os.utime(storage.path_of(key), (at.timestamp(), at.timestamp()))
        return key

    return upload


async def uploaded_to_s3(
    storage: S3PictureStorage, bucket: S3Bucket, folder: str, data: bytes, at: datetime
) -> str:
    from moto.s3.models import s3_backends  # noqa: PLC0415 - importing it takes a second

    prefix = f"{folder}/{uuid4()}"
    links = storage.upload_links(prefix, "image/jpeg", lifetime=LIFETIME)
    await asyncio.to_thread(_put, links.upload_url, data)
    service: Any = s3_backends["123456789012"]["aws"]
    service.buckets[bucket.name].keys[f"{prefix}.jpg"].last_modified = at.replace(tzinfo=None)
    return f"{prefix}.jpg"


def _put(url: str, data: bytes) -> None:
    headers = {"Content-Type": "image/jpeg"}
    urllib.request.urlopen(urllib.request.Request(url, data, headers=headers, method="PUT")).close()


def parts_of(url: str, *, path: str) -> dict[str, Any]:
    """What the HTTP route reads out of a signed URL below ``path``."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    assert parts.path.startswith(path)
    return {
        "object_key": unquote(parts.path.removeprefix(path)),
        "expires": int(query["expires"][0]),
        "signature": query["signature"][0],
    }


async def read(storage: Storage, object_key: str) -> bytes | None:
    """The uploaded bytes; None if there are none."""
    try:
        return await storage.read_upload(object_key, max_bytes=1_000)
    except Refused:
        return None


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("image/jpeg", ".jpg"), ("image/png", ".png"), ("image/webp", ".webp")],
)
async def test_both_links_are_of_the_same_object(
    storage: Storage, media_type: str, extension: str
) -> None:
    """Its key has the extension of its type, and the read link is that of any picture."""
    links = storage.upload_links(f"{FOLDER}/1", media_type, lifetime=LIFETIME)
    upload, image = urlsplit(links.upload_url), urlsplit(links.image_url)

    assert unquote(upload.path).endswith(f"/{FOLDER}/1{extension}")
    assert unquote(image.path).endswith(f"/{FOLDER}/1{extension}")
    assert (
        links.image_url.partition("?")[0] == storage.url(f"{FOLDER}/1{extension}").partition("?")[0]
    )
    assert (upload.netloc, upload.query) != (image.netloc, image.query)


async def test_upload_is_read_back(storage: Storage, upload: Upload) -> None:
    """Byte for byte."""
    object_key = await upload(data=b"x" * 1_000)

    assert await storage.read_upload(object_key, max_bytes=1_000) == b"x" * 1_000


async def test_upload_above_the_size_limit_is_refused(storage: Storage, upload: Upload) -> None:
    """When it is read, whatever let it through before."""
    object_key = await upload(data=b"x" * 1_001)

    with pytest.raises(Refused, match=r"larger than 0\.001 MB") as refusal:
        await storage.read_upload(object_key, max_bytes=1_000)
    assert refusal.value.reason == "INVALID_IMAGE"


async def test_missing_upload_is_refused(storage: Storage) -> None:
    """A link that was never used, or whose picture was deleted."""
    with pytest.raises(Refused, match="not uploaded") as refusal:
        await storage.read_upload(f"{FOLDER}/{uuid4()}.jpg", max_bytes=1_000)
    assert refusal.value.reason == "IMAGE_UNREACHABLE"


async def test_uploads_are_counted_by_folder(storage: Storage, upload: Upload) -> None:
    """Those of one owner and day, up to the limit. A folder's name is matched as a whole."""
    others = upload_folder(Owner(channel=Channel.B2B, id="store:11"), TUESDAY.date())
    for folder in (FOLDER, FOLDER, FOLDER, others, upload_folder(STORE, MONDAY.date())):
        await upload(folder)

    assert await storage.count_uploads(FOLDER, limit=10) == 3
    assert await storage.count_uploads(FOLDER, limit=2) == 2
    assert await storage.count_uploads(upload_folder(STORE, WEDNESDAY.date()), limit=10) == 0


async def test_uploads_of_shoppers_are_their_store_s(storage: Storage, upload: Upload) -> None:
    """They count for both, and are deleted like others."""
    anna = await upload(shopper_folder(FOLDER, "anna"), at=MONDAY)
    await upload(shopper_folder(FOLDER, "ben"), at=MONDAY)
    await upload(FOLDER, at=WEDNESDAY)

    assert await storage.count_uploads(FOLDER, limit=10) == 3
    assert await storage.count_uploads(shopper_folder(FOLDER, "anna"), limit=10) == 1
    assert await read(storage, anna) is not None
    assert await storage.delete_uploads_before(WEDNESDAY, limit=10) == 2
    assert await storage.count_uploads(FOLDER, limit=10) == 1


async def test_uploads_stored_before_a_moment_are_deleted(storage: Storage, upload: Upload) -> None:
    """To the second, within a day too, of all owners; an upload stored at that moment stays, and so
    do pictures that are no uploads."""
    old = [
        await upload(upload_folder(owner, at.date()), at=at)
        for owner in (STORE, USER)
        for at in (MONDAY, TUESDAY - timedelta(hours=6), TUESDAY - SECOND)
    ]
    kept = [
        await upload(upload_folder(owner, at.date()), at=at)
        for owner in (STORE, USER)
        for at in (TUESDAY, TUESDAY + SECOND, WEDNESDAY)
    ]
    picture = await storage.save("stores/store:1/generated/1", JPEG)

    assert await storage.delete_uploads_before(TUESDAY, limit=100) == 6
    assert await storage.delete_uploads_before(TUESDAY, limit=100) == 0

    assert [await read(storage, key) for key in old] == [None] * 6
    assert None not in [await read(storage, key) for key in kept]
    assert await storage.find("stores/store:1/generated/1") == picture


async def test_upload_that_was_sent_after_midnight_has_its_full_lifetime(
    storage: Storage, upload: Upload
) -> None:
    """Its folder is of the day before, when its link was issued; its age counts from arrival."""
    midnight = datetime(2026, 11, 24, tzinfo=UTC)
    key = await upload(upload_folder(STORE, MONDAY.date()), at=midnight + timedelta(minutes=10))

    assert await storage.delete_uploads_before(midnight, limit=100) == 0
    assert await read(storage, key) is not None
    assert await storage.delete_uploads_before(midnight + timedelta(minutes=11), limit=100) == 1


async def test_deletion_of_uploads_is_bounded(storage: Storage, upload: Upload) -> None:
    """At most ``limit``, oldest day first; a call that finds fewer was the last one."""
    for at in (TUESDAY, MONDAY, TUESDAY, MONDAY):
        await upload(upload_folder(STORE, at.date()), at=at)

    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 3
    assert await storage.count_uploads(upload_folder(STORE, MONDAY.date()), limit=10) == 0
    assert await storage.count_uploads(FOLDER, limit=10) == 1
    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 1


async def test_deletion_from_an_empty_storage(storage: Storage) -> None:
    """0, also before the first upload."""
    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 0


async def test_concurrent_deletions(storage: Storage, upload: Upload) -> None:
    """They do not fail each other, and delete everything between them."""
    for _ in range(20):
        await upload()

    await asyncio.gather(*(storage.delete_uploads_before(WEDNESDAY, limit=100) for _ in range(8)))

    assert await storage.count_uploads(FOLDER, limit=100) == 0


async def test_upload_is_never_replaced(own_storage: OwnStorage) -> None:
    """Of concurrent uploads to one key, one is kept, whole, and the others are told so."""
    key = f"{FOLDER}/1.jpg"
    pictures = [bytes([number]) * 1_000 for number in range(8)]

    kept = await asyncio.gather(*(own_storage.keep_upload(key, data) for data in pictures))

    assert kept.count(True) == 1
    assert await own_storage.read_upload(key, max_bytes=1_000) == pictures[kept.index(True)]


async def test_same_bytes_again_are_no_conflict(own_storage: OwnStorage) -> None:
    """The first answer may have been lost."""
    key = f"{FOLDER}/1.jpg"

    assert await own_storage.keep_upload(key, JPEG.data)
    assert await own_storage.keep_upload(key, JPEG.data)
    assert not await own_storage.keep_upload(key, JPEG.data + b".")

    assert await own_storage.read_upload(key, max_bytes=1_000) == JPEG.data


async def test_pieces_are_kept_whole(own_storage: OwnStorage) -> None:
    """In their order, and as few or many as they are."""
    key = f"{FOLDER}/1.jpg"
    pieces = [b"a" * 300_000, b"", b"b", b"c" * 700_000]

    assert await own_storage.keep_pieces(key, arriving(*pieces))

    assert await own_storage.read_upload(key, max_bytes=2_000_000) == b"".join(pieces)
    assert await own_storage.count_uploads(FOLDER, limit=10) == 1


async def test_nothing_is_kept_of_pieces_that_fail(own_storage: OwnStorage, tmp_path: Path) -> None:
    """The error is passed on, also an OSError, and the key is free again."""
    key = f"{FOLDER}/1.jpg"

    with pytest.raises(ConnectionError):
        await own_storage.keep_pieces(key, arriving(b"a" * 300_000, ConnectionError("gone")))

    assert await own_storage.count_uploads(FOLDER, limit=10) == 0
    left = await asyncio.to_thread(lambda: [*tmp_path.rglob(f"{key.rpartition('/')[2]}*")])
    assert left == []
    assert await own_storage.keep_upload(key, JPEG.data)


async def test_used_up_link_counts_and_has_no_picture(own_storage: OwnStorage) -> None:
    """No data at all marks it."""
    key, other = f"{FOLDER}/1.jpg", f"{FOLDER}/2.jpg"
    assert not await own_storage.is_used_up(key)

    assert await own_storage.keep_upload(key, b"")
    assert await own_storage.keep_upload(other, JPEG.data)

    assert (await own_storage.is_used_up(key), await own_storage.is_used_up(other)) == (True, False)
    assert not await own_storage.keep_upload(key, JPEG.data)
    assert await own_storage.count_uploads(FOLDER, limit=10) == 2
    with pytest.raises(Refused, match="not uploaded"):
        await own_storage.read_upload(key, max_bytes=1_000)
    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts_of(own_storage.url(key), path="/files/"))


async def arriving(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_read_link_serves_the_upload(own_storage: OwnStorage) -> None:
    """With the media type of its key."""
    key = f"{FOLDER}/1.jpg"
    await own_storage.keep_upload(key, JPEG.data)

    found = await own_storage.read_signed(**parts_of(own_storage.url(key), path="/files/"))

    assert found == JPEG


async def test_read_and_upload_links_are_not_interchangeable(own_storage: OwnStorage) -> None:
    """They are signed separately."""
    key = f"{FOLDER}/1.jpg"
    await own_storage.keep_upload(key, JPEG.data)
    links = own_storage.upload_links(key.removesuffix(".jpg"), "image/jpeg", lifetime=LIFETIME)
    writing = parts_of(links.upload_url, path="/")
    reading = parts_of(links.image_url, path="/files/")
    assert writing["object_key"] == reading["object_key"] == key
    assert writing["expires"] == reading["expires"]

    own_storage.check_upload_link(**writing)
    with pytest.raises(NotFound):
        own_storage.check_upload_link(**reading)
    with pytest.raises(NotFound):
        await own_storage.read_signed(**writing)
    with pytest.raises(NotFound):
        await own_storage.read_signed(**writing | {"object_key": f"PUT\n{key}"})


async def test_upload_link_expires(own_storage: OwnStorage, clock: FakeClock) -> None:
    """After its lifetime, to the second; nor can its expiry be changed."""
    links = own_storage.upload_links(f"{FOLDER}/1", "image/jpeg", lifetime=LIFETIME)
    link = parts_of(links.upload_url, path="/")

    clock.advance(LIFETIME - SECOND)
    own_storage.check_upload_link(**link)
    clock.advance(SECOND)

    with pytest.raises(NotFound):
        own_storage.check_upload_link(**link)
    with pytest.raises(NotFound):
        own_storage.check_upload_link(**link | {"expires": link["expires"] + 60})


async def test_uploads_are_deleted_by_their_keys(storage: Storage, upload: Upload) -> None:
    """These and no others; a missing one counts as deleted."""
    mine, other = await upload(), await upload()
    missing = f"{FOLDER}/{uuid4()}.jpg"

    for keys in ([mine, missing], [mine], []):
        await storage.delete_uploads(keys)

    assert (await read(storage, mine), await read(storage, other)) == (None, b"a jpeg")


async def test_all_uploads_of_an_owner_are_deleted(storage: Storage, upload: Upload) -> None:
    """Of all days, up to the limit in each call. Other owners keep theirs: a namesake of the other
    channel, and one whose id begins alike."""
    others = [
        Owner(channel=Channel.B2B, id="store:11"),
        Owner(channel=Channel.B2C, id=STORE.id),
        USER,
    ]
    for day in (MONDAY, TUESDAY, WEDNESDAY):
        await upload(upload_folder(STORE, day.date()), at=day)
    kept = [await upload(upload_folder(other, TUESDAY.date())) for other in others]

    counts = [await storage.delete_uploads_below(upload_path(STORE), limit=2) for _ in range(3)]

    assert counts == [2, 1, 0]
    assert [await read(storage, key) for key in kept] == [b"a jpeg"] * 3
    for day in (MONDAY, TUESDAY, WEDNESDAY):
        assert await storage.count_uploads(upload_folder(STORE, day.date()), limit=9) == 0


async def test_there_may_be_no_uploads_at_all(storage: Storage) -> None:
    """Not even their folder."""
    assert await storage.delete_uploads_below(upload_path(STORE), limit=9) == 0
