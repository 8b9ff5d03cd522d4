"""What an owner sees of its sessions beyond what is stored."""

import pytest

from adapters.storage.memory import InMemoryImageStorage
from adapters.storage.signing import UrlSigner
from domain.reading import Reading
from domain.sessions import SessionStatus
from tests.support.examples import LEASE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("status", "link"),
    [(SessionStatus.COMPLETED, "https://elsewhere.example/p.png"), (SessionStatus.FAILED, None)],
)
async def test_only_what_was_paid_for_has_its_picture(
    service: Service, status: SessionStatus, link: str | None
) -> None:
    """A consumer that is not ours may have left its link with a session that was refunded."""
    signer = UrlSigner(base_url="", secret=b"", lifetime=LEASE, clock=service.clock.now)
    reading = Reading(sessions=service.repo, storage=InMemoryImageStorage(signer=signer))
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(session_id, generated_image_url="https://elsewhere.example/p.png")
    service.repo.overwrite(session_id, status=status)

    view = await reading.one(session_id, USER)

    assert view.picture_url == link
