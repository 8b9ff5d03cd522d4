"""An owner's uploads are read from the storage, and no spelling of a link leads to the upload of
another owner."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from urllib.parse import quote
from uuid import UUID

import pytest

from adapters.images.inputs import InputPictures
from adapters.images.limits import InputLimits
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.s3 import S3PictureStorage, s3_store
from adapters.storage.signing import UrlSigner
from domain.causes import Cause, CauseKind
from domain.credits import Channel, Owner
from domain.errors import InputUnavailable, Refused, TryAgain
from domain.picture_ports import Picture
from domain.uploads import shopper_folder, upload_folder
from tests.support.clock import FakeClock, VirtualTimeLoop, loop_time
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
DOWNLOADED = Picture(data=b"prepared: from the network", media_type="image/jpeg")


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

    async def download(url: str) -> bytes:
        reads.downloads.append(url)
        return b"from the network"

    async def prepare(data: bytes, owner: Owner) -> Picture:  # noqa: ARG001
        return Picture(data=b"prepared: " + data, media_type="image/jpeg")

    return InputPictures(
        pictures=storage,
        uploads=Uploads(reads),
        download=download,
        prepare=prepare,
        max_bytes=max_bytes,
        limits=InputLimits(),
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

    (picture,) = await pictures.fetch([links.image_url], OWNER)

    assert picture.data == b"prepared: " + BYTES
    assert (reads.uploads, reads.downloads) == ([KEY], [])


async def test_shopper_s_upload_is_read_from_the_storage(
    storage: InMemoryPictureStorage | S3PictureStorage,
) -> None:
    """It is one of its store's, in a folder of its own."""
    pictures, reads = inputs(storage)
    folder, _, name = KEY.rpartition("/")
    key = f"{shopper_folder(folder, 'anna')}/{name}"
    links = storage.upload_links(key.removesuffix(".jpg"), "image/jpeg", lifetime=LIFETIME)

    await pictures.fetch([links.image_url], OWNER)
    await pictures.fetch([links.image_url], NEIGHBOUR)

    assert reads.uploads == [key]
    assert reads.downloads == [links.image_url]


async def test_upload_above_the_size_limit_is_refused() -> None:
    """The limit is that of downloads."""
    storage = in_memory()
    pictures, _ = inputs(storage, max_bytes=len(BYTES) - 1)

    with pytest.raises(Refused):
        await pictures.fetch([storage.url(KEY)], OWNER)


@pytest.mark.parametrize("query", ["", "?", "?expires=1&signature=0", "?a?b#c", "?x=/../../etc"])
async def test_query_of_an_own_upload_is_ignored(
    storage: InMemoryPictureStorage | S3PictureStorage, query: str
) -> None:
    """A link may expire while its session waits. The owner needs no signature for its own
    upload."""
    pictures, reads = inputs(storage)

    await pictures.fetch([storage.url(KEY).partition("?")[0] + query], OWNER)

    assert (reads.uploads, reads.downloads) == ([KEY], [])


@pytest.mark.parametrize("owner", [NEIGHBOUR, NAMESAKE], ids=str)
async def test_upload_of_another_owner_is_downloaded(
    storage: InMemoryPictureStorage | S3PictureStorage, owner: Owner
) -> None:
    """So the storage checks the link's signature."""
    pictures, reads = inputs(storage)
    theirs = f"{upload_folder(owner, DAY)}/{NAME}"

    assert await pictures.fetch([storage.url(KEY)], owner) == (DOWNLOADED,)
    assert await pictures.fetch([storage.url(theirs)], OWNER) == (DOWNLOADED,)
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

    await pictures.fetch([begins + spelled], OWNER)

    assert reads.uploads == []
    assert len(reads.downloads) == 1


@pytest.mark.parametrize("key", OTHER_KEYS, ids=ascii)
async def test_signed_link_to_another_key_is_not_read(key: str) -> None:
    """Also if it is exactly the link that our storage would sign for that key."""
    storage = in_memory()
    pictures, reads = inputs(storage)

    await pictures.fetch([storage.url(key)], OWNER)

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

    await pictures.fetch([changed], OWNER)

    assert (reads.uploads, reads.downloads) == ([], [changed])


@dataclass(slots=True)
class Hosts:
    """Hosts that answer after some seconds, or fail; counts the downloads at the same time."""

    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    running: int = 0
    most: int = 0
    cancelled: list[str] = field(default_factory=list)
    preparing_seconds: float = 0.0

    async def download(self, url: str) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds.get(url, 0))
        except asyncio.CancelledError:
            self.cancelled.append(url)
            raise
        finally:
            self.running -= 1
        if url in self.failures:
            raise self.failures[url]
        return url.encode()

    async def prepare(self, data: bytes, owner: Owner) -> Picture:
        assert owner == OWNER
        await asyncio.sleep(self.preparing_seconds)
        return Picture(data=data, media_type="image/jpeg")

    def inputs(self, limits: InputLimits) -> InputPictures:
        storage = in_memory()
        return InputPictures(
            pictures=storage,
            uploads=storage,
            download=self.download,
            prepare=self.prepare,
            max_bytes=1_000,
            limits=limits,
        )


URLS = [f"https://host-{number}.example/a.jpg" for number in range(9)]
on_virtual_time = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": VirtualTimeLoop})], ids=["virtual"]
)


@on_virtual_time
async def test_pictures_are_downloaded_in_parallel_and_kept_in_order() -> None:
    """No more than ``parallel`` at a time."""
    hosts = Hosts(seconds={url: 5 - number / 10 for number, url in enumerate(URLS)})

    pictures = await hosts.inputs(InputLimits(seconds=100, parallel=3)).fetch(URLS, OWNER)

    assert [picture.data.decode() for picture in pictures] == URLS
    assert hosts.most == 3
    assert loop_time() < 16


@on_virtual_time
async def test_all_downloads_share_one_budget() -> None:
    """Each host is quick enough by itself; together they are not. That is the callers' fault."""
    hosts = Hosts(seconds=dict.fromkeys(URLS, 14.0))

    with pytest.raises(InputUnavailable) as failure:
        await hosts.inputs(InputLimits(seconds=20, parallel=2)).fetch(URLS, OWNER)

    assert loop_time() == pytest.approx(20)
    assert failure.value.reason == "IMAGE_UNREACHABLE"
    assert hosts.running == 0


@on_virtual_time
async def test_preparing_takes_nothing_of_the_budget() -> None:
    """It takes long only if our own processes are busy."""
    hosts = Hosts(seconds=dict.fromkeys(URLS, 1.0), preparing_seconds=50)

    pictures = await hosts.inputs(InputLimits(seconds=10, parallel=3)).fetch(URLS, OWNER)

    assert len(pictures) == len(URLS)


AWAY = TryAgain(
    "busy",
    code="IMAGE_UNREACHABLE",
    retry_after_seconds=7,
    cause=Cause(CauseKind.INPUT, "503 host=shop.example"),
)


@on_virtual_time
@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (AWAY, InputUnavailable),
        (Refused("gone"), Refused),
        (ValueError("a bug"), ValueError),
    ],
)
async def test_first_failure_ends_the_other_downloads(
    failure: Exception, raised: type[Exception]
) -> None:
    """A host that failed is told apart from a fault of ours, and its cause is kept."""
    hosts = Hosts(seconds=dict.fromkeys(URLS[1:], 14.0), failures={URLS[0]: failure})

    with pytest.raises(raised, match=str(failure)) as caught:
        await hosts.inputs(InputLimits(seconds=20, parallel=3)).fetch(URLS, OWNER)

    assert type(caught.value) is raised
    if isinstance(caught.value, InputUnavailable):
        assert (caught.value.reason, caught.value.retry_after_seconds) == ("IMAGE_UNREACHABLE", 7)
        assert caught.value.cause == AWAY.cause
    assert (loop_time(), hosts.running) == (0, 0)
    assert {*URLS[1:3]} <= {*hosts.cancelled}


async def test_failure_of_our_storage_is_not_the_callers() -> None:
    """An upload that our storage does not deliver."""

    class Away(InMemoryPictureStorage):
        def __init__(self) -> None:
            pass

        async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:  # noqa: ARG002
            raise TryAgain("The storage does not answer")

    storage = in_memory()
    pictures, _ = inputs(storage)
    pictures._uploads = Away()

    with pytest.raises(TryAgain) as failure:
        await pictures.fetch([storage.url(KEY)], OWNER)

    assert type(failure.value) is TryAgain
