"""Rates over HTTP: the headers, reads, and requests without a valid credential."""

import asyncio
import re
from collections.abc import Sequence
from time import time

import pytest

from adapters.auth.api_keys import new_api_key
from domain.plans import AccountLimits, Plan, PlanRates
from domain.throttle import Throttle
from entrypoints.http.addresses import client_address
from tests.support.clock import loop_time
from tests.support.examples import OTHER, STORE, USER
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

STATS = f"{GENERATIONS}/stats"
TRY_ON = {"model_image_url": "https://images.example.com/person.jpg"}


@pytest.fixture
async def api() -> Api:
    api = Api()
    await api.service.accounts.grant(USER, 100, note="test")
    return api


def limit_submissions(api: Api) -> None:
    rates = {Plan.DEFAULT: PlanRates(submissions_per_minute=2, submissions_per_hour=40)}
    api.service.repo._limits._limits = AccountLimits(rates=rates)


async def test_submissions_carry_their_rates(api: Api) -> None:
    """On every answer to a submission that was counted or refused for its rate."""
    limit_submissions(api)

    answers = [await api.submit(body=TRY_ON) for _ in range(3)]

    assert [answer.status for answer in answers] == [202, 202, 429]
    policy = '"minute";q=2;w=60, "hour";q=40;w=3600'
    assert [answer.headers["ratelimit-policy"] for answer in answers] == [policy] * 3
    first, _, last = (answer.headers for answer in answers)
    assert first["ratelimit"] == '"minute";r=1;t=30, "hour";r=39;t=90'
    assert last["ratelimit"] == '"minute";r=0;t=60, "hour";r=38;t=180'
    assert [first[f"x-ratelimit-{name}"] for name in ("limit", "remaining")] == ["2", "1"]
    assert abs(int(last["x-ratelimit-reset"]) - time() - 60) < 10
    assert last["retry-after"] == "30"
    assert answers[2].error == (429, "RATE_LIMIT_EXCEEDED")
    assert answers[2].message == "At most 2 submissions per minute"


async def test_without_a_limit_there_are_no_rates(api: Api) -> None:
    """A header about a limit that does not exist would mislead."""
    answers = [await api.submit(body=TRY_ON), await api.get(STATS)]

    names = {name for answer in answers for name in answer.headers}
    assert not [name for name in names if "ratelimit" in name and not name.startswith("access-")]


async def test_polling_costs_no_picture(api: Api) -> None:
    """Reads have a rate of their own, for each caller."""
    limit_submissions(api)
    api.door._reads = Throttle(3, name="reads", clock=loop_time)

    mine = [await api.get(STATS) for _ in range(4)]
    others = await api.get(STATS, owner=OTHER)
    submitted = await api.submit(body=TRY_ON)

    assert [answer.status for answer in mine] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in mine] == ["2", "1", "0", "0"]
    assert mine[3].message == "At most 3 reads per minute"
    assert (others.status, submitted.status) == (200, 202)


async def test_strangers_are_limited(api: Api) -> None:
    """Whatever is wrong with their credential; known credentials pass from the same address."""
    api.door._strangers = Throttle(3, name="requests", clock=loop_time)
    api.door._authenticate._cache_seconds = 60  # type: ignore[attr-defined]
    await api.get(STATS, owner=USER)
    bad: Sequence[Sequence[tuple[str, str]]] = [
        [],
        [("authorization", "Basic x")],
        [("authorization", f"Bearer {new_api_key()}")],
        [("authorization", f"Bearer {new_api_key()}")],
    ]

    answers = [await api.get(STATS, owner=None, headers=headers) for headers in bad]
    on_the_fast_path = await api.submit(owner=None, body=TRY_ON)
    unknown = await api.get(STATS, owner=STORE)
    known = await api.get(STATS, owner=USER)

    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    assert re.fullmatch("[0-9]+", answers[3].headers["retry-after"])
    assert on_the_fast_path.error == (429, "RATE_LIMIT_EXCEEDED")
    assert (unknown.status, known.status) == (429, 200)


async def test_strangers_at_once_are_limited(api: Api) -> None:
    """Requests that arrive together count each other; a valid credential counts nothing."""
    api.door._strangers = Throttle(3, name="requests", clock=loop_time)
    guessed = [[("authorization", f"Bearer {new_api_key()}")] for _ in range(9)]

    for _ in range(5):
        assert (await api.get(STATS, owner=USER)).status == 200
    answers = await asyncio.gather(
        *(api.get(STATS, owner=None, headers=headers) for headers in guessed)
    )

    assert sorted(answer.status for answer in answers) == [401] * 3 + [429] * 6


async def test_database_is_not_asked_for_strangers(api: Api) -> None:
    """Beyond the rate, guessed keys cost no look-up."""
    api.door._strangers = Throttle(1, name="requests", clock=loop_time)
    await api.get(STATS, owner=None)
    api.keys.faults.away.add("caller_of")

    answer = await api.get(STATS, owner=STORE)

    assert answer.error == (429, "RATE_LIMIT_EXCEEDED")


async def test_outage_makes_nobody_a_stranger(api: Api) -> None:
    """While keys cannot be looked up, the answer stays 503, and their callers are let in after."""
    api.door._strangers = Throttle(2, name="requests", clock=loop_time)
    api.keys.faults.away.add("caller_of")
    during = [(await api.get(STATS, owner=STORE)).status for _ in range(5)]
    api.keys.faults.away.clear()

    assert during == [503] * 5
    assert (await api.get(STATS, owner=STORE)).status == 200


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ([], 0, "192.0.2.1"),
        (["198.51.100.7"], 0, "192.0.2.1"),
        ([], 1, "192.0.2.1"),
        (["198.51.100.7"], 1, "198.51.100.7"),
        (["forged, 198.51.100.7"], 1, "198.51.100.7"),
        (["forged", "203.0.113.5, 198.51.100.7"], 2, "203.0.113.5"),
        (["198.51.100.7"], 2, "192.0.2.1"),
        (["forged"], 1, ""),
        (["2001:db8:1:2:3:4:5:6"], 1, "2001:db8:1:2::"),
        (["[2001:db8:1:2:ffff::]"], 1, "2001:db8:1:2::"),
        (["::ffff:198.51.100.7"], 1, "198.51.100.7"),
        (["198.51.100.7:4711"], 1, "198.51.100.7"),
        (["[2001:db8:1:2:ffff::]:4711"], 1, "2001:db8:1:2::"),
    ],
)
def test_address_of_a_client(forwarded: list[str], proxies: int, address: str) -> None:
    """Only what trusted proxies wrote counts; an IPv6 network counts as one address."""
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"headers": headers, "client": ("192.0.2.1", 1)}

    assert client_address(scope, trusted_proxies=proxies) == address  # type: ignore[arg-type]
