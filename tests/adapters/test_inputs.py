"""An owner's uploads are read from the storage, and no spelling of a link leads to the upload of
another owner."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from urllib.parse import quote
from uuid import UUID

import pytest

from adapters.images.inputs import InputPictures
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from domain.credits import Channel, Owner
from domain.errors import Refused
from domain.ports import Picture
from domain.uploads import upload_folder
from tests.support.clock import FakeClock
from tests.support.servers import bucket_at

pytestmark = pytest.mark.anyio

OWNER = Owner(channel=Channel.B2B, id="a.store:1")
NEIGHBOUR = Owner(channel=Channel.B2B, id="aXstore:1")
NAMESAKE = Owner(channel=Channel.B2C, id="a.store:1")
LIFETIME = timedelta(hours=1)
NAME = f"{UUID(int=7)}.jpg"
DAY = date(2026, 11, 24)
KEY = f"{upload_folder(OWNER, DAY)}/{NAME}"
BYTES = b"as it was uploaded"
DOWNLOADED = Picture(data=b"from the network", media_type="image/jpeg")


def in_memory() -> InMemoryPictureStorage:
    return InMemoryPictureStorage(
        signer=UrlSigner(
            base_url="https://wearon.example",
            secret=b"secret",
            lifetime=LIFETIME,
            clock=FakeClock().now,
        )
    )


@cache
def in_s3(endpoint: str | None, *, path_style: bool) -> S3PictureStorage:
    bucket = replace(bucket_at(""), endpoint=endpoint, path_style=path_style)
    return S3PictureStorage(s3_store(bucket), url_lifetime=LIFETIME)


@dataclass(slots=True)
class Reads:
    """Keys read from the storage, and URLs downloaded."""

    uploads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)


class Uploads(InMemoryPictureStorage):
    """Has an upload at every key."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        self._reads.uploads.append(object_key)
        if max_bytes < len(BYTES):
            raise Refused("too large")
        return BYTES


def inputs(
    storage: InMemoryPictureStorage | S3PictureStorage, *, max_bytes: int = 1_000
) -> tuple[InputPictures, Reads]:
    reads = Reads()

    async def download(url: str) -> Picture:
        reads.downloads.append(url)
        return DOWNLOADED

    async def prepare(data: bytes) -> Picture:
        return Picture(data=b"prepared: " + data, media_type="image/jpeg")

    return InputPictures(
        pictures=storage,
        uploads=Uploads(reads),
        download=download,
        prepare=prepare,
        max_bytes=max_bytes,
    ), reads


Make = Callable[[], InMemoryPictureStorage | S3PictureStorage]

STORAGES: dict[str, Make] = {
    "ours": in_memory,
    "s3, path style": lambda: in_s3(None, path_style=True),
    "s3, virtual host": lambda: in_s3(None, path_style=False),
    "s3, elsewhere": lambda: in_s3("https://a.supabase.co/storage/v1/s3", path_style=True),
    "s3, elsewhere, virtual host": lambda: in_s3("https://pictures.r2.example", path_style=False),
}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> InMemoryPictureStorage | S3PictureStorage:
    return STORAGES[request.param]()


async def test_own_upload_is_read_from_the_storage(
    storage: InMemoryPictureStorage | S3PictureStorage,
) -> None:
    """Without the network, and prepared like a downloaded picture."""
    pictures, reads = inputs(storage)
    links = storage.upload_links(KEY.removesuffix(".jpg"), "image/jpeg", lifetime=LIFETIME)

    picture = await pictures.fetch(links.image_url, OWNER)

    assert picture.data == b"prepared: " + BYTES
    assert (reads.uploads, reads.downloads) == ([KEY], [])


async def test_upload_above_the_size_limit_is_refused() -> None:
    """The limit is that of downloads."""
    storage = in_memory()
    pictures, _ = inputs(storage, max_bytes=len(BYTES) - 1)

    with pytest.raises(Refused):
        await pictures.fetch(storage.url(KEY), OWNER)


@pytest.mark.parametrize("query", ["", "?", "?expires=1&signature=0", "?a?b#c", "?x=/../../etc"])
async def test_query_of_an_own_upload_is_ignored(
    storage: InMemoryPictureStorage | S3PictureStorage, query: str
) -> None:
    """A link may expire while its session waits. The owner needs no signature for its own
    upload."""
    pictures, reads = inputs(storage)

    await pictures.fetch(storage.url(KEY).partition("?")[0] + query, OWNER)

    assert (reads.uploads, reads.downloads) == ([KEY], [])


@pytest.mark.parametrize("owner", [NEIGHBOUR, NAMESAKE], ids=str)
async def test_upload_of_another_owner_is_downloaded(
    storage: InMemoryPictureStorage | S3PictureStorage, owner: Owner
) -> None:
    """So the storage checks the link's signature."""
    pictures, reads = inputs(storage)
    theirs = f"{upload_folder(owner, DAY)}/{NAME}"

    assert await pictures.fetch(storage.url(KEY), owner) == DOWNLOADED
    assert await pictures.fetch(storage.url(theirs), OWNER) == DOWNLOADED
    assert reads.uploads == []


OTHER_KEYS = [
    f"stores/{OWNER.id}/generated/{NAME}",
    f"generated/{OWNER.id}/{NAME}",
    f"uploads/2026-11-24/{OWNER.channel}/{NEIGHBOUR.id}/{NAME}",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}/../{NEIGHBOUR.id}/{NAME}",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}/..",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}/a.jpg",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}/{NAME}/",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}/{NAME}#1",
    f"uploads/2026-11-24/{OWNER.channel}/{OWNER.id}//{NAME}",
    f"uploads/../{OWNER.channel}/{OWNER.id}/{NAME}",
    f"uploads//{OWNER.channel}/{OWNER.id}/{NAME}",
    f"./{KEY}",
    f"/{KEY}",
    f"uploads/{KEY}",
    f"{KEY}\n",
    f"{KEY}\0",
    KEY.replace("2026", "\uff12\uff10\uff12\uff16"),
    KEY.replace(OWNER.id, OWNER.id.upper()),
    KEY.upper(),
]


@pytest.mark.parametrize("key", OTHER_KEYS, ids=ascii)
@pytest.mark.parametrize("escaped", [False, True])
async def test_other_keys_are_not_read(
    storage: InMemoryPictureStorage | S3PictureStorage, key: str, *, escaped: bool
) -> None:
    """Finished pictures, paths out of the owner's folder, and malformed keys."""
    pictures, reads = inputs(storage)
    begins, _, _ = storage.url(KEY).partition("uploads/")
    spelled = quote(key, safe="").replace(".", "%2e") if escaped else key

    await pictures.fetch(begins + spelled, OWNER)

    assert reads.uploads == []
    assert len(reads.downloads) == 1


@pytest.mark.parametrize("key", OTHER_KEYS, ids=ascii)
async def test_signed_link_to_another_key_is_not_read(key: str) -> None:
    """Also if it is exactly the link that our storage would sign for that key."""
    storage = in_memory()
    pictures, reads = inputs(storage)

    await pictures.fetch(storage.url(key), OWNER)

    assert reads.uploads == []


SPELLINGS: dict[str, Callable[[str], str]] = {
    "another host": lambda url: url.replace("https://", "https://evil."),
    "our host with a user": lambda url: url.replace("https://", "https://x@"),
    "another host behind ours": lambda url: url.replace("/", "@evil.example/", 3).replace(
        "@evil.example/", "/", 2
    ),
    "another port": lambda url: url.replace("/", ":8443/", 3).replace(":8443/", "/", 2),
    "another scheme": lambda url: url.replace("https:", "http:"),
    "no scheme": lambda url: url.removeprefix("https:"),
    "a scheme in capitals": lambda url: url.replace("https", "HTTPS"),
    "a file": lambda url: url.replace("https://", "file:///"),
    "a host in capitals": lambda url: url.replace("example", "EXAMPLE").replace(".co", ".CO"),
    "more slashes": lambda url: url.replace("uploads/", "/uploads/"),
    "a detour": lambda url: url.replace("uploads/", "x/../uploads/"),
    "an escaped detour": lambda url: url.replace("uploads/", "x/%2e%2e/uploads/"),
    "escaped slashes": lambda url: url.replace("uploads/", "uploads%2F"),
    "escaped twice": lambda url: url.replace("uploads", "%2575ploads"),
    "escaped without need": lambda url: url.replace("uploads", "%75ploads"),
    "backslashes": lambda url: url.replace("/uploads/", "\\uploads\\"),
    "a fragment before the query": lambda url: url.replace("?", "#?"),
    "a path parameter": lambda url: url.replace("?", ";x=1?"),
    "in the query of another URL": lambda url: f"https://evil.example/?u={url}",
    "in the path of another URL": lambda url: f"https://evil.example/{url}",
    "a space before": lambda url: f" {url}",
    "a line end inside": lambda url: url.replace("uploads", "up\nloads"),
    "lone surrogates": lambda url: url.replace("?", "\udc80?"),
    "only the key": lambda url: url[url.index("uploads") :],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_other_spellings_of_a_link_are_downloaded(
    storage: InMemoryPictureStorage | S3PictureStorage, spelling: str
) -> None:
    """The fetcher's checks apply to every link that is not exactly ours."""
    url = storage.url(KEY)
    changed = SPELLINGS[spelling](url)
    pictures, reads = inputs(storage)
    assert changed != url

    await pictures.fetch(changed, OWNER)

    assert (reads.uploads, reads.downloads) == ([], [changed])
