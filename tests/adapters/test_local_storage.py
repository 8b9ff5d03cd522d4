"""What only storage on a disk can get wrong."""

from datetime import date, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from adapters.storage.local import LocalPictureStorage
from adapters.storage.signing import UrlSigner
from domain.errors import NotFound, TryAgain
from domain.ports import Picture
from tests.support.clock import FakeClock

pytestmark = pytest.mark.anyio

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


async def test_pictures_outlive_the_process(tmp_path: Path) -> None:
    """What one storage saved, the next one on the same directory finds, in the file it names."""
    saved = await storage_at(tmp_path).save("stores/s/1", JPEG)

    assert await storage_at(tmp_path).find("stores/s/1") == saved
    assert storage_at(tmp_path).path_of(saved.object_key).read_bytes() == JPEG.data


async def test_what_a_killed_save_leaves_does_not_count(tmp_path: Path) -> None:
    """The half-written file of a killed process is no picture and is in nobody's way."""
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "1.jpg#1").write_bytes(b"a jp")
    storage = storage_at(tmp_path)

    assert await storage.find("stores/1") is None
    saved = await storage.save("stores/1", JPEG)
    assert storage.path_of(saved.object_key).read_bytes() == JPEG.data


async def test_what_killed_saves_left_is_deleted_too(tmp_path: Path) -> None:
    """It is a part of somebody's picture. What belongs to another picture stays."""
    storage = storage_at(tmp_path)
    await storage.save("stores/1", JPEG)
    for name in ("1.jpg#1", "1.png#1", "1.png#2", "11.jpg#1"):
        (tmp_path / "stores" / name).write_bytes(b"a jp")

    await storage.delete("stores/1")

    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["11.jpg#1"]


async def test_a_broken_disk_means_try_again(tmp_path: Path) -> None:
    """Where the storage does not answer, everything but making a URL raises ``TryAgain``."""
    (tmp_path / "file").write_bytes(b"where the directory should be")
    storage = storage_at(tmp_path / "file")
    query = parse_qs(urlsplit(storage.url("stores/1.jpg")).query)
    expires, signature = int(query["expires"][0]), query["signature"][0]

    with pytest.raises(TryAgain):
        await storage.find("stores/1")
    with pytest.raises(TryAgain):
        await storage.save("stores/1", JPEG)
    with pytest.raises(TryAgain):
        await storage.delete("stores/1")
    with pytest.raises(TryAgain):
        await storage.keep_upload("uploads/2026-11-24/b2b/s/1.jpg", b"a jpeg")
    with pytest.raises(TryAgain):
        await storage.read_upload("uploads/2026-11-24/b2b/s/1.jpg", max_bytes=10)
    with pytest.raises(TryAgain):
        await storage.count_uploads("uploads/2026-11-24/b2b/s", limit=10)
    with pytest.raises(TryAgain):
        await storage.delete_uploads_before(date(2026, 11, 25), limit=10)
    with pytest.raises(TryAgain):
        await storage.read_signed("stores/1.jpg", expires=expires, signature=signature)


async def test_deleted_uploads_leave_no_folders(tmp_path: Path) -> None:
    """Else a folder for each owner and day would stay for ever; what is no day's folder stays."""
    storage = storage_at(tmp_path)
    await storage.keep_upload("uploads/2026-11-24/b2b/s/1.jpg", b"a jpeg")
    await storage.keep_upload("uploads/notes/b2b/s/1.jpg", b"a jpeg")

    assert await storage.delete_uploads_before(date(2026, 11, 25), limit=10) == 1

    assert names_in(tmp_path / "uploads") == ["notes"]
    assert await storage.count_uploads("uploads/notes/b2b/s", limit=10) == 1


async def test_the_signature_is_checked_before_the_disk(tmp_path: Path) -> None:
    """Without a good signature nobody gets as far as the disk, so a broken one does not show."""
    (tmp_path / "file").write_bytes(b"where the directory should be")

    with pytest.raises(NotFound):
        await storage_at(tmp_path / "file").read_signed(
            "stores/1.jpg", expires=4_102_444_800, signature="0" * 64
        )


@pytest.mark.parametrize("object_key", ["../a.jpg", "/etc/a.jpg", "stores/a\0.jpg", "a.exe", ""])
def test_a_path_stays_below_the_root(tmp_path: Path, object_key: str) -> None:
    """``path_of`` refuses keys that no picture of ours can have."""
    with pytest.raises(NotFound):
        storage_at(tmp_path).path_of(object_key)
