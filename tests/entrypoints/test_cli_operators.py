"""Commands for the console's operators."""

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from tests.support.cli import Shop, new_shop


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def test_operator_is_added_listed_and_revoked(shop: Shop) -> None:
    """The link is shown once, and neither it nor a hash is listed or logged."""
    added = shop.json("operators", "add", "alice", "--role", "admin", "--by", "boss")
    link = added.pop("link")
    (listed,) = shop.json("operators", "list")
    revoked = shop.run("operators", "revoke", "alice", "--reason", "has left")

    assert link.startswith("http://127.0.0.1:8001/console/link/")
    assert len(link.rpartition("/")[2]) >= 40
    assert added == listed
    assert (listed["name"], listed["role"], listed["state"]) == ("alice", "admin", "invited")
    assert revoked.output == "Revoked.\n"
    assert [operator["state"] for operator in shop.json("operators", "list")] == ["revoked"]
    log = shop.json("operators", "log")
    assert [(entry["action"], entry["subject"]) for entry in log] == [
        ("operator.revoke", "operator:alice"),
        ("operator.invite", "operator:alice"),
    ]
    assert (log[0]["reason"], log[1]["actor"]) == ("has left", "boss")
    assert link.rpartition("/")[2] not in str(log) + str(listed)


def test_texts_of_the_commands(shop: Shop) -> None:
    """Without --json they print lines for people; the log can be one operator's."""
    added = shop.run("operators", "add", "alice", "--role", "viewer")
    listed = shop.run("operators", "list")
    of_alice = shop.run("operators", "log", "--name", "alice")
    everything = shop.run("operators", "log")

    assert "(for alice, viewer; valid once, for 15 minutes)" in added.output
    assert "alice  viewer  invited" in listed.output
    assert "operator.invite" in everything.output
    assert "operator.invite" not in of_alice.output


@pytest.mark.parametrize("name", ["Alice", "developer"])
def test_name_that_no_operator_can_have(shop: Shop, name: str) -> None:
    result = shop.run("operators", "add", name, "--role", "viewer")

    assert result.exit_code == 1
    assert result.output.startswith("Error: name: ")


def test_unknown_operator_is_not_revoked(shop: Shop) -> None:
    result = shop.run("operators", "revoke", "bob")

    assert (result.exit_code, "no operator bob" in result.output) == (1, True)
