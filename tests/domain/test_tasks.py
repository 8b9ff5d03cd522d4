"""The task in the queue."""

from datetime import timedelta
from uuid import uuid4

import pytest

from domain.errors import InvalidTask
from domain.tasks import TASK_PAYLOAD_VERSION, GenerationTask
from tests.support.clock import START
from tests.support.examples import BAG, HAT, OUTFIT_URL, STORE, a_session, a_task


def test_task_has_the_values_of_its_session() -> None:
    """Owner, pictures in order, prompt and correlation id. Also ``created_at``, by which recovery
    finds lost tasks."""
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
        traceparent=session.trace,
        version=1,
    )


@pytest.mark.parametrize("version", [-1, 0, TASK_PAYLOAD_VERSION + 1])
def test_unknown_version_is_refused(version: int) -> None:
    """The same fields may have another meaning there."""
    with pytest.raises(InvalidTask, match=f"version {version} "):
        a_task(version=version)


def test_task_without_pictures_is_refused() -> None:
    """``image_urls`` has at least one entry."""
    with pytest.raises(InvalidTask, match="image_urls"):
        a_task(image_urls=())
