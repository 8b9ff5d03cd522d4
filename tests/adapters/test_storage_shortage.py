"""Storage that cannot keep a picture is found out before one is paid for, and says why."""

import errno
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapters.storage.faults import Readiness, unavailable
from adapters.storage.local import LocalPictureStorage
from adapters.storage.s3 import S3PictureStorage
from domain.errors import StorageUnavailable
from domain.picture_ports import Picture
from tests.adapters.test_local_storage import JPEG, names_in, storage_at
from tests.adapters.test_s3_storage import storage_in
from tests.support.servers import bucket_at, new_bucket

pytestmark = pytest.mark.anyio

LARGE = Picture(data=b"x" * 100_000, media_type="image/jpeg")


async def cause_of(call: Awaitable[object]) -> str:
    with pytest.raises(StorageUnavailable) as caught:
        await call
    return str(caught.value.cause)


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """The process's soft limit, for the block."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


async def test_usable_disk_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    """The folder is created; the bytes of the test are gone."""
    await storage_at(tmp_path / "pictures").check()

    assert names_in(tmp_path / "pictures") == []


async def test_missing_descriptors_are_found_out(tmp_path: Path) -> None:
    """By the check and by a save, which leaves nothing behind."""
    storage = storage_at(tmp_path)

    with limited(resource.RLIMIT_NOFILE, 0):
        causes = [await cause_of(storage.check()), await cause_of(storage.save("a", JPEG))]

    assert causes == ["storage too many open files"] * 2
    await storage.check()
    assert names_in(tmp_path) == []


async def test_check_after_a_failed_save_tries_one_as_large(tmp_path: Path) -> None:
    """A limit that only a picture exceeds is seen from then on, until a picture fits."""
    storage = storage_at(tmp_path)
    with limited(resource.RLIMIT_FSIZE, 50_000):
        await storage.check()
        causes = [await cause_of(storage.save("a", LARGE)), await cause_of(storage.check())]

    await storage.check()
    assert causes == ["storage file too large"] * 2
    assert names_in(tmp_path) == []


async def test_full_disk_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the bytes are to reach the disk, which may be after they were written."""

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    storage = storage_at(tmp_path)
    monkeypatch.setattr(os, "fsync", no_space)

    causes = [await cause_of(storage.check()), await cause_of(storage.save("a/b", JPEG))]

    assert causes == ["storage no space left on device"] * 2
    assert names_in(tmp_path / "a") == []


async def test_nearly_full_disk_counts_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a picture that is paid for finds no room."""
    real = os.statvfs(tmp_path)
    free = iter((100_000_000, 1_000_000))

    def statvfs(_: Path) -> os.statvfs_result:
        values = list(real)
        values[4] = next(free) // real.f_frsize  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)

    await storage_at(tmp_path).check()
    assert await cause_of(storage_at(tmp_path).check()) == "storage no space left on device"


async def test_root_that_is_no_directory_is_found_out(tmp_path: Path) -> None:
    """As a mount that is missing or read-only."""
    (tmp_path / "file").write_bytes(b"")

    assert await cause_of(storage_at(tmp_path / "file").check()) == "storage file exists"
    assert await cause_of(storage_at(tmp_path / "file" / "below").check()) == (
        "storage not a directory"
    )


async def test_saved_picture_has_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes first, then its name, and the names of the folders that were made for it."""
    synced: list[Path] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)

    await storage_at(tmp_path).save("stores/s/1", JPEG)

    stores = tmp_path / "stores"
    assert synced == [stores / "s" / "1.jpg#1", stores / "s", stores, tmp_path]
    assert names_in(stores / "s") == ["1.jpg"]


async def test_check_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of pictures costs one."""
    probes: list[int] = []
    monkeypatch.setattr(LocalPictureStorage, "_try_to_write", lambda _, size: probes.append(size))
    storage = storage_at(tmp_path)

    for _ in range(10):
        await storage.check()

    assert len(probes) == 1


async def test_failure_in_use_ends_the_remembered_success(tmp_path: Path) -> None:
    """So the next check finds out, and no worker goes on as if nothing had happened."""
    storage = storage_at(tmp_path / "pictures")
    await storage.check()
    (tmp_path / "pictures").rmdir()
    (tmp_path / "pictures").write_bytes(b"")

    causes = [await cause_of(storage.find("a")), await cause_of(storage.check())]

    assert causes == ["storage not a directory", "storage file exists"]


async def test_failure_is_not_remembered() -> None:
    """Each check tries again, so the end of the trouble is seen at once."""
    tries: list[int] = []

    async def probe(size: int) -> None:
        tries.append(size)
        if len(tries) < 3:
            raise unavailable("full")

    readiness = Readiness(probe, seconds=60)

    for _ in range(2):
        assert await cause_of(readiness.check()) == "storage full"
    await readiness.check()
    await readiness.check()

    assert len(tries) == 3


class FakeBucket:
    """An S3 service that answers PUTs with ``status``."""

    def __init__(self) -> None:
        self.status = 200
        self.head_status = 404
        self.methods: list[str] = []
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app, host="127.0.0.1")

    def storage(self, *, conditional_put: bool = True) -> S3PictureStorage:
        bucket = bucket_at(str(self.server.make_url("")), timeout_seconds=5)
        return storage_in(bucket, conditional_put=conditional_put)

    async def _answer(self, request: web.Request) -> web.Response:
        self.methods.append(request.method)
        if request.method == "HEAD":
            return web.Response(status=self.head_status)
        if request.method == "PUT" and self.status != 200:
            body = f"<Error><Code>Code{self.status}</Code><Message>ours: secret</Message></Error>"
            return web.Response(status=self.status, text=body)
        return web.Response(status=200, headers={"ETag": "e"})


@pytest.fixture
async def bucket() -> AsyncIterator[FakeBucket]:
    fake = FakeBucket()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (403, "storage 403 Code403"),
        (501, "storage 501 to a conditional PUT: set WEARON_S3_CONDITIONAL_PUT=false"),
        (507, "storage 507 Code507"),
    ],
)
async def test_bucket_that_keeps_nothing_is_found_out(
    bucket: FakeBucket, status: int, cause: str
) -> None:
    """By the check and by a save. A service without conditional PUTs is told by the name of the
    setting."""
    bucket.status = status
    storage = bucket.storage()

    causes = [await cause_of(storage.check()), await cause_of(storage.save("a", JPEG))]

    assert causes == [cause] * 2


async def test_bucket_that_may_not_be_read_is_found_out(bucket: FakeBucket) -> None:
    """Every attempt looks for a picture first."""
    bucket.head_status = 403

    assert await cause_of(bucket.storage().check()) == "storage 403"


async def test_bucket_without_conditional_puts_passes_once_it_is_told(bucket: FakeBucket) -> None:
    """501 then means something else."""
    await bucket.storage(conditional_put=False).check()
    bucket.status = 501

    assert await cause_of(bucket.storage(conditional_put=False).check()) == "storage 501 Code501"


async def test_bucket_is_tried_at_first_and_after_a_failure(bucket: FakeBucket) -> None:
    """Each request costs money."""
    storage = bucket.storage()
    for _ in range(3):
        await storage.check()
    first = list(bucket.methods)
    bucket.status = 403
    await cause_of(storage.save("a", JPEG))
    bucket.status = 200
    bucket.methods.clear()

    await storage.check()

    assert first[0] == "PUT"
    assert bucket.methods[0] == "PUT"
    assert first.count("PUT") == bucket.methods.count("PUT") == 1


async def test_check_leaves_nothing_in_a_bucket(s3_url: str) -> None:
    """Its object is deleted."""
    storage = storage_in(new_bucket(s3_url))

    await storage.check()

    assert storage._store.list().collect() == []
