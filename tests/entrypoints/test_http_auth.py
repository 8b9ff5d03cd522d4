"""Who may call: what the Authorization header must be."""

from uuid import UUID

import pytest

from adapters.auth.bearer import API_KEY_PREFIX
from tests.support.examples import STORE, USER
from tests.support.http import Answer, Api, user_token

pytestmark = pytest.mark.anyio

CREDITS = "/api/v1/credits"
KEY = API_KEY_PREFIX + "0123456789abcdef" * 2


@pytest.fixture
def api() -> Api:
    return Api()


async def called_with(api: Api, *headers: str) -> Answer:
    """The answer to a call with these Authorization headers."""
    return await api.get(
        CREDITS, owner=None, headers=[("authorization", header) for header in headers]
    )


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
async def test_the_scheme_has_no_case(api: Api, scheme: str) -> None:
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
async def test_headers_that_are_refused(api: Api, header: str) -> None:
    """What is not one bearer token gets 401, and is told how to do it."""
    answer = await called_with(api, header)

    assert answer.error == (401, "INVALID_TOKEN")
    assert answer.message == "Send one header 'Authorization: Bearer <token>'"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_two_headers_are_refused(api: Api) -> None:
    """Two Authorization headers could be read in two ways, so they are not read at all, also
    where each alone or both together are good."""
    user, store = [f"Bearer {await api.token(owner)}" for owner in (USER, STORE)]

    twice = await called_with(api, user, user)
    mixed = await called_with(api, user, store)
    joined = await called_with(api, f"{user}, {user}")

    assert twice.error == joined.error == (401, "INVALID_TOKEN")
    assert mixed.error == (401, "INVALID_API_KEY")


@pytest.mark.parametrize("token", [KEY, KEY[:-1], KEY + "=", "wk_", "wk_" + "x" * 10_000])
async def test_what_looks_like_a_key_is_told_so(api: Api, token: str) -> None:
    """The code tells a bad API key from a bad token."""
    answer = await called_with(api, f"Bearer {token}")

    assert answer.error == (401, "INVALID_API_KEY")
    assert token not in answer.message


async def test_a_new_key_is_good_at_once(api: Api) -> None:
    """Keys are looked up where they are kept, and not in a copy from when the process began."""
    before = await api.keys.all(STORE)

    answer = await called_with(api, f"Bearer {await api.new_key(STORE)}")

    assert before == []
    assert answer.data["owner_id"] == STORE.id


async def test_a_revoked_key_is_refused_at_once(api: Api) -> None:
    """The next call after the revocation is not let through."""
    header = f"Bearer {await api.token(STORE)}"
    before = await called_with(api, header)
    (key,) = await api.keys.all(STORE)

    await api.keys.revoke(key.id)

    after = await called_with(api, header)
    assert (before.status, after.error) == (200, (401, "INVALID_API_KEY"))


async def test_a_token_elsewhere_does_not_count(api: Api) -> None:
    """Not in the query, where logs would keep it, and not in a cookie, which browsers send along
    by themselves."""
    token = user_token(USER)

    in_query = await api.get(f"{CREDITS}?access_token={token}&token={token}", owner=None)
    in_cookie = await api.get(CREDITS, owner=None, headers=[("cookie", f"token={token}")])

    assert in_query.error == in_cookie.error == (401, "INVALID_TOKEN")


async def test_a_user_is_not_a_store_of_the_same_id(api: Api) -> None:
    """The channel is part of who somebody is."""
    await api.service.accounts.grant(USER, 5, note="test")
    namesake = type(USER)(channel=STORE.channel, id=str(UUID(USER.id)))

    answer = await api.get(CREDITS, owner=namesake)

    assert (answer.data["channel"], answer.data["balance"]) == ("b2b", 0)
