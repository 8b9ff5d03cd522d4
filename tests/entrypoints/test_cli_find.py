"""``wearon find``: whatever an operator was given."""

import pytest

from adapters.auth.api_keys import key_sha256
from adapters.auth.client_tokens import new_client_token
from adapters.embedded.postgres import EmbeddedPostgres
from config.container import Container
from domain.account_ports import StoreChange
from tests.support.cli import Shop, new_shop
from tests.support.examples import OPERATOR, STORE, USER, a_token


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def test_session_is_found_by_its_id(shop: Shop) -> None:
    """And shown at once, as `wearon sessions show` does."""
    session = shop.failed()

    found = shop.run("find", session.id)

    assert found.stdout == shop.run("sessions", "show", session.id).stdout
    assert shop.json("find", session.id) == shop.json("sessions", "show", session.id)


def test_session_is_found_by_its_request_id(shop: Shop) -> None:
    """A single hit is shown at once."""
    session = shop.failed(request_id="order-7")

    assert shop.run("find", " order-7 ").stdout == shop.run("sessions", "show", session.id).stdout


def test_sessions_of_one_request_are_listed(shop: Shop) -> None:
    """A batch has one request id."""
    sessions = [str(shop.session(request_id="batch-1").id) for _ in range(2)]

    table = shop.run("find", "batch-1").stdout.splitlines()
    as_json = shop.json("find", "batch-1")

    assert [row.split()[0] for row in table[1:]] == sessions[::-1]
    assert [hit["session"]["session_id"] for hit in as_json["hits"]] == sessions[::-1]


def test_owner_is_found_by_its_id(shop: Shop) -> None:
    """A user or a store: the account and the latest sessions."""
    user, store = shop.session(USER), shop.session(STORE)

    as_json = [shop.json("find", owner.id) for owner in (USER, STORE)]
    shown = shop.run("find", STORE.id).stdout

    assert [page["account"]["owner_id"] for page in as_json] == [USER.id, STORE.id]
    assert [page["sessions"][0]["session_id"] for page in as_json] == [str(user.id), str(store.id)]
    assert "channel" in shown
    assert str(store.id) in shown


def test_key_finds_its_store(shop: Shop) -> None:
    """Valid or revoked; the key itself is not shown."""
    created = shop.json("keys", "create", "--store", STORE.id, "--label", "till 1")

    valid = shop.run("find", created["key"])
    shop.run("keys", "revoke", created["id"])
    revoked = shop.run("find", created["key"])

    assert valid.stdout.startswith(f"API key {created['id']} 'till 1'\n")
    assert revoked.stdout.startswith(f"API key {created['id']} 'till 1', revoked 20")
    assert f"owner_id        {STORE.id}\n" in valid.stdout
    assert created["key"] not in valid.output + revoked.output


def test_client_token_finds_its_shopper(shop: Shop) -> None:
    """And the store that answers for the shopper."""
    secret = new_client_token()
    token = a_token(token_sha256=key_sha256(secret))

    async def add(container: Container) -> None:
        origins = StoreChange(origins=(token.origin,))
        await container.stores().change(STORE.id, origins, by=OPERATOR)
        await container.client_token_repo().add(token, max_live=5)

    shop.do(add)

    found = shop.json("find", secret)

    assert found["found_by"] == f"client token {token.id} of shopper 'anna'"
    assert found["account"]["owner_id"] == STORE.id


def test_service_key_is_named(shop: Shop) -> None:
    """It has no account."""
    created = shop.json("services", "create", "--label", "billing", "--scope", "grants")

    assert shop.run("find", created["key"]).stdout == "service key 'billing'\n"
    assert shop.json("find", created["key"]) == {
        "hits": [{"session": None, "found_by": "service key 'billing'"}]
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "1f2e3d4c-0000-7000-8000-000000000000",
            "Nothing found for '1f2e3d4c-0000-7000-8000-000000000000'."
            " Tried: session id, user id, request id, store id.",
        ),
        ("no-such", "Nothing found for 'no-such'. Tried: request id, store id."),
        ("a b", "Nothing found for 'a b'. Tried: nothing, because it has the form of no id."),
        (
            "\udcff",
            "Nothing found for '\\udcff'. Tried: nothing, because it has the form of no id.",
        ),
        ("wk_" + "0" * 32, "Nothing found for wk_.... Tried: API key."),
        ("wc_" + "0" * 32, "Nothing found for wc_.... Tried: client token."),
        ("wa_" + "0" * 32, "Nothing found for wa_.... Tried: service key."),
    ],
)
def test_what_is_not_found_is_an_error(text: str, line: str, shop: Shop) -> None:
    """With what was tried, and without a key."""
    result = shop.run("find", text)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {line}\n"
