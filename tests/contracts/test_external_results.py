"""What an external consumer writes as the result: its times, its link, and that both stay."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from domain.credits import Owner
from domain.errors import IllegalTransition
from domain.object_keys import possible_pictures
from domain.sessions import SessionStatus, Usage
from tests.contracts.backends import Backend
from tests.support.examples import STORE, USER, picture_of

pytestmark = pytest.mark.anyio

LINK = "https://elsewhere.example/picture.png"


async def test_start_of_an_external_consumer_is_recorded(backend: Backend) -> None:
    """When it takes the session, whatever it writes itself: each attempt has its own start."""
    session_id = await backend.queued()
    await backend.external_write(
        session_id, status="processing", started_at=datetime(1999, 12, 31, tzinfo=UTC)
    )
    first = await backend.get(session_id)
    await backend.external_write(session_id, status="queued")
    await backend.advance(timedelta(seconds=1))
    await backend.external_write(session_id, status="processing")
    second = await backend.get(session_id)

    await backend.external_write(session_id, status="completed", generated_image_url=LINK)

    done = await backend.get(session_id)
    assert first.started_at is not None
    assert first.started_at >= first.created_at - timedelta(seconds=1)
    assert second.started_at is not None
    assert second.started_at >= second.created_at
    assert done.started_at == second.started_at
    assert done.completed_at is not None
    assert done.started_at is not None
    assert done.completed_at >= done.started_at


async def test_session_that_was_never_taken_has_no_start(backend: Backend) -> None:
    """An external consumer may go from ``queued`` straight to the end."""
    session_id = await backend.queued()

    await backend.external_write(session_id, status="completed", generated_image_url=LINK)

    assert (await backend.get(session_id)).started_at is None


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "file:///etc/passwd", "//x.example/a", "a"]
)
@pytest.mark.parametrize("status", list(SessionStatus))
async def test_link_is_http(backend: Backend, link: str, status: SessionStatus) -> None:
    """At any time: a customer's browser follows it."""
    ids = await backend.in_every_status()
    before = await backend.get(ids[status])

    with pytest.raises(IllegalTransition):
        await backend.external_write(before.id, generated_image_url=link)

    assert await backend.get(before.id) == before


async def test_link_of_a_final_session_stays(backend: Backend) -> None:
    """It may come after the status, once. Writing it again is no change."""
    session_id = await backend.queued()
    await backend.external_write(session_id, status="completed")
    await backend.external_write(session_id, generated_image_url=LINK)
    await backend.external_write(session_id, status="completed", generated_image_url=LINK)

    for other in ("https://another.example/", None, ""):
        with pytest.raises(IllegalTransition):
            await backend.external_write(session_id, generated_image_url=other)

    assert (await backend.get(session_id)).generated_image_url == LINK


async def test_link_comes_too_late_after_the_deletion(backend: Backend) -> None:
    """Nobody would delete what it leads to."""
    session_id = await backend.set_externally("completed")
    await backend.recovery.mark_images_deleted([session_id])

    with pytest.raises(IllegalTransition):
        await backend.external_write(session_id, generated_image_url=LINK)


@pytest.mark.parametrize("owner", [USER, STORE])
async def test_every_picture_of_a_worker_is_its_session_s(backend: Backend, owner: Owner) -> None:
    """The rule of the database and the keys of the picture storage agree, for each format."""
    for place in range(3):
        session = await backend.claimed(owner)
        picture = possible_pictures(session.object_prefix)[place]

        assert await backend.attempts.complete(session.id, attempt=1, picture=picture)

        assert (await backend.get(session.id)).picture == picture


@pytest.mark.parametrize(
    "known",
    [
        {"provider": "openai"},
        {"input_tokens": 7},
        {"output_tokens": 9},
        {"estimated_cost_usd": Decimal("0.04")},
    ],
)
async def test_usage_that_is_known_in_part_is_kept(backend: Backend, known: dict[str, Any]) -> None:
    """Tokens without a price, or a price without tokens: no picture is lost for its statistics."""
    session = await backend.claimed()

    assert await backend.attempts.complete(
        session.id, attempt=1, picture=picture_of(session.id), usage=Usage(**known)
    )

    assert (await backend.get(session.id)).usage == Usage(**known)
