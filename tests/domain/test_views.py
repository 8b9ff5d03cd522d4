"""The computed values of a session: its picture's link and its position in the queue."""

from datetime import timedelta

import pytest

from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.sessions import SessionStatus
from domain.views import MAX_QUEUE_POSITION, SessionViews
from tests.support.examples import LEASE, STORED_PICTURE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio


async def test_deleted_picture_has_no_link(service: Service) -> None:
    """The link to an external consumer's picture stays: it is not in our storage."""
    views = SessionViews(reads=service.repo, storage=service.storage)
    ours, theirs = [(await service.submitted()).session.id for _ in range(2)]
    await service.repo.claim(ours, lease=LEASE)
    await service.repo.complete(ours, attempt=1, picture=STORED_PICTURE)
    service.repo.overwrite(theirs, status=SessionStatus.COMPLETED, generated_image_url="https://x/")
    before = (await views.get(ours, USER)).picture_url

    await service.repo.mark_images_deleted([ours, theirs])

    assert before == service.storage.url(STORED_PICTURE.object_key)
    assert (await views.get(ours, USER)).picture_url is None
    assert (await views.get(theirs, USER)).picture_url == "https://x/"


@pytest.mark.parametrize(
    ("status", "link"),
    [(SessionStatus.COMPLETED, "https://elsewhere.example/p.png"), (SessionStatus.FAILED, None)],
)
async def test_only_a_completed_session_has_a_link(
    service: Service, status: SessionStatus, link: str | None
) -> None:
    """An external consumer may have written a link to a session that was then refunded."""
    signer = UrlSigner(base_url="", secret=b"", lifetime=LEASE, clock=service.clock.now)
    views = SessionViews(reads=service.repo, storage=InMemoryPictureStorage(signer=signer))
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(session_id, generated_image_url="https://elsewhere.example/p.png")
    service.repo.overwrite(session_id, status=status)

    view = await views.get(session_id, USER)

    assert view.picture_url == link


async def test_queue_position_is_exact_or_unknown(service: Service) -> None:
    """It is unknown past the limit, and then shrinks with each claimed session."""
    views = SessionViews(reads=service.repo, storage=service.storage)
    ids = []
    for _ in range(MAX_QUEUE_POSITION + 1):
        ids.append((await service.submitted()).session.id)
        service.clock.advance(timedelta(milliseconds=1))

    places = []
    for taken in ids[:3]:
        places.append((await views.get(ids[-1], USER)).queue_position)
        await service.repo.claim(taken, lease=LEASE)

    assert places == [None, MAX_QUEUE_POSITION, MAX_QUEUE_POSITION - 1]
    assert (await views.get(ids[3], USER)).queue_position == 1
    assert (await views.get(ids[0], USER)).queue_position is None
