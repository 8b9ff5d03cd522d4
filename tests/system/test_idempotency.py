"""One key through several API processes: one session and one debit for any number of copies."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from tests.system.deployment import DEADLINE_SECONDS, Answer, Deployment, eventually, free_port

COPIES = 100
BACK_SECONDS = 3.0
"""One measurement, and what a busy machine may add."""


def ready(url: str) -> bool:
    """Whether the API there is ready."""
    try:
        with urlopen(f"{url}/health/ready", timeout=DEADLINE_SECONDS) as response:
            return bool(response.status == 200)
    except URLError:
        return False


def ask(deployment: Deployment, url: str, key: str) -> Answer:
    """Submit the sample model once, with a key."""
    request = Request(
        f"{url}/api/v1/generations",
        json.dumps({"model_image_url": f"{deployment.url}/samples/model.png"}).encode(),
        deployment.headers("b2c") | {"Idempotency-Key": key},
    )
    try:
        response = urlopen(request, timeout=DEADLINE_SECONDS)
    except HTTPError as error:
        response = error
    with response:
        return Answer(response.status, dict(response.headers), json.load(response))


@pytest.fixture(scope="module")
def urls(deployed: Deployment) -> list[str]:
    """The addresses of two APIs on the same servers. The second one, named twice, has two
    processes."""
    port = free_port()
    deployed.start("serve", WEARON_PORT=str(port), WEARON_API_WORKERS="2")
    other = f"http://127.0.0.1:{port}"
    eventually(lambda: ready(other))
    return [deployed.url, other, other]


def at_once(deployment: Deployment, urls: list[str], keys: list[str]) -> list[Answer]:
    """The answers to one request per key, all sent at the same moment, to one URL after another."""
    barrier = Barrier(len(keys))

    def one(number: int) -> Answer:
        barrier.wait(DEADLINE_SECONDS)
        return ask(deployment, urls[number % len(urls)], keys[number])

    with ThreadPoolExecutor(len(keys)) as threads:
        return list(threads.map(one, range(len(keys))))


def test_a_hundred_copies_through_several_processes(
    deployment: Deployment, urls: list[str]
) -> None:
    """All are answered 202 with one session, one of them without Idempotency-Replayed, and one
    credit is gone."""
    before = deployment.balance()

    answers = at_once(deployment, urls, ["copies"] * COPIES)

    assert Counter(answer.status for answer in answers) == {202: COPIES}
    (session_id,) = {answer.data["session_id"] for answer in answers}
    marks = Counter(answer.headers.get("idempotency-replayed") for answer in answers)
    assert marks == {"true": COPIES - 1, None: 1}
    assert deployment.balance() == before - 1
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()


def test_copies_while_the_queue_is_away(deployment: Deployment, urls: list[str]) -> None:
    """One copy creates the session and undoes it at once, while the others wait for it. None is
    accepted or waits forever, no credit is lost, and afterwards the key is free again."""
    before = deployment.balance()
    deployment.valkey.stop()

    answers = at_once(deployment, urls, ["undone"] * COPIES)

    deployment.valkey.start()
    undone = Counter(answer.status for answer in answers)
    assert set(undone) <= {409, 503}
    assert deployment.balance() == before
    eventually(lambda: ask(deployment, urls[0], "undone").status == 202)
    assert deployment.balance() == before - 1
    deployment.assert_books_are_right()


def test_no_credit_is_taken_while_the_queue_is_away(
    deployment: Deployment, urls: list[str]
) -> None:
    """Once the API knows: a 503 without a debit, and a repetition is answered all the same. Within
    about a second after the queue is back, requests are accepted."""
    first = ask(deployment, urls[0], "before")
    deployment.valkey.stop()

    def is_refused_for_nothing() -> bool:
        entries = deployment.sql("SELECT count(*) FROM credit_ledger")
        refused = ask(deployment, urls[0], str(uuid4())).status == 503
        return refused and deployment.sql("SELECT count(*) FROM credit_ledger") == entries

    eventually(is_refused_for_nothing)
    repeated = ask(deployment, urls[0], "before")
    deployment.valkey.start()
    began = time.monotonic()
    eventually(lambda: ask(deployment, urls[0], "after").status == 202)

    assert time.monotonic() - began < BACK_SECONDS
    assert (repeated.status, repeated.data) == (202, first.data)
    deployment.assert_books_are_right()
