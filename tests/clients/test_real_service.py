"""Every client against `wearon dev --in-memory`: the real API and worker, in a process."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from tests.clients.drivers import Driver
from tests.support.started import Started
from tests.system.deployment import free_port


@dataclass(frozen=True, slots=True)
class Dev:
    url: str
    api_key: str

    @property
    def request(self) -> dict[str, str]:
        samples = f"{self.url}/samples"
        return {
            "model_image_url": f"{samples}/model.png",
            "outfit_image_url": f"{samples}/outfit.png",
        }


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    started = Started("dev", "--in-memory", "--port", str(free_port()))
    try:
        banner = started.output_until(r"Ctrl-C stops")
        url, key = re.search(r"http://[\d.:]+", banner), re.search(r"wk_\w+", banner)
        assert url
        assert key
        yield Dev(url[0], key[0])
    finally:
        assert started.end() == 0


def test_try_on_with_a_picture_of_ones_own(client: Driver, dev: Dev) -> None:
    """An upload, a generation with it that is awaited, and the session in the list."""
    person = io.BytesIO()
    Image.new("RGB", (300, 400), "white").save(person, "PNG")
    link = client.call(dev.url, "upload", person.getvalue(), token=dev.api_key).result
    asked = {**dev.request, "model_image_url": link}

    done = client.call(dev.url, "submit_and_wait", asked, token=dev.api_key).result
    page = client.call(dev.url, "list", status="completed", limit=50, token=dev.api_key).result

    assert done["status"] == "completed"
    assert done["generated_image_url"].startswith(f"{dev.url}/files/")
    assert done["session_id"] in [session["session_id"] for session in page["items"]]


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
