"""Every client follows sessions to their end: through lost connections, repeated and old states,
and streams in any split of the bytes."""

import time
from typing import Any

import pytest

from tests.clients.drivers import OPENED, Driver, at_once
from tests.clients.fake import (
    CUT,
    FINAL_REVISION,
    GENERATIONS,
    Answer,
    FakeApi,
    error,
    event,
    final,
    session,
    stream,
)

QUEUED = session(status="queued")
WORKING = session(status="processing")
DONE = session(status="completed")
PING = b": ping\n\n"


def test_each_new_state_is_delivered_once(client: Driver, api: FakeApi) -> None:
    """States come in order, the final one included, and the final one is returned."""
    api.script(stream(event(1, QUEUED), PING, event(2, WORKING), final()))

    outcome = client.call(api.url, "subscribe", "s1")

    (seen,) = api.seen
    assert outcome.updates == [QUEUED, WORKING, DONE]
    assert outcome.result == DONE
    assert seen.path == f"{GENERATIONS}/s1/events"
    assert seen.headers["Accept"] == "text/event-stream"
    assert seen.headers["Authorization"].startswith("Bearer ")
    assert "Last-Event-ID" not in seen.headers


def test_stream_need_not_be_closed_by_the_service(client: Driver, api: FakeApi) -> None:
    """The final state ends the subscription at once."""
    api.script(stream(final(), end="hang"))
    began = time.monotonic()

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.result == DONE
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("end", ["whole", "cut"])
def test_stream_is_resumed_after_the_newest_state(client: Driver, api: FakeApi, end: str) -> None:
    """A connection that ends, within an event too, is made again with the newest revision. Half an
    event is no event."""
    half = event(4, WORKING)[:-20]
    api.script(
        stream(event(1, QUEUED), PING, event(2, WORKING), half, end=end), CUT, stream(final())
    )

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.updates == [QUEUED, WORKING, DONE]
    resumed = [seen.headers["Last-Event-ID"] for seen in api.seen]
    assert resumed == [None, "2", "2"]


def test_old_and_repeated_states_are_not_delivered(client: Driver, api: FakeApi) -> None:
    """A state counts only if its revision is above the newest one, across connections too."""
    api.script(
        stream(event(2, WORKING), event(2, WORKING), event(1, QUEUED)),
        stream(event(1, QUEUED), event(2, WORKING), event(3, QUEUED), final(), event(1, QUEUED)),
    )

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.updates == [WORKING, QUEUED, DONE]


@pytest.mark.parametrize(
    "noise",
    [
        event(9, DONE).replace(b"generation", b"of_tomorrow"),
        event(9, DONE).replace(b"event: generation\n", b""),
        event(9, session("another", "processing")),
        event(9, session("another", "completed")),
        event(9, DONE).replace(b"id: 9\n", b""),
        event(9, DONE).replace(b"id: 9", b"id: nine"),
        event(9, DONE).replace(b"id: 9", b"id: -9"),
        b"field-of-tomorrow: 1\n\n",
    ],
    ids=["event", "message", "session", "final session", "no id", "odd id", "negative", "field"],
)
def test_unknown_events_are_ignored(client: Driver, api: FakeApi, noise: bytes) -> None:
    """What the client does not know changes nothing, not even where it resumes."""
    state = session(status="a status of tomorrow", new_field=[1])
    api.script(stream(event(3, state), noise, event(4, WORKING)), stream(final()))

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.updates == [state, WORKING, DONE]
    assert api.seen[1].headers["Last-Event-ID"] == "4"


@pytest.mark.parametrize("broken", [b"{", b"[]", b"null", b'{"status": "completed"}'])
def test_unreadable_state_is_asked_for_again(client: Driver, api: FakeApi, broken: bytes) -> None:
    """A state that is no session is neither delivered nor lost."""
    api.script(
        stream(event(1, QUEUED), b"event: generation\nid: 7\ndata: " + broken + b"\n\n"),
        stream(final()),
    )

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.updates == [QUEUED, DONE]
    assert api.seen[1].headers["Last-Event-ID"] == "1"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_states_arrive_in_any_split(client: Driver, api: FakeApi, line_end: bytes) -> None:
    """Single bytes, with parts of characters and of line ends, make the same states. A CR
    completes the final state, although a LF might follow."""
    state = session(status="processing", prompt="größer 👗 \u2028")
    whole = b"\xef\xbb\xbf: hello\n\nretry: 10\n\n" + event(2, state) + final()
    text = whole.replace(b"\n", line_end).replace(b"\\u2028", "\u2028".encode())
    api.script(stream(*(bytes([byte]) for byte in text), end="hang"))

    outcome = client.call(api.url, "subscribe", "s1")

    assert outcome.updates == [state, DONE]


def test_refusal_with_retry_after_is_awaited(client: Driver, api: FakeApi) -> None:
    """Too many streams, or an outage: the stream is asked for again."""
    api.script(
        error(429, "RATE_LIMIT_EXCEEDED", Retry_After="0"),
        error(503, "SERVICE_UNAVAILABLE", Retry_After="0"),
        CUT,
        stream(final()),
    )

    assert client.call(api.url, "subscribe", "s1").updates == [DONE]


def test_refused_stream_is_an_error(client: Driver, api: FakeApi) -> None:
    """An unknown session, or a token that has expired in the meantime."""
    api.script(stream(event(1, QUEUED)), error(404, "NOT_FOUND"))

    outcome = client.call(api.url, "subscribe", "s1")

    assert (outcome.refusal["code"], outcome.updates) == ("NOT_FOUND", [QUEUED])


def test_streams_that_send_nothing_are_bounded(clients: list[Driver]) -> None:
    """A stream without even a ping is given up after the idle time, and a service that never
    sends anything is an error after as many tries as any other."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(*[stream(end="hang")] * 4)
        began = time.monotonic()

        outcome = client.call(api.url, "subscribe", "s1", idle_seconds=0.2)

        assert outcome.refusal["name"] == "ConnectionFailed"
        assert len(api.seen) == 4
        assert time.monotonic() - began < 8

    at_once(clients, check)


def test_silent_stream_is_resumed(clients: list[Driver]) -> None:
    """A stream that falls silent after a state is made again, and resumes."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(stream(event(2, WORKING), end="hang"), stream(final()))

        outcome = client.call(api.url, "subscribe", "s1", idle_seconds=0.6)

        assert outcome.updates == [WORKING, DONE]
        assert api.seen[1].headers["Last-Event-ID"] == "2"

    at_once(clients, check)


def test_pings_keep_a_stream(clients: list[Driver]) -> None:
    """Comments count as life."""

    def check(client: Driver, api: FakeApi) -> None:
        pings: list[bytes | float] = [piece for _ in range(6) for piece in (PING, 0.25)]
        api.script(stream(event(2, WORKING), *pings, final()))

        outcome = client.call(api.url, "subscribe", "s1", idle_seconds=1.0)

        assert outcome.updates == [WORKING, DONE]
        assert len(api.seen) == 1

    at_once(clients, check)


def test_short_streams_do_not_use_up_the_tries(client: Driver, api: FakeApi) -> None:
    """A proxy that cuts off every stream soon is no outage while streams open."""
    api.script(*[stream(PING)] * 9, stream(final()))

    assert client.call(api.url, "subscribe", "s1").updates == [DONE]


def test_service_says_when_to_reconnect(clients: list[Driver]) -> None:
    """`retry` is the least time to the next connection."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(stream(b"retry: 600\n\n", event(2, WORKING)), stream(final()))

        outcome = client.call(api.url, "subscribe", "s1")

        first, second = api.seen
        assert outcome.updates == [WORKING, DONE]
        assert second.at - first.at >= 0.59

    at_once(clients, check)


def test_subscription_ends_in_time(clients: list[Driver]) -> None:
    """The caller's timeout is an error with the session's last state."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(stream(event(2, WORKING), end="hang"))
        began = time.monotonic()

        refusal = client.call(api.url, "subscribe", "s1", timeout_seconds=0.8).refusal

        assert (refusal["name"], refusal["session_id"]) == ("WaitTimeout", "s1")
        assert refusal["last"] == WORKING
        assert time.monotonic() - began < 8

    at_once(clients, check)


@pytest.mark.parametrize("method", ["subscribe", "subscribe_all"])
def test_pings_do_not_put_off_the_end(clients: list[Driver], method: str) -> None:
    """The caller's time is over within a second, although a ping came shortly before, and the
    next one would be long after."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(stream(event(2, WORKING), 1.6, PING, end="hang"))
        of_one = ["s1"] if method == "subscribe" else []
        began = time.monotonic()

        outcome = client.call(api.url, method, *of_one, timeout_seconds=2.0, idle_seconds=9.0)

        assert 1.9 < time.monotonic() - began < 3.0
        assert WORKING in outcome.updates
        if method == "subscribe":
            assert outcome.refusal["name"] == "WaitTimeout"
        else:
            assert outcome.error is None

    at_once(clients, check)


def test_all_sessions_are_followed(clients: list[Driver]) -> None:
    """Every state is delivered, also of sessions that end, until the time is over. A connection
    that is lost or refused for now is made again without resuming, and each open one is told."""

    def check(client: Driver, api: FakeApi) -> None:
        first, second = session("a", "processing"), session("b", "completed")
        api.script(
            stream(event(2, first), PING, event(4, second), b"event: other\ndata: {}\n\n"),
            error(503, "SERVICE_UNAVAILABLE", Retry_After="0"),
            stream(final("a"), b"event: generation\nid: 7\ndata: []\n\n", end="hang"),
            stream(end="hang"),
        )

        outcome = client.call(api.url, "subscribe_all", timeout_seconds=1.5)

        done = session("a", "completed")
        assert outcome.error is None
        assert outcome.updates == [OPENED, first, second, OPENED, done, OPENED]
        assert {seen.path for seen in api.seen} == {"/api/v1/events"}
        assert {seen.headers["Last-Event-ID"] for seen in api.seen} == {None}

    at_once(clients, check)


def test_refused_stream_of_all_sessions_is_an_error(client: Driver, api: FakeApi) -> None:
    api.script(error(401, "INVALID_TOKEN"))

    outcome = client.call(api.url, "subscribe_all")

    assert (outcome.refusal["code"], outcome.updates) == ("INVALID_TOKEN", [])


def test_later_retry_is_a_timeout(clients: list[Driver]) -> None:
    """A Retry-After beyond the caller's time is awaited no longer than that."""

    def check(client: Driver, api: FakeApi) -> None:
        api.script(error(503, "SERVICE_UNAVAILABLE", Retry_After="9"))
        began = time.monotonic()

        refusal = client.call(api.url, "subscribe", "s1", timeout_seconds=0.5).refusal

        assert refusal["name"] == "WaitTimeout"
        assert time.monotonic() - began < 8

    at_once(clients, check)


def test_several_sessions_share_a_stream(client: Driver, api: FakeApi) -> None:
    """Each session has its own revision, and only unfinished ones are asked for again: several by
    their ids, one by its own stream."""
    ids = ["a", "b", "c"]
    working: dict[str, Any] = {name: session(name, "processing") for name in ids}
    api.script(
        stream(event(9, working["a"]), event(2, working["b"]), final("a")),
        stream(event(2, working["b"]), final("b"), event(4, working["c"])),
        stream(final("c")),
    )

    outcome = client.call(api.url, "subscribe_many", ids)

    done = {name: session(name, "completed") for name in ids}
    assert outcome.updates == [
        working["a"], working["b"], done["a"], done["b"], working["c"], done["c"]
    ]  # fmt: skip
    assert outcome.result == done
    assert [seen.path for seen in api.seen] == [
        "/api/v1/events?ids=a%2Cb%2Cc",
        "/api/v1/events?ids=b%2Cc",
        f"{GENERATIONS}/c/events",
    ]
    assert [seen.headers["Last-Event-ID"] for seen in api.seen] == [None, None, "4"]


def test_no_session_is_no_request(client: Driver, api: FakeApi) -> None:
    """Nothing to follow."""
    assert client.call(api.url, "subscribe_many", []).result == {}
    assert api.seen == []


def test_endless_event_is_given_up(client: Driver, api: FakeApi) -> None:
    """An event has a largest size: the stream is given up, and asked for again."""
    endless = Answer(pieces=[b"data: " + b"x" * 2**20], end="hang")
    api.script(endless, stream(final()))
    began = time.monotonic()

    assert client.call(api.url, "subscribe", "s1").updates == [DONE]
    assert time.monotonic() - began < 8


def test_largest_revision_is_exact(client: Driver, api: FakeApi) -> None:
    """The final revision is above every other one."""
    api.script(stream(event(FINAL_REVISION - 1, WORKING)), stream(final()))

    assert client.call(api.url, "subscribe", "s1").updates == [WORKING, DONE]
    assert api.seen[1].headers["Last-Event-ID"] == str(FINAL_REVISION - 1)


def test_service_knows_what_is_final(client: Driver, api: FakeApi) -> None:
    """204: nothing newer will come, although the client does not know the status as a final one."""
    state = session(status="a status of tomorrow")
    api.script(stream(event(FINAL_REVISION, state)), Answer(status=204))

    outcome = client.call(api.url, "subscribe", "s1")

    assert (outcome.result, outcome.updates) == (state, [state])
    assert api.seen[1].headers["Last-Event-ID"] == str(FINAL_REVISION)
