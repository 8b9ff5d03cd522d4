"""Limits of accounts and client tokens hold across API processes: the database decides."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier
from typing import Any
from urllib.request import Request
from uuid import UUID, uuid4

import jwt
import pytest

from tests.system.deployment import (
    DEADLINE_SECONDS,
    STORE_ID,
    USER_ID,
    Answer,
    Deployment,
    eventually,
    free_port,
)
from tests.system.test_client_tokens import COUNTS, NAME_ORIGIN, ORIGIN, PICTURES, post

SUBMITS = 200
PER_MINUTE = 10
SIGNUP_CREDITS = 3
PER_DAY = 7
SETTINGS = {
    "WEARON_RATE_PER_MINUTE": f"starter={PER_MINUTE}",
    "WEARON_SIGNUP_CREDITS": str(SIGNUP_CREDITS),
    "WEARON_SIGNUPS_PER_DAY": str(PER_DAY),
    "WEARON_SHOPPER_REFUNDS_PER_HOUR": "0",
}
RESET = """
    UPDATE credit_accounts SET minute_unused_at = NULL, hour_unused_at = NULL, plan = $3
    WHERE channel = $1 AND owner_id = $2"""
GRANTS = "SELECT count(*) FROM credit_ledger WHERE owner_id = $1 AND kind = 'grant'"


@pytest.fixture(scope="module")
def urls(deployed: Deployment) -> Iterator[list[str]]:
    """Three API processes on one database, with narrow limits."""
    with deployed.configured(**SETTINGS), deployed.started():
        ports = [free_port(), free_port()]
        for port in ports:
            deployed.start("serve", WEARON_PORT=str(port))
        others = [f"http://127.0.0.1:{port}" for port in ports]
        for url in others:
            eventually(partial(is_ready, deployed, url))
        yield [deployed.url, *others]


def is_ready(deployment: Deployment, url: str) -> bool:
    return deployment.call(Request(f"{url}/health/ready")).status == 200


def user_token(deployment: Deployment, user_id: UUID) -> str:
    claims = {
        "sub": str(user_id),
        "iss": "wearon",
        "aud": "wearon",
        "exp": datetime.now(UTC) + timedelta(hours=1),
    }
    return jwt.encode(claims, deployment.environ["WEARON_JWT_SECRET"], algorithm="HS256")


def at_once(
    deployment: Deployment, urls: list[str], credentials: list[dict[str, str]]
) -> list[Answer]:
    """One submission per credential, all at the same time, on each process in turn."""
    barrier = Barrier(len(credentials))
    body = json.dumps({"model_image_url": f"{deployment.url}/samples/model.png"}).encode()

    def one(place: int) -> Answer:
        headers = {"Content-Type": "application/json", **credentials[place]}
        url = f"{urls[place % len(urls)]}/api/v1/generations"
        barrier.wait(DEADLINE_SECONDS)
        return deployment.insist(Request(url, body, headers))

    with ThreadPoolExecutor(len(credentials)) as threads:
        return list(threads.map(one, range(len(credentials))))


def bearer(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **headers}


def test_a_rate_is_exact_across_three_processes(deployment: Deployment, urls: list[str]) -> None:
    """As many submissions as the plan allows in a burst are accepted, whoever gets them."""
    deployment.sql(RESET, "b2c", str(USER_ID), "starter")
    before = deployment.balance()

    answers = at_once(deployment, urls, [bearer(deployment.tokens["b2c"])] * 60)

    deployment.sql(RESET, "b2c", str(USER_ID), "default")
    statuses = Counter(answer.status for answer in answers)
    # One interval of the rate may pass meanwhile.
    assert statuses[202] in {PER_MINUTE, PER_MINUTE + 1}
    assert set(statuses) == {202, 429}
    assert deployment.balance() == before - statuses[202]
    deployment.assert_books_are_right()


def test_one_user_at_three_processes_signs_up_once(deployment: Deployment, urls: list[str]) -> None:
    """The credits are granted once, and spent once each."""
    deployment.sql("DELETE FROM signup_days")
    user_id = uuid4()

    answers = at_once(deployment, urls, [bearer(user_token(deployment, user_id))] * 45)

    statuses = Counter(answer.status for answer in answers)
    assert statuses == {202: SIGNUP_CREDITS, 402: 45 - SIGNUP_CREDITS}
    assert deployment.sql(GRANTS, str(user_id))[0][0] == 1
    assert deployment.sql("SELECT grants FROM signup_days")[0][0] == 1
    deployment.assert_books_are_right()


def test_the_cap_of_a_day_holds_across_three_processes(
    deployment: Deployment, urls: list[str]
) -> None:
    """New users beyond the cap get a 402, and no account."""
    deployment.sql("DELETE FROM signup_days")
    users = [uuid4() for _ in range(30)]
    tokens = [bearer(user_token(deployment, user_id)) for user_id in users]

    answers = at_once(deployment, urls, tokens)

    statuses = Counter(answer.status for answer in answers)
    assert statuses == {202: PER_DAY, 402: len(users) - PER_DAY}
    known = "SELECT count(*) FROM credit_accounts WHERE owner_id = ANY ($1::text[])"
    assert deployment.sql(known, [str(user_id) for user_id in users])[0][0] == PER_DAY
    assert deployment.sql("SELECT grants FROM signup_days")[0][0] == PER_DAY
    deployment.assert_books_are_right()


@pytest.fixture
def token(deployment: Deployment, urls: list[str]) -> dict[str, Any]:  # noqa: ARG001
    """A client token for five pictures."""
    deployment.sql(NAME_ORIGIN, STORE_ID, ORIGIN)
    asked = {"shopper_id": f"shopper-{uuid4()}", "origin": ORIGIN, "pictures": PICTURES}

    def created() -> Answer | None:
        answer = post(deployment, "/api/v1/client-tokens", asked)
        return answer if answer.status == 201 else None

    answer = eventually(created)
    assert answer is not None
    data: dict[str, Any] = answer.data
    return data


def test_a_token_is_exact_across_processes_while_its_sessions_are_refunded(
    deployment: Deployment, urls: list[str], token: dict[str, Any]
) -> None:
    """Two hundred submissions at three processes, while sessions are cancelled: at no time are more
    pictures taken than the token has, and never more than three submissions for each."""
    before = deployment.balance("b2b")
    credential = bearer(token["client_token"], Origin=ORIGIN)
    accepted: list[str] = []

    def cancel(session_id: str) -> int:
        path = f"/api/v1/generations/{session_id}/cancel"
        return post(deployment, path, None).status

    for _ in range(4):  # Rounds of fifty, each with the refunds of the one before.
        with ThreadPoolExecutor(PICTURES) as threads:
            cancelling = [threads.submit(cancel, session_id) for session_id in accepted[-4:]]
            answers = at_once(deployment, urls, [credential] * (SUBMITS // 4))
            assert {future.result() for future in cancelling} <= {200, 409}
        assert {answer.status for answer in answers} <= {202, 403, 429}
        accepted += [answer.data["session_id"] for answer in answers if answer.status == 202]
        (counts,) = deployment.sql(COUNTS, token["token_id"])
        assert counts["used"] <= PICTURES
        assert counts["submissions"] == len(accepted) <= 3 * PICTURES

    unrefunded = (
        "SELECT count(*) FROM generation_sessions WHERE client_token_id = $1 AND NOT refunded"
    )
    (left,) = deployment.sql(unrefunded, UUID(token["token_id"]))
    (counts,) = deployment.sql(COUNTS, token["token_id"])
    assert len(accepted) > PICTURES
    assert counts["used"] == left[0]
    assert deployment.balance("b2b") == before - left[0]
    deployment.assert_books_are_right()


def test_a_token_is_exact_while_workers_are_killed_and_sessions_fail(
    deployment: Deployment, urls: list[str], token: dict[str, Any]
) -> None:
    """A worker fails each session, another one is killed in the middle; two hundred submissions
    take three times the pictures at most, and every refund returns one picture."""
    before = deployment.balance("b2b")
    credential = bearer(token["client_token"], Origin=ORIGIN)
    settings = {"WEARON_MAX_ATTEMPTS": "2", "WEARON_GENERATOR": "local"}
    doomed = deployment.start("worker", **settings)
    body = {"model_image_url": f"{deployment.url}/samples/nothing.png"}
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **credential}

    def one(place: int) -> Answer:
        url = f"{urls[place % len(urls)]}/api/v1/generations"
        return deployment.insist(Request(url, data, headers))

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(one, range(SUBMITS // 2)))
        doomed.kill()
        deployment.start("worker", **settings)
        answers += list(threads.map(one, range(SUBMITS // 2)))

    accepted = [answer for answer in answers if answer.status == 202]
    assert {answer.status for answer in answers} <= {202, 403, 429}
    assert PICTURES <= len(accepted) <= 3 * PICTURES
    states = """
        SELECT count(*) FILTER (WHERE NOT refunded) AS held, count(*) AS sessions,
            count(*) FILTER (WHERE status IN ('queued', 'processing')) AS unfinished
        FROM generation_sessions WHERE client_token_id = $1"""

    def settled() -> bool:
        (row,) = deployment.sql(states, UUID(token["token_id"]))
        return (row["unfinished"], row["held"]) == (0, 0)

    eventually(settled, seconds=60)
    (counts,) = deployment.sql(COUNTS, token["token_id"])
    assert tuple(counts) == (0, len(accepted))
    assert deployment.balance("b2b") == before
    deployment.assert_books_are_right()
