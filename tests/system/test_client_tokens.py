"""A client token through real processes: its pictures are counted exactly."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from urllib.request import Request

import pytest

from tests.system.deployment import DEADLINE_SECONDS, STORE_ID, Answer, Deployment, eventually

PICTURES = 5
SUBMITS = 200
ORIGIN = "https://shop.example"
NAME_ORIGIN = """
    INSERT INTO stores (id, name, origins) VALUES ($1, $1, ARRAY[$2])
    ON CONFLICT (id) DO UPDATE SET origins = EXCLUDED.origins RETURNING id"""
COUNTS = "SELECT used, submissions FROM client_tokens WHERE id = $1"


def post(deployment: Deployment, path: str, body: Any, **headers: str) -> Answer:
    """With the store's key, unless ``headers`` have a token."""
    sent = deployment.headers("b2b") | headers
    return deployment.insist(Request(deployment.url + path, json.dumps(body).encode(), sent))


@pytest.fixture
def token(deployment: Deployment) -> dict[str, Any]:
    """A new client token for five pictures, as soon as the store's key knows its origins."""
    deployment.sql(NAME_ORIGIN, STORE_ID, ORIGIN)
    asked = {"shopper_id": "anna", "origin": ORIGIN, "pictures": PICTURES}

    def created() -> Answer | None:
        answer = post(deployment, "/api/v1/client-tokens", asked)
        return answer if answer.status == 201 else None

    answer = eventually(created)
    assert answer is not None
    data: dict[str, Any] = answer.data
    return data


def submit(deployment: Deployment, token: dict[str, Any]) -> Answer:
    """From the shopper's browser."""
    body = {"model_image_url": f"{deployment.url}/samples/model.png"}
    authorization = f"Bearer {token['client_token']}"
    path = "/api/v1/generations"
    return post(deployment, path, body, Authorization=authorization, Origin=ORIGIN)


def test_two_hundred_concurrent_submits_make_exactly_five(
    deployment: Deployment, token: dict[str, Any]
) -> None:
    """The others get a 403, or a 429 while too many of the token's sessions are unfinished, and
    cost nothing."""
    before = deployment.balance("b2b")
    barrier = Barrier(SUBMITS)

    def one(_: int) -> Answer:
        barrier.wait(DEADLINE_SECONDS)
        return submit(deployment, token)

    with ThreadPoolExecutor(SUBMITS) as threads:
        answers = list(threads.map(one, range(SUBMITS)))

    accepted = [answer for answer in answers if answer.status == 202]
    assert len(accepted) == PICTURES
    assert {answer.status for answer in answers} <= {202, 403, 429}
    left = Counter(answer.data["pictures_remaining"] for answer in accepted)
    assert left == Counter(range(PICTURES))
    assert deployment.balance("b2b") == before - PICTURES
    (counts,) = deployment.sql(COUNTS, token["token_id"])
    assert tuple(counts) == (PICTURES, PICTURES)
    deployment.assert_books_are_right()


def test_refunded_pictures_can_be_requested_again(
    deployment: Deployment, token: dict[str, Any]
) -> None:
    """Exactly as many as were cancelled, until the submissions are used up."""
    ids = [submit(deployment, token).data["session_id"] for _ in range(PICTURES)]
    full = submit(deployment, token)
    for session_id in ids[:2]:
        assert post(deployment, f"/api/v1/generations/{session_id}/cancel", None).status == 200

    again = [submit(deployment, token).status for _ in range(3)]

    assert full.status in {403, 429}
    assert again[:2] == [202, 202]
    assert again[2] in {403, 429}
    (counts,) = deployment.sql(COUNTS, token["token_id"])
    assert tuple(counts) == (PICTURES, PICTURES + 2)
    deployment.assert_books_are_right()
