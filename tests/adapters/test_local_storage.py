"""Picture storage on a local disk: what no other storage can get wrong."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from adapters.storage.local import LocalPictureStorage
from adapters.storage.signing import UrlSigner
from domain.errors import NotFound, StorageUnavailable
from domain.picture_ports import Picture
from tests.support.clock import FakeClock

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
JPEG = Picture(data=b"a jpeg", media_type="image/jpeg")


def storage_at(root: Path) -> LocalPictureStorage:
    signer = UrlSigner(
        base_url="http://127.0.0.1:8000",
        secret=b"secret",
        lifetime=timedelta(minutes=15),
        clock=FakeClock().now,
    )
    return LocalPictureStorage(root, signer=signer)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_pictures_survive_a_restart(tmp_path: Path) -> None:
    """A second storage on the same directory finds what the first one saved, in the named file."""
    saved = await storage_at(tmp_path).save("stores/s/1", JPEG)

    assert await storage_at(tmp_path).find("stores/s/1") == saved
    assert storage_at(tmp_path).path_of(saved.object_key).read_bytes() == JPEG.data


async def test_partial_file_of_a_killed_save_is_ignored(tmp_path: Path) -> None:
    """It is no picture, and does not prevent a later save."""
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "1.jpg#1").write_bytes(b"a jp")
    storage = storage_at(tmp_path)

    assert await storage.find("stores/1") is None
    saved = await storage.save("stores/1", JPEG)
    assert storage.path_of(saved.object_key).read_bytes() == JPEG.data


async def test_partial_files_are_deleted_with_the_picture(tmp_path: Path) -> None:
    """They are parts of it. Another picture's partial file stays."""
    storage = storage_at(tmp_path)
    await storage.save("stores/1", JPEG)
    for name in ("1.jpg#1", "1.png#1", "1.png#2", "11.jpg#1"):
        (tmp_path / "stores" / name).write_bytes(b"a jp")

    await storage.delete("stores/1")

    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["11.jpg#1"]


async def test_broken_disk_raises_storage_unavailable(tmp_path: Path) -> None:
    """From every method that touches the disk."""
    (tmp_path / "file").write_bytes(b"where the directory should be")
    storage = storage_at(tmp_path / "file")
    query = parse_qs(urlsplit(storage.url("stores/1.jpg")).query)
    expires, signature = int(query["expires"][0]), query["signature"][0]

    with pytest.raises(StorageUnavailable):
        await storage.find("stores/1")
    with pytest.raises(StorageUnavailable):
        await storage.save("stores/1", JPEG)
    with pytest.raises(StorageUnavailable):
        await storage.delete("stores/1")
    with pytest.raises(StorageUnavailable):
        await storage.keep_upload("uploads/2026-11-24/b2b/s/1.jpg", b"a jpeg")
    with pytest.raises(StorageUnavailable):
        await storage.read_upload("uploads/2026-11-24/b2b/s/1.jpg", max_bytes=10)
    with pytest.raises(StorageUnavailable):
        await storage.count_uploads("uploads/2026-11-24/b2b/s", limit=10)
    with pytest.raises(StorageUnavailable):
        await storage.delete_uploads_before(NOW, limit=10)
    with pytest.raises(StorageUnavailable):
        await storage.read_signed("stores/1.jpg", expires=expires, signature=signature)


async def test_empty_upload_folders_are_removed(tmp_path: Path) -> None:
    """Two days later, because the removal of a folder can fail a write into it; a folder that is
    not a day's stays, with its contents."""
    storage = storage_at(tmp_path)
    for day in ("2026-11-23", "2026-11-24", "2026-11-25", "notes"):
        key = f"uploads/{day}/b2b/s/1.jpg"
        await storage.keep_upload(key, b"a jpeg")
        os.utime(storage.path_of(key), (0, 0))

    assert await storage.delete_uploads_before(NOW, limit=10) == 3
    assert names_in(tmp_path / "uploads") == ["2026-11-24", "2026-11-25", "notes"]

    assert await storage.delete_uploads_before(NOW + timedelta(days=2), limit=10) == 0
    assert names_in(tmp_path / "uploads") == ["notes"]
    assert await storage.count_uploads("uploads/notes/b2b/s", limit=10) == 1


async def test_upload_folders_with_uploads_stay(tmp_path: Path) -> None:
    """Also on a day on which no more are expected."""
    storage = storage_at(tmp_path)
    for owner in ("s", "t"):
        await storage.keep_upload(f"uploads/2026-11-20/b2b/{owner}/1.jpg", b"a jpeg")
    os.utime(storage.path_of("uploads/2026-11-20/b2b/s/1.jpg"), (0, 0))

    assert await storage.delete_uploads_before(NOW, limit=10) == 1

    assert names_in(tmp_path / "uploads/2026-11-20/b2b") == ["t"]
    assert await storage.count_uploads("uploads/2026-11-20/b2b/t", limit=10) == 1


async def test_signature_is_checked_before_the_disk(tmp_path: Path) -> None:
    """An invalid signature gets ``NotFound`` even if the disk is broken."""
    (tmp_path / "file").write_bytes(b"where the directory should be")

    with pytest.raises(NotFound):
        await storage_at(tmp_path / "file").read_signed(
            "stores/1.jpg", expires=4_102_444_800, signature="0" * 64
        )


@pytest.mark.parametrize("object_key", ["../a.jpg", "/etc/a.jpg", "stores/a\0.jpg", "a.exe", ""])
def test_paths_stay_below_the_root(tmp_path: Path, object_key: str) -> None:
    """``path_of`` rejects invalid keys."""
    with pytest.raises(NotFound):
        storage_at(tmp_path).path_of(object_key)
