"""A caller's own picture, from its bytes to a try-on. The worker may fetch nothing from this
machine, so the picture can only come from the storage."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.support.images import encoded
from tests.support.servers import new_bucket
from tests.system.deployment import DEADLINE_SECONDS, Deployment

PRODUCTION = {"WEARON_ENVIRONMENT": "production", "WEARON_FETCH_ALLOW_LOOPBACK": "false"}


@pytest.fixture(scope="module")
def deployed(deployed: Deployment) -> Iterator[Deployment]:
    """The deployment, with production settings."""
    with deployed.configured(**PRODUCTION):
        yield deployed


@pytest.fixture(scope="module")
def other(deployed: Deployment, s3_url: str) -> Iterator[Deployment]:
    """Another API on the same servers, with its pictures in S3."""
    bucket = new_bucket(s3_url)
    other = Deployment(deployed.folder)
    other.tokens = deployed.tokens
    other.environ = deployed.environ | {
        "WEARON_STORAGE": "s3",
        "WEARON_S3_BUCKET": bucket.name,
        "WEARON_S3_ENDPOINT": s3_url,
        "AWS_ACCESS_KEY_ID": bucket.access_key_id,
        "AWS_SECRET_ACCESS_KEY": bucket.secret_access_key,
        "WEARON_PORT": str(other.port),
        "WEARON_PUBLIC_URL": other.url,
    }
    with other.started():
        other.start("serve")
        other.wait_until_ready()
        yield other


@pytest.fixture
def in_s3(other: Deployment) -> Iterator[Deployment]:
    with other.started():
        yield other


def offered(deployment: Deployment, channel: str) -> Any:
    """An offer for a PNG."""
    body = json.dumps({"content_type": "image/png"}).encode()
    request = Request(f"{deployment.url}/api/v1/uploads", body, deployment.headers(channel))
    with urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        assert answer.status == 201
        return json.load(answer)["data"]


def sent(offer: Any, data: bytes) -> int:
    """Upload as offered; the status."""
    request = Request(offer["upload_url"], data, offer["headers"], method=offer["method"])
    try:
        with urlopen(request, timeout=DEADLINE_SECONDS) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def read(url: str) -> bytes:
    with urlopen(url, timeout=DEADLINE_SECONDS) as answer:
        return bytes(answer.read())


def uploaded(deployment: Deployment, channel: str, data: bytes) -> str:
    """The link of an uploaded picture."""
    offer = offered(deployment, channel)
    assert sent(offer, data) == 200
    return str(offer["image_url"])


@pytest.mark.parametrize("channel", ["b2b", "b2c"])
@pytest.mark.parametrize("storage", ["local", "s3"])
def test_try_on_with_uploaded_pictures(
    request: pytest.FixtureRequest, storage: str, channel: str
) -> None:
    """Larger than any other request may be, and read without the network."""
    deployment: Deployment = request.getfixturevalue(
        "deployment" if storage == "local" else "in_s3"
    )
    large = encoded(size=(200, 300)) + bytes(1_000_000)
    model = uploaded(deployment, channel, large)
    outfit = uploaded(deployment, channel, encoded(color="red"))
    deployment.start("worker")

    submitted = deployment.submit(channel, model_image_url=model, outfit_image_url=outfit)
    session = deployment.wait_for(
        submitted.data["session_id"], "completed", "failed", channel=channel
    )

    assert session["status"] == "completed", session["error_message"]
    assert read(model) == large
    assert read(session["generated_image_url"]).startswith(b"\xff\xd8")
    assert deployment.entries(session["session_id"], channel) == ["debit"]
    deployment.assert_books_are_right()


def test_other_owner_s_upload_is_not_read(deployment: Deployment) -> None:
    """Its link goes through the network like any other, here to an address that is refused."""
    picture = uploaded(deployment, "b2b", encoded())
    deployment.start("worker")

    submitted = deployment.submit("b2c", model_image_url=picture)
    session = deployment.wait_for(submitted.data["session_id"], "completed", "failed")

    assert (session["status"], session["error_code"]) == ("failed", "IMAGE_UNREACHABLE")
    assert deployment.entries(session["session_id"]) == ["debit", "refund"]
    deployment.assert_books_are_right()


def test_upload_that_was_never_sent(deployment: Deployment) -> None:
    """A session that uses its link fails with its refund."""
    offer = offered(deployment, "b2c")
    deployment.start("worker")

    submitted = deployment.submit("b2c", model_image_url=offer["image_url"])
    session = deployment.wait_for(submitted.data["session_id"], "completed", "failed")

    assert (session["status"], session["error_code"]) == ("failed", "IMAGE_UNREACHABLE")
    assert session["error_message"] == "A picture was not uploaded"
    assert deployment.entries(session["session_id"]) == ["debit", "refund"]


def test_too_large_upload_is_rejected(deployment: Deployment) -> None:
    """Over a real socket. The server may close the connection before all is sent, and goes on. The
    link is used up."""
    offer = offered(deployment, "b2c")

    try:
        status = sent(offer, encoded() + bytes(offer["max_bytes"]))
    except OSError:
        status = 413

    assert status == 413
    assert sent(offer, encoded()) == 409
    assert sent(offered(deployment, "b2c"), encoded()) == 200
    assert sent(offer, encoded()) == 409
