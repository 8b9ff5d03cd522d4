"""The examples of the clients' READMEs run as they are printed."""

from pathlib import Path

import pytest

from tests.clients.drivers import PYTHON, TOKEN, TYPESCRIPT
from tests.clients.examples import example, run_javascript, run_python
from tests.clients.fake import FakeApi, data, event, session, stream

JPEG = b"\xff\xd8\xff...."
EXAMPLE_LINES = 12


def script(api: FakeApi) -> None:
    offer = {
        "upload_url": f"{api.url}/uploads/1.jpg",
        "method": "PUT",
        "headers": {"Content-Type": "image/jpeg"},
        "image_url": "https://api.example/files/1.jpg",
    }
    done = session(status="completed", generated_image_url="https://api.example/files/2.jpg")
    api.script(
        data(offer, 201),
        data({"bytes": 7}),
        data({"session_id": "s1", "status": "queued"}, 202),
        stream(event(1, session(status="processing")), event(2**31 - 1, done)),
    )


PRINTED = ["processing", "completed", "https://api.example/files/2.jpg"]


def test_python_example_runs(api: FakeApi, tmp_path: Path) -> None:
    script(api)

    assert run_python(api.url, TOKEN, JPEG, tmp_path) == PRINTED
    assert api.seen[2].json == {"model_image_url": "https://api.example/files/1.jpg"}


def test_javascript_example_runs(api: FakeApi, built: Path) -> None:
    script(api)

    assert run_javascript(api.url, TOKEN, JPEG, built) == PRINTED
    assert api.seen[2].json == {"model_image_url": "https://api.example/files/1.jpg"}


@pytest.mark.parametrize("folder", [PYTHON, TYPESCRIPT], ids=["python", "typescript"])
def test_examples_are_short(folder: Path) -> None:
    """Ten lines, and what they import."""
    assert len(example(folder).text.strip().splitlines()) <= EXAMPLE_LINES


def test_example_prints_a_failure(api: FakeApi, tmp_path: Path) -> None:
    """The other branch of the example."""
    script(api)
    failed = session(status="failed", error_code="EXPIRED", error_message="Too late")
    api.replace_last(stream(event(1, failed)))

    printed = run_python(api.url, TOKEN, JPEG, tmp_path)

    assert printed == ["failed", "EXPIRED Too late"]
