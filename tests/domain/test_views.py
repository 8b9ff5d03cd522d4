"""What an owner sees of its sessions beyond what is stored."""

from datetime import timedelta

import pytest

from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.sessions import SessionStatus
from domain.views import MAX_QUEUE_POSITION, SessionViews
from tests.support.examples import LEASE, STORED_PICTURE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio


async def test_a_deleted_picture_has_no_link(service: Service) -> None:
    """Another consumer's picture is its own affair: its link stays."""
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
async def test_only_what_was_paid_for_has_its_picture(
    service: Service, status: SessionStatus, link: str | None
) -> None:
    """A consumer that is not ours may have left its link with a session that was refunded."""
    signer = UrlSigner(base_url="", secret=b"", lifetime=LEASE, clock=service.clock.now)
    views = SessionViews(reads=service.repo, storage=InMemoryPictureStorage(signer=signer))
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(session_id, generated_image_url="https://elsewhere.example/p.png")
    service.repo.overwrite(session_id, status=status)

    view = await views.get(session_id, USER)

    assert view.picture_url == link


async def test_a_place_in_the_queue_is_exact_or_not_told(service: Service) -> None:
    """Whoever is far back learns its place when it is near, and then it shrinks with each session
    that is taken."""
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
