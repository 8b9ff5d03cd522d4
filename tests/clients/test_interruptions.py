"""What each language has of its own: calls given up, callbacks, functions for tokens."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.clients.drivers import RETRIES, TOKEN, NodeDriver
from tests.clients.fake import Answer, FakeApi, data, error, event, final, session, stream
from wearon_client import AsyncWearon, Retries, Session, Wearon

WORKING, DONE = session(status="processing"), session(status="completed")
HANGING = {
    "request": ("get", Answer(pieces=[b"{"], end="hang")),
    "wait": ("get", error(503, "SERVICE_UNAVAILABLE", Retry_After="4")),
    "stream": ("subscribe", stream(event(1, WORKING), end="hang")),
}
PATIENT = Retries(**RETRIES)
ONE_CONNECTION = httpx2.Limits(max_connections=1)


def target(api: FakeApi, **more: Any) -> dict[str, Any]:
    return {"base_url": api.url, "token": TOKEN, "retries": RETRIES, **more}


@pytest.mark.parametrize(("method", "answer"), HANGING.values(), ids=HANGING)
def test_signal_gives_a_call_up(
    node: NodeDriver, api: FakeApi, method: str, answer: Answer
) -> None:
    """An aborted signal ends a call at once with its reason, whatever the call waits for."""
    api.script(answer)
    limits = RETRIES | {"attempts": 2 if answer.status == 503 else 1}
    given = target(api, retries=limits)
    began = time.monotonic()

    outcome = node.ask(target=given, method=method, args=["s1"], options={"abort_ms": 600})

    assert outcome.refusal["name"] == "TimeoutError"
    assert time.monotonic() - began < 8
    assert len(api.seen) == 1


@pytest.mark.parametrize(("method", "answer"), HANGING.values(), ids=HANGING)
def test_cancellation_gives_a_call_up(api: FakeApi, method: str, answer: Answer) -> None:
    """A cancelled task ends its call at once and leaves no connection open."""
    api.script(answer, data(DONE))
    more = [lambda _: None] if method == "subscribe" else []
    began = time.monotonic()

    async def called() -> Session:
        http = httpx2.AsyncClient(limits=ONE_CONNECTION)
        async with AsyncWearon(api.url, TOKEN, retries=PATIENT, http=http) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.6):
                    await getattr(client, method)("s1", *more)
            return await client.get("s1")

    assert asyncio.run(called()) == DONE
    assert time.monotonic() - began < 8


def test_error_of_a_callback_ends_the_subscription(node: NodeDriver, api: FakeApi) -> None:
    """It is the caller's, and reaches the caller unchanged, in each client. No connection is left
    open."""
    followed = stream(event(1, WORKING), final(), end="hang")
    api.script(followed, data(DONE), followed, followed)
    http = httpx2.Client(limits=ONE_CONNECTION)

    def refuse(state: Session) -> None:
        raise KeyError(state["status"])

    async def subscribed() -> None:
        async with AsyncWearon(api.url, TOKEN) as client:
            await client.subscribe("s1", refuse)

    with Wearon(api.url, TOKEN, retries=PATIENT, http=http) as client:
        with pytest.raises(KeyError):
            client.subscribe("s1", refuse)
        assert client.get("s1") == DONE
    with pytest.raises(KeyError):
        asyncio.run(subscribed())
    outcome = node.ask(target=target(api, refuses="processing"), method="subscribe", args=["s1"])

    assert (outcome.refusal["message"], outcome.updates) == ("refused", [WORKING])
    assert len(api.seen) == 4


def test_callbacks_are_awaited_in_order(node: NodeDriver, api: FakeApi) -> None:
    """A slow callback delays the next state, and is no silence of the stream."""
    states: list[bytes | float] = [event(1, WORKING), 0.05, event(2, session()), 0.05, final()]
    api.script(*[stream(*states)] * 2)
    updates: list[Session] = []

    async def slow(state: Session) -> None:
        await asyncio.sleep(0.5 if state == WORKING else 0)
        updates.append(state)

    async def subscribed() -> None:
        async with AsyncWearon(api.url, TOKEN, idle_seconds=0.3) as client:
            await client.subscribe("s1", slow)

    asyncio.run(subscribed())
    outcome = node.ask(
        target=target(api, first_update_ms=500, idle_seconds=0.3), method="subscribe", args=["s1"]
    )

    assert updates == outcome.updates == [WORKING, session(), DONE]
    assert len(api.seen) == 2


def test_token_may_be_a_function(node: NodeDriver, api: FakeApi) -> None:
    """It is called for each try, so that a token may be renewed; its errors are the caller's."""
    api.script(*[error(503, "SERVICE_UNAVAILABLE"), data(DONE)] * 3)

    def tokens() -> Iterator[str]:
        yield "one"
        yield "two"

    async def got(given: Iterator[str]) -> None:
        async with AsyncWearon(api.url, lambda: next(given), retries=PATIENT) as client:
            await client.get("s1")

    first = tokens()
    with Wearon(api.url, lambda: next(first), retries=PATIENT) as client:
        client.get("s1")
        with pytest.raises(StopIteration):
            client.get("s1")
    asyncio.run(got(tokens()))
    node.ask(target=target(api, tokens=["one", "two"]), method="get", args=["s1"])
    none = node.ask(target=target(api, tokens=[]), method="get", args=["s1"])

    assert [seen.headers["Authorization"] for seen in api.seen] == ["Bearer one", "Bearer two"] * 3
    assert none.refusal["message"] == "no token"
