"""Whose an upload is, and how many there may be."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from adapters.storage.memory import InMemoryPictureStorage
from domain.credits import Owner
from domain.errors import TooManyUploads
from domain.uploads import UploadPolicy, Uploads, is_upload_of, upload_folder
from tests.support.examples import OTHER, STORE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio

ID = UUID("01a20f3c-9fdc-756e-a2e8-4b6c69b0c376")
NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)


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
def test_a_folder_says_whose_and_when(owner: Owner) -> None:
    """So that owner and age of an upload can be read off its key."""
    folder = upload_folder(owner, date(2026, 1, 2))

    assert folder == f"uploads/2026-01-02/{owner.channel}/{owner.id}"
    assert is_upload_of(owner, f"{folder}/{ID}.jpg")
    assert not is_upload_of(OTHER, f"{folder}/{ID}.jpg")


async def test_an_offer(storage: InMemoryPictureStorage) -> None:
    """Links of a new object in the owner's folder of today, with their bounds."""
    offer = await uploads(storage, now=NOON.replace(microsecond=999_999)).offer(STORE, "image/webp")

    key = f"uploads/2026-11-24/b2b/{STORE.id}/{ID}.webp"
    assert f"/{key}?" in offer.links.upload_url
    assert offer.links.image_url == storage.url(key)
    assert (offer.expires_at, offer.max_bytes) == (NOON + timedelta(minutes=5), 1_234)


async def test_an_owners_uploads_of_a_day_are_bounded(storage: InMemoryPictureStorage) -> None:
    """Another day is another bound, and so is another owner's; until the next day, UTC, it is
    worth no other try."""
    for number in range(2):
        await storage.keep_upload(f"{upload_folder(STORE, NOON.date())}/{number}.jpg", b"")

    with pytest.raises(TooManyUploads, match="than 2 pictures") as refusal:
        await uploads(storage).offer(STORE, "image/jpeg")

    assert refusal.value.retry_after_seconds == 12 * 3_600 - 30
    await uploads(storage).offer(USER, "image/jpeg")
    await uploads(storage, max_per_day=3).offer(STORE, "image/jpeg")
    await uploads(storage, now=NOON + timedelta(hours=12)).offer(STORE, "image/jpeg")
