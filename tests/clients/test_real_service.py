"""Every client against `wearon dev --in-memory`: the real API and worker, in a process."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.clients.dev import Dev, running_dev
from tests.clients.drivers import OPENED, Driver, SyncDriver
from tests.clients.examples import run_javascript, run_python
from tests.clients.page import client_page

TRY_ON = """
const { Wearon } = await import("/index.js");
const [baseUrl, token, request] = args;
const wearon = new Wearon({ baseUrl, token });
const canvas = Object.assign(document.createElement("canvas"), { width: 400, height: 400 });
canvas.getContext("2d").fillRect(0, 0, 400, 400);
const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
const person = await wearon.upload(picture);
const done = await wearon.submitAndWait({ ...request, model_image_url: person });
const { session_id } = await wearon.submit(request);
const states = [];
await wearon.subscribe(session_id, ({ status }) => states.push(status));
const problem = await wearon.get("none").catch((error) => error);
return [done.status, states.at(-1), problem.name, problem.code, problem.requestId];
"""


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    with running_dev() as service:
        yield service


@pytest.fixture(scope="module")
def picture() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (300, 400), "white").save(written, "JPEG")
    return written.getvalue()


def test_try_on_with_a_picture_of_ones_own(client: Driver, dev: Dev, picture: bytes) -> None:
    """An upload, a generation with it that is awaited, and the session in the list."""
    link = client.call(dev.url, "upload", picture, token=dev.api_key).result
    asked = {**dev.request, "model_image_url": link}

    done = client.call(dev.url, "submit_and_wait", asked, token=dev.api_key).result
    page = client.call(dev.url, "list", status="completed", limit=50, token=dev.api_key).result

    assert done["status"] == "completed"
    assert done["generated_image_url"].startswith(f"{dev.url}/files/")
    assert done["session_id"] in [session["session_id"] for session in page["items"]]


def test_sessions_are_followed_to_their_end(client: Driver, dev: Dev) -> None:
    """One session and several ones, while they are worked on and when they are final."""
    ids = [
        client.call(dev.url, "submit", dev.request, token=dev.api_key).result["session_id"]
        for _ in range(3)
    ]

    one = client.call(dev.url, "subscribe", ids[0], token=dev.api_key)
    several = client.call(dev.url, "subscribe_many", ids, token=dev.api_key)
    unknown = client.call(dev.url, "subscribe", "none", token=dev.api_key)

    assert one.result == one.updates[-1]
    assert one.result["status"] == "completed"
    assert {name: state["status"] for name, state in several.result.items()} == dict.fromkeys(
        ids, "completed"
    )
    assert unknown.refusal["code"] == "NOT_FOUND"


def test_all_sessions_are_followed_from_now_on(client: Driver, dev: Dev) -> None:
    """Those that are submitted meanwhile, to their end, and no older ones."""
    old = SyncDriver().call(dev.url, "submit_and_wait", dev.request, token=dev.api_key).result
    new: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(
            client.call, dev.url, "subscribe_all", token=dev.api_key, timeout_seconds=3.0
        )
        while not following.done():  # Some of these come before the stream is open, or too late.
            done = SyncDriver().call(dev.url, "submit_and_wait", dev.request, token=dev.api_key)
            new.append(done.result["session_id"])
            wait([following], timeout=0.5)  # The demo store has few credits.
        opened, *updates = following.result().updates

    final = {state["session_id"] for state in updates if state["status"] == "completed"}
    assert opened == OPENED
    assert final & set(new)
    assert old["session_id"] not in {state["session_id"] for state in updates}


def test_batch_answers_each_item(client: Driver, dev: Dev) -> None:
    """A rejected item does not affect the others, and a repetition with its key is a replay."""
    items = [dev.request, {}]
    batch: dict[str, Any] = {"idempotency_key": f"batch-{type(client).__name__}"}

    first = client.call(dev.url, "submit_batch", items, token=dev.api_key, **batch).result
    again = client.call(dev.url, "submit_batch", items, token=dev.api_key, **batch).result

    assert [answer["status"] for answer in first] == [202, 400]
    assert first[1]["error"]["code"] == "VALIDATION_ERROR"
    assert again[0]["data"]["session_id"] == first[0]["data"]["session_id"]
    assert [answer["replayed"] for answer in again] == [True, False]


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_examples_make_a_picture(
    request: pytest.FixtureRequest, language: str, dev: Dev, picture: bytes, tmp_path: Path
) -> None:
    """Those of the READMEs print the picture's link."""
    if language == "python":
        printed = run_python(dev.url, dev.api_key, picture, tmp_path)
    else:
        built: Path = request.getfixturevalue("built")
        printed = run_javascript(dev.url, dev.user_token, picture, built)

    *_, status, link = printed
    assert status == "completed"
    assert link.startswith(f"{dev.url}/files/")


def test_final_session_is_not_cancelled(client: Driver, dev: Dev) -> None:
    """The service's 409 is an error."""
    done = client.call(dev.url, "submit_and_wait", dev.request, token=dev.api_key).result

    refusal = client.call(dev.url, "cancel", done["session_id"], token=dev.api_key).refusal

    assert (refusal["status"], refusal["code"]) == (409, "CONFLICT")


def test_repeated_submission_is_charged_once(client: Driver, dev: Dev) -> None:
    """The same key with the same request is the same session; with another one it is refused."""
    submit: dict[str, Any] = {
        "idempotency_key": f"once-{type(client).__name__}",
        "token": dev.api_key,
    }
    first = client.call(dev.url, "submit", dev.request, **submit).result
    again = client.call(dev.url, "submit", dev.request, **submit).result
    other = client.call(dev.url, "submit", {**dev.request, "prompt": "x"}, **submit).refusal

    assert again["session_id"] == first["session_id"]
    assert other["code"] == "IDEMPOTENCY_KEY_REUSED"


def test_refusals_have_the_services_code(client: Driver, dev: Dev) -> None:
    """Codes, messages and request ids are those of the service."""
    bad = client.call(dev.url, "submit", {}, token=dev.api_key).refusal
    unknown = client.call(dev.url, "get", "none", token=dev.api_key).refusal
    stranger = client.call(dev.url, "list", token="wk_wrong").refusal

    assert (bad["status"], bad["code"]) == (400, "VALIDATION_ERROR")
    assert "model_image_url" in bad["message"]
    assert bad["request_id"].startswith("req_")
    assert unknown["status"] in {400, 404}
    assert (stranger["status"], stranger["code"]) == (401, "INVALID_API_KEY")


def test_page_makes_a_try_on(dev: Dev, built: Path) -> None:
    """In a browser, on a page of another origin: upload, submission, wait and stream need no
    header that the API does not allow, and errors are read."""
    with client_page(built / "node_modules" / "wearon-client" / "dist") as page:
        status, last, name, code, request_id = page.run(
            TRY_ON, dev.url, dev.user_token, dev.request
        )

    assert (status, last) == ("completed", "completed")
    assert (name, code) == ("ApiError", "NOT_FOUND")
    assert request_id.startswith("req_")
