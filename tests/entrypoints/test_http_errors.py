"""The table of error responses, request ids, and log lines."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from domain.submission import SubmissionPolicy
from entrypoints.http.errors import ERRORS
from entrypoints.http.request_info import merge_request_info, new_request_id
from tests.support.examples import MODEL_URL, OTHER, STORE, USER
from tests.support.http import GENERATIONS, UPLOADS, Answer, Api

pytestmark = pytest.mark.anyio

Provoke: TypeAlias = Callable[[Api], Awaitable[Answer]]
Row: TypeAlias = tuple[Provoke, int, str, str, dict[str, str]]
"""A way to provoke an error, and its response: status, code, message, headers."""

TRY_ON = {"model_image_url": MODEL_URL}
SOME_ID = "0b0e6a55-9a3c-4a55-8a52-0e5f2f1f7a10"
NEW_REQUEST_ID = r"req_[0-9a-f]{24}"


@pytest.fixture
def api() -> Api:
    return Api()


async def invalid_input(api: Api) -> Answer:
    return await api.submit(body={"model_image_url": "ftp://pictures.example/"})


async def no_token(api: Api) -> Answer:
    return await api.submit(owner=None, body=TRY_ON)


async def unknown_key(api: Api) -> Answer:
    return await api.get(
        "/api/v1/credits", owner=None, headers=[("authorization", "Bearer wk_" + "0" * 32)]
    )


async def no_credits(api: Api) -> Answer:
    return await api.submit(body=TRY_ON)


async def unknown_session(api: Api) -> Answer:
    return await api.get(f"{GENERATIONS}/{uuid4()}")


async def unknown_route(api: Api) -> Answer:
    return await api.get("/api/v2/generations")


async def wrong_method(api: Api) -> Answer:
    return await api.call("DELETE", f"{GENERATIONS}/{uuid4()}")


async def ended(api: Api) -> Answer:
    session_id = (await api.service.submitted()).session.id
    await api.cancel(session_id)
    return await api.cancel(session_id)


async def key_of_another_request(api: Api) -> Answer:
    await api.service.submitted(idempotency_key="k")
    return await api.submit(
        headers=[("idempotency-key", "k")], body=TRY_ON | {"outfit_image_url": MODEL_URL}
    )


async def too_many_active(api: Api) -> Answer:
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.limit(SubmissionPolicy(max_active=0))
    return await api.submit(body=TRY_ON)


async def full_queue(api: Api) -> Answer:
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.limit(SubmissionPolicy(max_waiting=0))
    return await api.submit(body=TRY_ON)


async def paused_intake(api: Api) -> Answer:
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.submission.is_paused = True
    return await api.submit(body=TRY_ON)


async def large_body(api: Api) -> Answer:
    return await api.submit(body=b" " * 65_537)


async def large_body_in_chunks(api: Api) -> Answer:
    return await api.submit(body=[b" " * 65_536, b" "])


async def not_json(api: Api) -> Answer:
    return await api.submit(body=TRY_ON, content_type="text/plain")


async def bug(api: Api) -> Answer:
    async def fails() -> None:
        raise RuntimeError("a secret detail")

    api.readiness["database"] = fails
    return await api.get("/health/ready")


async def queue_away(api: Api) -> Answer:
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.queue.faults.away.add("push")
    return await api.submit(body=TRY_ON)


async def database_away(api: Api) -> Answer:
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.repo.faults.away.add("create")
    return await api.submit(body=TRY_ON)


async def storage_away(api: Api) -> Answer:
    api.storage.faults.away.add("read_signed")
    return await api.get("/files/a.png?expires=1&signature=a", owner=None)


BEARER = {"www-authenticate": "Bearer"}
RETRY = {"retry-after": "5"}
NOTHING = "Not found"
AWAY = "A dependency is temporarily unavailable; try again later"
TABLE: list[Row] = [
    (invalid_input, 400, "VALIDATION_ERROR", "model_image_url: must be an http or https URL", {}),
    (no_token, 401, "INVALID_TOKEN", "Send one header 'Authorization: Bearer <token>'", BEARER),
    (unknown_key, 401, "INVALID_API_KEY", "The API key is not valid", BEARER),
    (
        no_credits,
        402,
        "INSUFFICIENT_CREDITS",
        "This costs 1 credit(s), which the balance does not cover",
        {},
    ),
    (unknown_session, 404, "NOT_FOUND", NOTHING, {}),
    (unknown_route, 404, "NOT_FOUND", NOTHING, {}),
    (wrong_method, 405, "METHOD_NOT_ALLOWED", "Method not allowed", {}),
    (ended, 409, "CONFLICT", "The session has ended: it cannot be cancelled any more", {}),
    (
        key_of_another_request,
        422,
        "IDEMPOTENCY_KEY_REUSED",
        "This Idempotency-Key belongs to another request",
        {},
    ),
    (
        too_many_active,
        429,
        "TOO_MANY_ACTIVE",
        "Too many sessions are unfinished; wait for some to end",
        RETRY,
    ),
    (
        full_queue,
        503,
        "SERVICE_UNAVAILABLE",
        "Too many requests are waiting already; try again later",
        RETRY,
    ),
    (
        paused_intake,
        503,
        "SERVICE_UNAVAILABLE",
        "Paused by the operator; try again later",
        {"retry-after": "30"},
    ),
    (large_body, 413, "PAYLOAD_TOO_LARGE", "The request body is too large", {}),
    (large_body_in_chunks, 413, "PAYLOAD_TOO_LARGE", "The request body is too large", {}),
    (
        not_json,
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        "The Content-Type must be application/json",
        {},
    ),
    (bug, 500, "INTERNAL_ERROR", "Internal server error; it has been logged", {}),
    (
        queue_away,
        503,
        "SERVICE_UNAVAILABLE",
        "Generation service temporarily unavailable",
        RETRY,
    ),
    (database_away, 503, "SERVICE_UNAVAILABLE", AWAY, RETRY),
    (storage_away, 503, "SERVICE_UNAVAILABLE", AWAY, RETRY),
]


@pytest.mark.parametrize("row", TABLE, ids=[provoke.__name__ for provoke, *_ in TABLE])
async def test_error_responses(api: Api, row: Row) -> None:
    """Each error has its status, code, message and headers, in the envelope."""
    provoke, status, code, message, headers = row

    with capture_logs():
        answer = await provoke(api)

    assert answer.status == status
    assert answer.json == {"data": None, "error": {"code": code, "message": message}}
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(NEW_REQUEST_ID, answer.headers["x-request-id"])
    assert headers.items() <= answer.headers.items()


def test_new_request_id_encodes_its_time() -> None:
    """An id of ours begins with its time in milliseconds, and two of them differ."""
    before = time.time_ns() // 1_000_000
    first, second = new_request_id(), new_request_id()
    after = time.time_ns() // 1_000_000

    assert before <= int(first[4:16], 16) <= int(second[4:16], 16) <= after
    assert first != second


OF_CREDENTIALS = {
    (403, "FORBIDDEN"),
    (403, "DOMAIN_MISMATCH"),
    (403, "AGE_VERIFICATION_REQUIRED"),
    (429, "RATE_LIMIT_EXCEEDED"),
}
"""Tested with the credentials and limits that cause them."""


def test_every_error_response_is_tested() -> None:
    """No row of the product's table is missing above."""
    tested = {(status, code) for _, status, code, _, _ in TABLE}

    assert tested | OF_CREDENTIALS == {(answer.status, answer.code) for answer in ERRORS.values()}


@pytest.mark.parametrize(
    ("provoke", "cause"),
    [
        (queue_away, "queue push: refused"),
        (database_away, "database create: refused"),
        (storage_away, "storage read_signed: refused"),
    ],
)
async def test_cause_of_a_503_is_logged(api: Api, provoke: Provoke, cause: str) -> None:
    """As a warning, with the request's id; the caller does not see it."""
    with capture_logs(processors=[merge_request_info]) as logs:
        answer = await provoke(api)

    (entry,) = [entry for entry in logs if entry["event"] == "unavailable"]
    assert (entry["cause"], entry["log_level"]) == (cause, "warning")
    assert entry["request_id"] == answer.headers["x-request-id"]
    assert "refused" not in answer.message


async def test_503_of_a_submission_is_refunded(api: Api) -> None:
    """The credit is refunded, and the session has the reason of its failure."""
    answer = await queue_away(api)

    (session,) = await api.service.sessions()
    data = (await api.get(f"{GENERATIONS}/{session.id}")).data
    assert answer.status == 503
    assert (data["status"], data["error_code"]) == ("failed", "QUEUE_UNAVAILABLE")
    assert api.service.balance() == 1


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", GENERATIONS),
        ("GET", GENERATIONS),
        ("GET", f"{GENERATIONS}/stats"),
        ("GET", f"{GENERATIONS}/{SOME_ID}"),
        ("POST", f"{GENERATIONS}/{SOME_ID}/cancel"),
        ("POST", UPLOADS),
        ("GET", "/api/v1/credits"),
        ("GET", "/api/v1/credits/ledger"),
    ],
)
async def test_every_api_route_requires_authentication(api: Api, method: str, target: str) -> None:
    """401 without a token; 503, not 401, while a key cannot be looked up."""
    anonymous = await api.call(method, target, owner=None)
    api.keys.faults.away.add("caller_of")
    unchecked = await api.call(method, target, owner=STORE)

    assert anonymous.error == (401, "INVALID_TOKEN")
    assert unchecked.error == (503, "SERVICE_UNAVAILABLE")
    assert unchecked.headers["retry-after"] == "5"


async def test_other_owner_s_session_is_answered_like_a_missing_one(api: Api) -> None:
    """Another owner's id, an unknown one and a malformed one get the same bytes, and the session
    does not change."""
    theirs = (await api.service.submitted(OTHER)).session.id
    ids = [
        theirs,
        uuid4(),
        "stat",
        "not-a-uuid",
        "%00",
        "1" * 3_000,
        f"{theirs}%0A",
        f"{{{theirs}}}",
    ]

    for call in (lambda id_: api.get(f"{GENERATIONS}/{id_}"), api.cancel):
        answers = [await call(session_id) for session_id in ids]
        without_id = [answer.headers | {"x-request-id": ""} for answer in answers]

        assert {answer.error for answer in answers} == {(404, "NOT_FOUND")}
        assert len({answer.body for answer in answers}) == 1
        assert without_id == without_id[:1] * len(ids)
    assert (await api.service.session(theirs)).failure is None


@pytest.mark.parametrize("target", ["/health/live", "/nowhere", GENERATIONS])
@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 128])
async def test_well_formed_request_id_is_returned(api: Api, target: str, given: str) -> None:
    """Up to 128 of A-Z a-z 0-9 . _ -, on errors too."""
    answer = await api.get(target, owner=None, headers=[("x-request-id", given)])

    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "a b", "a\n", "a\r\nset-cookie: b", "a;b", "\xe4", "<b>", "a\x00"]
)
async def test_malformed_request_id_is_replaced(api: Api, given: str) -> None:
    """It is never echoed; the response has a new id."""
    answer = await api.get("/health/live", headers=[("x-request-id", given)])

    assert re.fullmatch(NEW_REQUEST_ID, answer.headers["x-request-id"])


async def test_new_request_ids_are_unique(api: Api) -> None:
    """Each request without an id gets its own."""
    ids = {(await api.get("/health/live")).headers["x-request-id"] for _ in range(50)}

    assert len(ids) == 50


async def test_request_id_is_no_idempotency_key(api: Api) -> None:
    """Two requests with the same id are two sessions and two debits."""
    await api.service.accounts.grant(USER, 2, note="test")

    for _ in range(2):
        await api.submit(body=TRY_ON, headers=[("x-request-id", "same")])

    assert [task.request_id for task in api.service.waiting()] == ["same", "same"]
    assert api.service.balance() == 0


async def test_405_lists_the_allowed_methods(api: Api) -> None:
    """Also for unknown methods."""
    answers = [
        await api.call(method, GENERATIONS, owner=None)
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "BREW")
    ]

    assert {answer.error for answer in answers} == {(405, "METHOD_NOT_ALLOWED")}
    for answer in answers:
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize(
    "target",
    [GENERATIONS, f"{GENERATIONS}/{SOME_ID}", f"{GENERATIONS}/1/cancel", "/api/v1/credits"],
)
async def test_preflight_request_needs_no_token(api: Api, target: str) -> None:
    """Browsers send OPTIONS, without a token, before the request."""
    answer = await api.call(
        "OPTIONS",
        target,
        owner=None,
        headers=[("origin", "https://shop.example"), ("access-control-request-method", "POST")],
    )

    assert (answer.status, answer.body) == (204, b"")


async def test_access_log_line_correlates_the_request(api: Api) -> None:
    """One line per request, with its id, owner, session and status, and without the token."""
    await api.service.accounts.grant(USER, 1, note="test")

    with capture_logs(processors=[merge_request_info]) as lines:
        await api.submit(body=TRY_ON, headers=[("x-request-id", "mine-1")])
        await api.get("/nowhere")

    (submitted, missing) = lines
    (session,) = await api.service.sessions()
    assert (submitted["request_id"], submitted["session_id"]) == ("mine-1", str(session.id))
    assert (submitted["owner"], submitted["status"]) == (str(USER), 202)
    assert (missing["path"], missing["status"]) == ("/nowhere", 404)
    assert "session_id" not in missing
    assert await api.token(USER) not in str(lines)


@pytest.mark.processes
def test_all_log_lines_of_the_api_process_have_the_request_s_id() -> None:
    """Those of our modules and of libraries, as the process configures its logs."""
    code = (
        "import logging, structlog\n"
        "from entrypoints.http.request_info import REQUEST_INFO\n"
        "from entrypoints.http.server import app\n"
        "app()\n"
        "REQUEST_INFO.set({'request_id': 'mine-1'})\n"
        "structlog.get_logger().warning('ours')\n"
        "logging.getLogger('library').warning('theirs')\n"
    )
    environ = os.environ | {
        "DATABASE_URL": "postgresql://127.0.0.1/none",
        "REDIS_URL": "redis://127.0.0.1",
        "WEARON_JWT_SECRET": "signs the tokens of the users: 0123456789",
        "WEARON_SIGNING_SECRET": "signs the links to the pictures: 9876543210",
    }

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["request_id"]) for line in lines] == [
        ("ours", "mine-1"),
        ("theirs", "mine-1"),
    ]


async def test_unexpected_error_is_logged_once(api: Api) -> None:
    """The log has the error and the request's id; the caller gets only the id."""
    with capture_logs(processors=[merge_request_info]) as lines:
        answer = await bug(api)

    errors: list[Any] = [line for line in lines if line["log_level"] == "error"]
    assert [str(line["exc_info"]) for line in errors] == ["a secret detail"]
    assert errors[0]["request_id"] == answer.headers["x-request-id"]
    assert b"secret" not in answer.body
