"""Authentication: the Authorization header."""

from uuid import UUID

import pytest

from adapters.auth.api_keys import API_KEY_PREFIX
from tests.support.examples import STORE, USER
from tests.support.http import Answer, Api, user_token

pytestmark = pytest.mark.anyio

CREDITS = "/api/v1/credits"
KEY = API_KEY_PREFIX + "0123456789abcdef" * 2


@pytest.fixture
def api() -> Api:
    return Api()


async def called_with(api: Api, *headers: str) -> Answer:
    """The response to a request with these Authorization headers."""
    return await api.get(
        CREDITS, owner=None, headers=[("authorization", header) for header in headers]
    )


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
async def test_scheme_is_case_insensitive(api: Api, scheme: str) -> None:
    """RFC 9110, 11.1; and more than one space may follow it."""
    answers = [
        await called_with(api, scheme + user_token(USER)),
        await called_with(api, scheme + await api.token(STORE)),
    ]

    assert [answer.data["owner_id"] for answer in answers] == [USER.id, STORE.id]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Token abc",
        "Bearer a b",
        "Bearer a,b",
        "Bearer \xe4",
        "Bearer a\x00",
        " Bearer a",
        "Bearer\ta",
        "Bearer =",
        "Bearer a=b",
    ],
)
async def test_malformed_headers(api: Api, header: str) -> None:
    """401 with an explanation, unless the header is one bearer token."""
    answer = await called_with(api, header)

    assert answer.error == (401, "INVALID_TOKEN")
    assert answer.message == "Send one header 'Authorization: Bearer <token>'"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_repeated_header_is_rejected(api: Api) -> None:
    """Two Authorization headers are ambiguous, even if each of them is valid."""
    user, store = [f"Bearer {await api.token(owner)}" for owner in (USER, STORE)]

    twice = await called_with(api, user, user)
    mixed = await called_with(api, user, store)
    joined = await called_with(api, f"{user}, {user}")

    assert twice.error == joined.error == (401, "INVALID_TOKEN")
    assert mixed.error == (401, "INVALID_API_KEY")


@pytest.mark.parametrize("token", [KEY, KEY[:-1], KEY + "=", "wk_", "wk_" + "x" * 10_000])
async def test_invalid_api_key_has_its_own_code(api: Api, token: str) -> None:
    """The code distinguishes an invalid API key from an invalid token."""
    answer = await called_with(api, f"Bearer {token}")

    assert answer.error == (401, "INVALID_API_KEY")
    assert token not in answer.message


async def test_new_key_works_immediately(api: Api) -> None:
    """Keys are looked up per request, not loaded when the process starts."""
    before = await api.keys.all(STORE)

    answer = await called_with(api, f"Bearer {await api.new_key(STORE)}")

    assert before == []
    assert answer.data["owner_id"] == STORE.id


async def test_revoked_key_is_rejected_immediately(api: Api) -> None:
    """From the next request on, without a cache."""
    header = f"Bearer {await api.token(STORE)}"
    before = await called_with(api, header)
    (key,) = await api.keys.all(STORE)

    await api.keys.revoke(key.id)

    after = await called_with(api, header)
    assert (before.status, after.error) == (200, (401, "INVALID_API_KEY"))


async def test_token_outside_the_header_is_ignored(api: Api) -> None:
    """In the query, logs would keep it; cookies are sent by browsers automatically."""
    token = user_token(USER)

    in_query = await api.get(f"{CREDITS}?access_token={token}&token={token}", owner=None)
    in_cookie = await api.get(CREDITS, owner=None, headers=[("cookie", f"token={token}")])

    assert in_query.error == in_cookie.error == (401, "INVALID_TOKEN")


async def test_user_and_store_of_the_same_id_are_different_owners(api: Api) -> None:
    """The channel is part of an owner's identity."""
    await api.service.accounts.grant(USER, 5, note="test")
    namesake = type(USER)(channel=STORE.channel, id=str(UUID(USER.id)))

    answer = await api.get(CREDITS, owner=namesake)

    assert (answer.data["channel"], answer.data["balance"]) == ("b2b", 0)
