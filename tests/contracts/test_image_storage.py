"""PictureStoragePort on every picture storage, and SignedReadPort on those that serve their own
pictures."""

import asyncio
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from domain.errors import NotFound
from domain.picture_ports import Picture
from tests.support.clock import FakeClock
from tests.support.servers import new_bucket

pytestmark = pytest.mark.anyio

LIFETIME = timedelta(minutes=15)
PREFIX = "stores/store:1/generated/7c9e6679"
JPEG = Picture(data=b"a jpeg", media_type="image/jpeg")
PNG = Picture(data=b"a png", media_type="image/png")
WEBP = Picture(data=b"a webp", media_type="image/webp")

OwnStorage = LocalPictureStorage | InMemoryPictureStorage
"""Storage that serves its own pictures."""
Storage = OwnStorage | S3PictureStorage


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def own(kind: str, folder: Path, clock: FakeClock) -> OwnStorage:
    signer = UrlSigner(
        base_url="http://127.0.0.1:8000", secret=b"secret", lifetime=LIFETIME, clock=clock.now
    )
    if kind == "local":
        return LocalPictureStorage(folder / "pictures", signer=signer)
    return InMemoryPictureStorage(signer=signer)


@pytest.fixture(params=["local", "memory"])
def own_storage(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OwnStorage:
    return own(request.param, tmp_path, clock)


@pytest.fixture(params=["local", "memory", "s3", "s3 without conditional uploads"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Storage:
    if not request.param.startswith("s3"):
        return own(request.param, tmp_path, clock)
    return S3PictureStorage(
        s3_store(new_bucket(request.getfixturevalue("s3_url"))),
        url_lifetime=LIFETIME,
        conditional_put=request.param == "s3",
    )


def parts_of(url: str) -> dict[str, Any]:
    """The parts of a signed URL that the HTTP route reads."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    return {
        "object_key": unquote(parts.path.removeprefix("/files/")),
        "expires": int(query["expires"][0]),
        "signature": query["signature"][0],
    }


async def read(storage: Storage, object_key: str) -> Picture:
    """The picture behind its URL, as a client gets it."""
    url = storage.url(object_key)
    if isinstance(storage, OwnStorage):
        return await storage.read_signed(**parts_of(url))
    return await asyncio.to_thread(_followed, url)


def _followed(url: str) -> Picture:
    with urllib.request.urlopen(url) as response:
        return Picture(data=response.read(), media_type=response.headers["Content-Type"])


async def test_missing_picture_is_not_found(storage: Storage) -> None:
    """``find`` returns None."""
    assert await storage.find(PREFIX) is None


@pytest.mark.parametrize(("picture", "extension"), [(JPEG, ".jpg"), (PNG, ".png"), (WEBP, ".webp")])
async def test_saved_picture_is_found(storage: Storage, picture: Picture, extension: str) -> None:
    """Under its prefix plus the extension of its type, with that type."""
    saved = await storage.save(PREFIX, picture)

    assert saved.object_key == PREFIX + extension
    assert saved.media_type == picture.media_type
    assert await storage.find(PREFIX) == saved
    assert await read(storage, saved.object_key) == picture


async def test_prefix_is_matched_as_a_whole(storage: Storage) -> None:
    """A key is the prefix plus an extension, and nothing in between."""
    await storage.save(PREFIX + "1", JPEG)

    assert await storage.find(PREFIX) is None


@pytest.mark.parametrize("first", [JPEG, WEBP])
@pytest.mark.parametrize("second", [Picture(data=b"late", media_type="image/jpeg"), PNG])
async def test_first_picture_stays(storage: Storage, first: Picture, second: Picture) -> None:
    """A later ``save`` returns it, even if the new picture has another type."""
    saved = await storage.save(PREFIX, first)

    again = await storage.save(PREFIX, second)

    assert again == saved
    assert await storage.find(PREFIX) == saved
    assert await read(storage, saved.object_key) == first


async def test_one_of_several_concurrent_writers_wins(storage: Storage) -> None:
    """One whole picture is kept, and every ``save`` returns its key."""
    pictures = [
        Picture(data=bytes([number]) * 1_000_000, media_type="image/jpeg") for number in range(8)
    ]

    saved = await asyncio.gather(*(storage.save(PREFIX, picture) for picture in pictures))

    assert len(set(saved)) == 1
    assert await read(storage, saved[0].object_key) in pictures


@pytest.mark.parametrize("picture", [JPEG, PNG, WEBP])
async def test_deleted_picture_is_gone(storage: Storage, picture: Picture) -> None:
    """Whatever its type, and its link stops working. Deleting a missing picture is no error, and a
    new picture may be saved."""
    saved = await storage.save(PREFIX, picture)

    for _ in range(2):
        await storage.delete(PREFIX)

    assert await storage.find(PREFIX) is None
    with pytest.raises((NotFound, HTTPError)):
        await read(storage, saved.object_key)
    assert await storage.save(PREFIX, JPEG) == await storage.find(PREFIX)


async def test_delete_matches_the_prefix_as_a_whole(storage: Storage) -> None:
    """A picture whose key only begins with the prefix stays."""
    others = [await storage.save(prefix, JPEG) for prefix in (PREFIX + "1", PREFIX + "/1")]

    await storage.delete(PREFIX)

    assert [await storage.find(prefix) for prefix in (PREFIX + "1", PREFIX + "/1")] == others


async def test_concurrent_deletions(storage: Storage) -> None:
    """They do not fail each other: recovery runs in many processes."""
    await storage.save(PREFIX, JPEG)

    await asyncio.gather(*(storage.delete(PREFIX) for _ in range(8)))

    assert await storage.find(PREFIX) is None


async def test_url_is_signed(own_storage: OwnStorage, clock: FakeClock) -> None:
    """``{base_url}/files/{key}``, quoted, with its expiry and an HMAC-SHA256."""
    url = urlsplit(own_storage.url("stores/store:1/a.jpg"))
    query = parse_qs(url.query)

    assert f"{url.scheme}://{url.netloc}{url.path}" == (
        "http://127.0.0.1:8000/files/stores/store%3A1/a.jpg"
    )
    assert query["expires"] == [str(int((clock.now() + LIFETIME).timestamp()))]
    assert len(bytes.fromhex(query["signature"][0])) == 32


async def test_url_expires(own_storage: OwnStorage, clock: FakeClock) -> None:
    """It serves the picture until then, to the second."""
    saved = await own_storage.save(PREFIX, JPEG)
    parts = parts_of(own_storage.url(saved.object_key))

    clock.advance(LIFETIME - timedelta(seconds=1))
    assert await own_storage.read_signed(**parts) == JPEG

    clock.advance(timedelta(seconds=1))
    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts)


@pytest.mark.parametrize(
    "change",
    [
        {"object_key": "stores/store:1/generated/another.jpg"},
        {"object_key": "stores/\udc80.jpg"},
        {"expires": 4_102_444_800},
        {"expires": 2**70},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "\u0130\udc80"},
    ],
    ids=ascii,
)
async def test_changed_url_is_rejected(own_storage: OwnStorage, change: dict[str, Any]) -> None:
    """Whichever part was changed, even if the new key has a picture."""
    saved = await own_storage.save(PREFIX, JPEG)
    await own_storage.save("stores/store:1/generated/another", JPEG)
    parts = parts_of(own_storage.url(saved.object_key))

    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts | change)


async def test_url_may_live_shorter(own_storage: OwnStorage, clock: FakeClock) -> None:
    """Than those of callers."""
    saved = await own_storage.save(PREFIX, JPEG)
    parts = parts_of(own_storage.url(saved.object_key, lifetime=LIFETIME / 4))
    clock.advance(LIFETIME / 8)
    await own_storage.read_signed(**parts)
    clock.advance(LIFETIME / 8)

    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts)


async def test_url_signed_with_another_secret_is_rejected(
    own_storage: OwnStorage, clock: FakeClock
) -> None:
    """The secret decides, not the format."""
    saved = await own_storage.save(PREFIX, JPEG)
    forger = UrlSigner(base_url="", secret=b"guessed", lifetime=LIFETIME, clock=clock.now)

    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts_of(forger.url(saved.object_key)))


@pytest.mark.parametrize(
    "object_key",
    [
        "stores/none.jpg",
        "stores",
        "",
        "../secret.jpg",
        "stores/../../secret.jpg",
        "/etc/secret.jpg",
        "stores//a.jpg",
        "stores/a\0.jpg",
        "stores/a.jpg#1",
        ".hidden.jpg",
        "stores\\a.jpg",
    ],
    ids=ascii,
)
async def test_signed_url_of_a_missing_picture(
    own_storage: OwnStorage, tmp_path: Path, object_key: str
) -> None:
    """``NotFound``: a valid signature gives access to saved pictures only."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    parts = parts_of(own_storage.url(object_key))

    with pytest.raises(NotFound):
        await own_storage.read_signed(**parts)
