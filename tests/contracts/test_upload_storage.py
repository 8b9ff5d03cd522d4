"""Every image storage keeps UploadStoragePort's promises, and those that take uploads themselves
keep UploadSinkPort'."""

import asyncio
import urllib.request
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import pytest

from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from domain.credits import Channel, Owner
from domain.errors import NotFound, Refused
from domain.ports import Picture
from domain.uploads import upload_folder
from tests.support.clock import FakeClock
from tests.support.servers import new_bucket

pytestmark = pytest.mark.anyio

LIFETIME = timedelta(minutes=15)
STORE = Owner(channel=Channel.B2B, id="store:1")
MONDAY, TUESDAY, WEDNESDAY = (date(2026, 11, day) for day in (23, 24, 25))
FOLDER = upload_folder(STORE, TUESDAY)
JPEG = Picture(data=b"a jpeg", media_type="image/jpeg")

OwnStorage = LocalPictureStorage | InMemoryPictureStorage
Storage = OwnStorage | S3PictureStorage


@pytest.fixture
def signer() -> UrlSigner:
    return UrlSigner(
        base_url="http://127.0.0.1:8000", secret=b"secret", lifetime=LIFETIME, clock=FakeClock().now
    )


@pytest.fixture
def own_storages(tmp_path: Path, signer: UrlSigner) -> dict[str, OwnStorage]:
    return {
        "local": LocalPictureStorage(tmp_path / "pictures", signer=signer),
        "memory": InMemoryPictureStorage(signer=signer),
    }


@pytest.fixture(params=["local", "memory"])
def own_storage(request: pytest.FixtureRequest, own_storages: dict[str, OwnStorage]) -> OwnStorage:
    return own_storages[request.param]


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, own_storages: dict[str, OwnStorage]) -> Storage:
    if request.param != "s3":
        return own_storages[request.param]
    return S3PictureStorage(
        s3_store(new_bucket(request.getfixturevalue("s3_url"))), url_lifetime=LIFETIME
    )


async def uploaded(storage: Storage, folder: str = FOLDER, data: bytes = b"a jpeg") -> str:
    """The key of a picture that was sent to its upload URL, or handed in where that is ours."""
    prefix = f"{folder}/{uuid4()}"
    links = storage.upload_links(prefix, "image/jpeg", lifetime=LIFETIME)
    if isinstance(storage, S3PictureStorage):
        await asyncio.to_thread(_put, links.upload_url, data)
    else:
        assert await storage.keep_upload(f"{prefix}.jpg", data)
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
    """What was uploaded there; None if nothing was."""
    try:
        return await storage.read_upload(object_key, max_bytes=1_000)
    except Refused:
        return None


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("image/jpeg", ".jpg"), ("image/png", ".png"), ("image/webp", ".webp")],
)
async def test_links_are_of_the_same_object(
    storage: Storage, media_type: str, extension: str
) -> None:
    """Its key has the extension of its type, and the link to read it by is the usual one."""
    links = storage.upload_links(f"{FOLDER}/1", media_type, lifetime=LIFETIME)
    upload, image = urlsplit(links.upload_url), urlsplit(links.image_url)

    assert unquote(upload.path).endswith(f"/{FOLDER}/1{extension}")
    assert unquote(image.path).endswith(f"/{FOLDER}/1{extension}")
    assert (
        links.image_url.partition("?")[0] == storage.url(f"{FOLDER}/1{extension}").partition("?")[0]
    )
    assert (upload.netloc, upload.query) != (image.netloc, image.query)


async def test_what_was_uploaded_can_be_read(storage: Storage) -> None:
    """The bytes, as they came."""
    object_key = await uploaded(storage, data=b"x" * 1_000)

    assert await storage.read_upload(object_key, max_bytes=1_000) == b"x" * 1_000


async def test_what_is_too_large_is_not_read(storage: Storage) -> None:
    """However it came there."""
    object_key = await uploaded(storage, data=b"x" * 1_001)

    with pytest.raises(Refused, match=r"larger than 0\.001 MB") as refusal:
        await storage.read_upload(object_key, max_bytes=1_000)
    assert refusal.value.reason == "INVALID_IMAGE"


async def test_what_is_not_there_is_not_read(storage: Storage) -> None:
    """A link that was never used, or whose picture was deleted."""
    with pytest.raises(Refused, match="not uploaded") as refusal:
        await storage.read_upload(f"{FOLDER}/{uuid4()}.jpg", max_bytes=1_000)
    assert refusal.value.reason == "IMAGE_UNREACHABLE"


async def test_uploads_are_counted(storage: Storage) -> None:
    """Those of one owner and day, to the limit; a folder whose name begins alike is another's."""
    others = upload_folder(Owner(channel=Channel.B2B, id="store:11"), TUESDAY)
    for folder in (FOLDER, FOLDER, FOLDER, others, upload_folder(STORE, MONDAY)):
        await uploaded(storage, folder)

    assert await storage.count_uploads(FOLDER, limit=10) == 3
    assert await storage.count_uploads(FOLDER, limit=2) == 2
    assert await storage.count_uploads(upload_folder(STORE, WEDNESDAY), limit=10) == 0


async def test_old_uploads_are_deleted(storage: Storage) -> None:
    """Those of the days before, of everybody, and nothing else."""
    others = Owner(channel=Channel.B2C, id="u")
    old = [
        await uploaded(storage, upload_folder(owner, day))
        for owner in (STORE, others)
        for day in (MONDAY, TUESDAY)
    ]
    kept = await uploaded(storage, upload_folder(STORE, WEDNESDAY))
    picture = await storage.save("stores/store:1/generated/1", JPEG)

    assert await storage.delete_uploads_before(WEDNESDAY, limit=100) == 4
    assert await storage.delete_uploads_before(WEDNESDAY, limit=100) == 0

    assert [await read(storage, key) for key in old] == [None] * 4
    assert await read(storage, kept) is not None
    assert await storage.find("stores/store:1/generated/1") == picture


async def test_deleting_is_bounded(storage: Storage) -> None:
    """At most so many at once, the oldest day first; the last call is told that it was the last."""
    for day in (TUESDAY, MONDAY, TUESDAY, MONDAY):
        await uploaded(storage, upload_folder(STORE, day))

    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 3
    assert await storage.count_uploads(upload_folder(STORE, MONDAY), limit=10) == 0
    assert await storage.count_uploads(upload_folder(STORE, TUESDAY), limit=10) == 1
    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 1


async def test_nothing_was_ever_uploaded(storage: Storage) -> None:
    """Then there is nothing to delete."""
    assert await storage.delete_uploads_before(WEDNESDAY, limit=3) == 0


async def test_many_processes_delete_at_once(storage: Storage) -> None:
    """They do not get in each other's way, and none is left when all are done."""
    for _ in range(20):
        await uploaded(storage)

    await asyncio.gather(*(storage.delete_uploads_before(WEDNESDAY, limit=100) for _ in range(8)))

    assert await storage.count_uploads(FOLDER, limit=100) == 0


async def test_an_upload_is_never_replaced(own_storage: OwnStorage) -> None:
    """Of any number at once one is kept, whole, and the others are told that they were not."""
    key = f"{FOLDER}/1.jpg"
    pictures = [bytes([number]) * 1_000 for number in range(8)]

    kept = await asyncio.gather(*(own_storage.keep_upload(key, data) for data in pictures))

    assert kept.count(True) == 1
    assert await own_storage.read_upload(key, max_bytes=1_000) == pictures[kept.index(True)]


async def test_the_link_to_read_by(own_storage: OwnStorage) -> None:
    """Leads to what was uploaded, with the type of its key."""
    key = await uploaded(own_storage)

    found = await own_storage.read_signed(**parts_of(own_storage.url(key), path="/files/"))

    assert found == JPEG


async def test_links_are_for_one_thing(own_storage: OwnStorage, signer: UrlSigner) -> None:
    """The link to read by lets nobody write, and the link to write by lets nobody read."""
    key = await uploaded(own_storage)
    links = own_storage.upload_links(key.removesuffix(".jpg"), "image/jpeg", lifetime=LIFETIME)
    writing = parts_of(links.upload_url, path="/")
    reading = parts_of(links.image_url, path="/files/")
    assert writing["object_key"] == reading["object_key"] == key
    assert writing["expires"] == reading["expires"]

    signer.check_upload(**writing)
    with pytest.raises(NotFound):
        signer.check_upload(**reading)
    with pytest.raises(NotFound):
        await own_storage.read_signed(**writing)
    with pytest.raises(NotFound):
        await own_storage.read_signed(**writing | {"object_key": f"PUT\n{key}"})
