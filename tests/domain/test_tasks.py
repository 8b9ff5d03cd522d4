"""What travels to a worker."""

from datetime import timedelta
from uuid import uuid4

import pytest

from domain.errors import InvalidTask
from domain.tasks import TASK_PAYLOAD_VERSION, GenerationTask
from tests.support.clock import START
from tests.support.examples import BAG, HAT, OUTFIT_URL, STORE, a_session, a_task


def test_a_task_carries_what_its_session_asks_for() -> None:
    """Owner, pictures in order, prompt and correlation id are the session's; so is the age,
    by which recovery finds out whether the queue lost something older."""
    session = a_session(
        owner=STORE,
        prompt="In the rain",
        outfit_image_url=OUTFIT_URL,
        accessories=(HAT, BAG),
        created_at=START - timedelta(hours=1),
    )
    task_id = uuid4()

    assert GenerationTask.of(session, task_id=task_id) == GenerationTask(
        task_id=task_id,
        owner=STORE,
        session_id=session.id,
        image_urls=session.input.image_urls,
        prompt="In the rain",
        request_id=session.request_id,
        created_at=START - timedelta(hours=1),
        version=1,
    )


@pytest.mark.parametrize("version", [-1, 0, TASK_PAYLOAD_VERSION + 1])
def test_a_version_that_we_do_not_know_is_refused(version: int) -> None:
    """A newer producer may mean something else by the same fields."""
    with pytest.raises(InvalidTask, match=f"version {version} "):
        a_task(version=version)


def test_a_task_without_pictures_is_refused() -> None:
    """``image_urls`` has one entry or more."""
    with pytest.raises(InvalidTask, match="image_urls"):
        a_task(image_urls=())
