"""Every client makes the calls of the API, and tries again what can succeed later."""

import time

import pytest

from tests.clients.drivers import TOKEN, Driver, at_once
from tests.clients.fake import CUT, GENERATIONS, Answer, FakeApi, data, error, session

REQUEST = {"model_image_url": "https://images.example.com/person.jpg"}
SUBMITTED = {"session_id": "s1", "status": "queued", "status_url": f"{GENERATIONS}/s1"}
DONE = session(status="completed", channel="b2b", generated_image_url="https://x.example/p")
PNG = b"\x89PNG\r\n\x1a\n...."


def test_submission_is_a_post_with_token_and_key(client: Driver, api: FakeApi) -> None:
    """A submission carries the caller's token, a generated key and the request as it is, and
    returns the data with fields that the client does not know."""
    api.script(data({**SUBMITTED, "new_field": 1}, 202))

    outcome = client.call(api.url, "submit", REQUEST)

    (seen,) = api.seen
    assert outcome.result == {**SUBMITTED, "new_field": 1}
    assert (seen.method, seen.path, seen.json) == ("POST", GENERATIONS, REQUEST)
    assert seen.headers["Authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["Content-Type"] == "application/json"
    assert len(seen.headers["Idempotency-Key"]) >= 32
    assert "Prefer" not in seen.headers


@pytest.mark.parametrize(
    "fault",
    [
        CUT,
        Answer(pieces=[b'{"data": {"sess'], end="cut"),
        error(503, "SERVICE_UNAVAILABLE", Retry_After="0"),
        error(503, "SERVICE_UNAVAILABLE"),
        error(429, "TOO_MANY_ACTIVE", Retry_After="0"),
        error(429, "A_CODE_OF_TOMORROW"),
        error(409, "CONFLICT", Retry_After="0"),
        Answer(status=503, pieces=[b"<html>a proxy</html>"]),
    ],
    ids=["no answer", "half an answer", "503 after", "503", "429", "429 new", "409", "proxy"],
)
def test_all_tries_carry_one_key(client: Driver, api: FakeApi, fault: Answer) -> None:
    """What can succeed later is tried again, with the key and the body of the first try."""
    api.script(fault, fault, data(SUBMITTED, 202))

    outcome = client.call(api.url, "submit", REQUEST)

    assert outcome.result == SUBMITTED
    assert [seen.json for seen in api.seen] == [REQUEST] * 3
    assert len({seen.headers["Idempotency-Key"] for seen in api.seen}) == 1


def test_calls_have_keys_of_their_own(client: Driver, api: FakeApi) -> None:
    """Two submissions have two keys, and a given key is used."""
    api.script(*[data(SUBMITTED, 202)] * 3)

    client.call(api.url, "submit", REQUEST)
    client.call(api.url, "submit", REQUEST)
    client.call(api.url, "submit", REQUEST, idempotency_key="mine")

    keys = [seen.headers["Idempotency-Key"] for seen in api.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "VALIDATION_ERROR"),
        (402, "INSUFFICIENT_CREDITS"),
        (409, "CONFLICT"),
        (422, "IDEMPOTENCY_KEY_REUSED"),
        (500, "INTERNAL_ERROR"),
        (418, "A_CODE_OF_TOMORROW"),
    ],
)
def test_refusals_are_errors_at_once(client: Driver, api: FakeApi, status: int, code: str) -> None:
    """Anything else is an error with its status, code, message and request id, after one try."""
    api.script(error(status, code))

    refusal = client.call(api.url, "submit", REQUEST, idempotency_key="k").refusal

    assert len(api.seen) == 1
    assert refusal["name"] == "ApiError"
    assert (refusal["status"], refusal["code"]) == (status, code)
    assert f"{code} it is" in refusal["message"]
    assert refusal["request_id"] == "req_1"
    assert refusal["idempotency_key"] == "k"


def test_redirects_are_not_followed(client: Driver, api: FakeApi) -> None:
    """A redirect is an error: the token goes to the API only."""
    api.script(Answer(status=302, headers={"Location": f"{api.url}/elsewhere"}))

    refusal = client.call(api.url, "get", "s1").refusal

    assert (refusal["status"], refusal["code"]) == (302, "UNKNOWN")
    assert len(api.seen) == 1


def test_retry_after_is_awaited(clients: list[Driver]) -> None:
    """The next try begins no sooner than the response says."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(error(503, "SERVICE_UNAVAILABLE", Retry_After="1"), data(SUBMITTED, 202))

        outcome = client.call(api.url, "submit", REQUEST)

        first, second = api.seen
        assert outcome.result == SUBMITTED
        assert second.at - first.at >= 0.95

    at_once(clients, check)


def test_tries_are_bounded_in_number(client: Driver, api: FakeApi) -> None:
    """The last failure is the error, with the key that the caller may try again with."""
    api.script(*[CUT] * 3, error(503, "SERVICE_UNAVAILABLE", Retry_After="0"))

    refusal = client.call(api.url, "submit", REQUEST).refusal

    assert (refusal["name"], refusal["status"], len(api.seen)) == ("ApiError", 503, 4)
    assert refusal["retry_after_seconds"] == 0
    assert refusal["idempotency_key"] == api.seen[0].headers["Idempotency-Key"]


def test_tries_are_bounded_in_time(client: Driver, api: FakeApi) -> None:
    """A Retry-After beyond the limit is an error at once."""
    api.script(error(429, "RATE_LIMIT_EXCEEDED", Retry_After="60"))
    began = time.monotonic()

    refusal = client.call(api.url, "get", "s1").refusal

    assert (refusal["status"], refusal["retry_after_seconds"]) == (429, 60)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("pieces", [[b"{"], [b"{", *[0.1, b" "] * 100]], ids=["silent", "slow"])
def test_endless_response_is_given_up(clients: list[Driver], pieces: list[bytes | float]) -> None:
    """A response that never ends counts against the time of all tries, also if it goes on."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(*[Answer(pieces=pieces, end="hang")] * 4)
        began = time.monotonic()

        refusal = client.call(api.url, "get", "s1", retries={"total_seconds": 0.3}).refusal

        assert refusal["name"] == "ConnectionFailed"
        assert time.monotonic() - began < 8

    at_once(clients, check)


def test_success_without_an_envelope_is_an_error(client: Driver, api: FakeApi) -> None:
    """A page of a proxy with status 200 is no session; the API may answer again later."""
    api.script(*[Answer(pieces=[b"<html>log in</html>"])] * 4)

    assert client.call(api.url, "get", "s1").refusal["name"] == "ConnectionFailed"


def test_get_names_the_session(client: Driver, api: FakeApi) -> None:
    """An id is one segment of the path, whatever it contains; unknown statuses are returned."""
    api.script(data(session(status="a status of tomorrow")))

    outcome = client.call(api.url, "get", "../a?b")

    assert outcome.result["status"] == "a status of tomorrow"
    assert api.seen[0].path == f"{GENERATIONS}/..%2Fa%3Fb"


def test_list_passes_its_filters(client: Driver, api: FakeApi) -> None:
    """Only the given filters are sent."""
    page = {"items": [DONE], "next_cursor": "c=2"}
    api.script(data(page), data(page))

    outcome = client.call(api.url, "list")
    client.call(api.url, "list", status="failed", limit=5, cursor="c=1&")

    assert outcome.result == page
    assert api.seen[0].path == f"{GENERATIONS}?limit=20"
    path, _, query = api.seen[1].path.partition("?")
    assert path == GENERATIONS
    assert set(query.split("&")) == {"status=failed", "limit=5", "cursor=c%3D1%26"}


def test_cancellation_is_repeatable(client: Driver, api: FakeApi) -> None:
    """A repetition after a lost response finds the session cancelled: a success. A session that
    ended otherwise is a 409."""
    cancelled = session(status="failed", error_code="CANCELLED")
    api.script(CUT, error(409, "CONFLICT"), data(cancelled))
    again = client.call(api.url, "cancel", "s1")
    api.script(error(409, "CONFLICT"), data(DONE))
    late = client.call(api.url, "cancel", "s1")

    assert again.result == cancelled
    assert late.refusal["status"] == 409
    assert [seen.method for seen in api.seen] == ["POST", "POST", "GET", "POST", "GET"]
    assert api.seen[0].path == f"{GENERATIONS}/s1/cancel"


def test_requested_cancellation_is_a_success(client: Driver, api: FakeApi) -> None:
    """202: the worker was told."""
    api.script(data(session(status="processing"), 202))

    assert client.call(api.url, "cancel", "s1").result["status"] == "processing"


def test_upload_sends_the_bytes_without_the_token(client: Driver, api: FakeApi) -> None:
    """The type follows from the bytes; the link is the credential, and a lost try is repeated."""
    offer = {
        "upload_url": f"{api.url}/uploads/1.png?signature=x",
        "method": "PUT",
        "headers": {"Content-Type": "image/png"},
        "image_url": "https://api.example/files/1.png",
    }
    api.script(data(offer, 201), CUT, data({"bytes": 4}))

    outcome = client.call(api.url, "upload", PNG)

    asked, *puts = api.seen
    assert outcome.result == offer["image_url"]
    assert asked.json == {"content_type": "image/png"}
    for put in puts:
        assert (put.method, put.path, put.body) == ("PUT", "/uploads/1.png?signature=x", PNG)
        assert put.headers["Content-Type"] == "image/png"
        assert "Authorization" not in put.headers


def test_batch_returns_each_items_answer(client: Driver, api: FakeApi) -> None:
    """All tries of a batch carry one key, from which items without a key get theirs."""
    items = [
        {"status": 202, "data": SUBMITTED, "error": None},
        {"status": 402, "data": None, "error": {"code": "INSUFFICIENT_CREDITS", "message": "m"}},
    ]
    asked = [REQUEST, {**REQUEST, "idempotency_key": "mine"}]
    api.script(CUT, data({"items": items}, 202))

    outcome = client.call(api.url, "submit_batch", asked)

    assert outcome.result == items
    assert [seen.path for seen in api.seen] == [f"{GENERATIONS}/batch"] * 2
    assert [seen.json for seen in api.seen] == [{"items": asked}] * 2
    assert len({seen.headers["Idempotency-Key"] for seen in api.seen}) == 1


def test_submission_is_awaited_by_the_service(clients: list[Driver]) -> None:
    """The service is asked to wait, first on the submission, then on the session, until the
    session is final; a lost wait is repeated."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(data(SUBMITTED, 202), CUT, data(session(status="processing")), data(DONE))

        outcome = client.call(api.url, "submit_and_wait", REQUEST, timeout_seconds=10.3)

        assert outcome.result == DONE
        assert [(seen.method, seen.path) for seen in api.seen] == [
            ("POST", GENERATIONS),
            *[("GET", f"{GENERATIONS}/s1")] * 3,
        ]
        first, second = (int(one.headers["Prefer"].removeprefix("wait=")) for one in api.seen[:2])
        assert 9 >= first >= second >= 1, "half a second of the time is left for the way back"
        # A second from the start of one request to the next; the first may have arrived late.
        assert api.seen[3].at - api.seen[2].at >= 0.5, "a service that does not wait is not flooded"

    at_once(clients, check)


def test_final_answer_to_a_submission_is_enough(client: Driver, api: FakeApi) -> None:
    """A 200 to the submission is the final session. The longest wait is a minute."""
    api.script(data(DONE, 200, Preference_Applied="wait=60"))

    outcome = client.call(api.url, "submit_and_wait", REQUEST)

    assert outcome.result == DONE
    assert api.seen[0].headers["Prefer"] == "wait=60"


def test_replayed_submission_is_read(client: Driver, api: FakeApi) -> None:
    """A 202 is never the final session, whatever its status: it has other fields."""
    api.script(data({**SUBMITTED, "status": "completed"}, 202), data(DONE))

    assert client.call(api.url, "submit_and_wait", REQUEST).result == DONE


def test_wait_ends_in_time(clients: list[Driver]) -> None:
    """The caller's timeout is an error with the session's id and its last state."""

    def check(client: Driver, api: FakeApi) -> None:
        state = session(status="processing")
        api.script(data(SUBMITTED, 202), data(state))
        began = time.monotonic()

        refusal = client.call(api.url, "submit_and_wait", REQUEST, timeout_seconds=0.9).refusal

        assert (refusal["name"], refusal["session_id"]) == ("WaitTimeout", "s1")
        assert refusal["last"] == state
        assert time.monotonic() - began < 8
        assert all("Prefer" not in seen.headers for seen in api.seen)

    at_once(clients, check)


def test_failed_wait_names_the_session(client: Driver, api: FakeApi) -> None:
    """An error after the submission tells which session goes on."""
    api.script(data(SUBMITTED, 202), error(401, "INVALID_TOKEN"))

    refusal = client.call(api.url, "submit_and_wait", REQUEST).refusal

    assert (refusal["code"], refusal["session_id"]) == ("INVALID_TOKEN", "s1")
