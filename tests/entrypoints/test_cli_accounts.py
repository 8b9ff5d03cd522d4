"""The commands that manage accounts, stores and keys, and what they leave in the audit log."""

import getpass
import json
import os
from typing import Any

import pytest

from adapters.auth.api_keys import key_sha256
from adapters.embedded.postgres import EmbeddedPostgres
from domain.callers import Scope, Service
from tests.support.cli import Shop, new_shop, wearon
from tests.support.examples import STORE, USER

USER_HERE = f"cli:{getpass.getuser()}"
NOBODY = {"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/nothing"}


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def last_action(shop: Shop) -> dict[str, Any]:
    (action,) = shop.json("audit", "list", "--limit", 1)
    return dict(action)


def test_store_is_created_once(shop: Shop) -> None:
    """Repeating the command says so; another store with the id is an error."""
    command = ("stores", "create", "corner-shop", "--name", "Corner Shop", "--plan", "growth",
               "--origin", "HTTPS://Shop.example:443")  # fmt: skip
    first = shop.run(*command)
    again = shop.json(*command)
    other = shop.run("stores", "create", "corner-shop", "--name", "Other")
    shown = shop.json("stores", "show", "corner-shop")

    assert (first.exit_code, first.stdout) == (0, "Created: corner-shop\n")
    assert again == {**shown, "replayed": True}
    assert (other.exit_code, other.stderr) == (
        1, "Error: There is another store with the id corner-shop\n"
    )  # fmt: skip
    assert (shown["name"], shown["plan"], shown["origins"]) == (
        "Corner Shop", "growth", ["https://shop.example"]
    )  # fmt: skip


def test_stores_are_listed(shop: Shop) -> None:
    """Ordered by id, up to the limit; one is shown with its origins."""
    shop.run("stores", "origins", STORE.id, "--add", "https://a.example")
    listed = shop.run("stores", "list").stdout.splitlines()
    first = shop.json("stores", "list", "--limit", 1)
    shown = shop.run("stores", "show", STORE.id).stdout.splitlines()

    assert listed[0].split() == ["ID", "NAME", "PLAN", "ORIGINS", "CREATED", "(UTC)"]
    assert [line.split()[:4] for line in listed[1:]] == [
        ["store-1", "store-1", "default", "1"],
        ["store-2", "store-2", "default", "0"],
    ]
    assert [store["id"] for store in first] == ["store-1"]
    assert shown[-1].split() == ["origins[0]", "https://a.example"]


def test_origins_of_a_store(shop: Shop) -> None:
    """Added, removed, replaced and shown; a wrong one is named."""
    origins = ("stores", "origins", STORE.id)
    added = shop.json(*origins, "--add", "https://b.example", "--add", "https://a.example")
    removed = shop.json(*origins, "--remove", "https://A.example")
    shown = shop.run(*origins)
    replaced = shop.json(*origins, "--set", "http://localhost:3000")
    wrong = shop.run(*origins, "--add", "http://shop.example")

    assert added == ["https://a.example", "https://b.example"]
    assert removed == ["https://b.example"]
    assert shown.stdout == "ORIGIN\nhttps://b.example\n"
    assert replaced == ["http://localhost:3000"]
    assert wrong.exit_code == 1
    assert "origins: http://shop.example must begin with https://" in wrong.stderr
    assert last_action(shop)["details"]["origins"] == ["http://localhost:3000"]


def test_store_is_renamed(shop: Shop) -> None:
    """Its id and its origins stay."""
    renamed = shop.json("stores", "rename", STORE.id, "Boutique")

    assert (renamed["id"], renamed["name"]) == (STORE.id, "Boutique")
    assert shop.json("stores", "show", STORE.id) == renamed


def test_grant_with_a_reference(shop: Shop) -> None:
    """Booked once; the second time says so, and another amount is an error."""
    command = ("credits", "grant", "--store", STORE.id, 40, "--reference", "invoice-1")
    first = shop.run(*command)
    again = shop.run(*command)
    as_json = shop.json(*command)
    other = shop.run("credits", "grant", "--store", STORE.id, 41, "--reference", "invoice-1")
    balance = shop.run("credits", "balance", "--store", STORE.id).stdout

    assert first.stdout == "b2b:store-1 now has 40 credit(s)\n"
    assert again.stdout.splitlines()[1] == (
        f"Nothing was booked: entry {as_json['entry_id']} has this reference already."
    )
    assert (as_json["balance"], as_json["replayed"]) == (40, True)
    assert (other.exit_code, other.stderr) == (
        1, "Error: The reference invoice-1 belongs to another entry\n"
    )  # fmt: skip
    assert balance.count("invoice-1") == 1


def test_adjustment(shop: Shop) -> None:
    """All or nothing, with its reason; the books stay right."""
    shop.run("credits", "grant", "--user", USER.id, 10)
    taken = shop.json("credits", "adjust", "--user", USER.id, 4, "--reason", "a typo")
    too_much = shop.run("credits", "adjust", "--user", USER.id, 7, "--reason", "a typo")
    balance = shop.run("credits", "balance", "--user", USER.id).stdout.splitlines()
    verified = shop.run("credits", "verify")

    assert (taken["balance"], taken["total_adjusted"]) == (6, -4)
    assert (too_much.exit_code, too_much.stderr) == (
        1, "Error: Only 6 credit(s) are left; nothing was taken\n"
    )  # fmt: skip
    assert balance[2].split()[1:3] == ["adjustment", "-4"]
    assert "a typo" in balance[2]
    assert verified.exit_code == 0


def test_owner_is_suspended_and_resumed(shop: Shop) -> None:
    """Users without an account too."""
    suspended = shop.json("owners", "suspend", "--user", USER.id, "--reason", "abuse")
    shown = shop.run("owners", "show", "--user", USER.id).stdout
    resumed = shop.json("owners", "resume", "--user", USER.id)

    assert (suspended["suspended"], resumed["suspended"]) == (True, False)
    assert dict(line.split(maxsplit=1) for line in shown.splitlines())["suspended"] == "True"


def test_plan_of_an_owner(shop: Shop) -> None:
    """Shown with the account, and with the store."""
    changed = shop.json("owners", "plan", "--store", STORE.id, "scale")

    assert changed["plan"] == "scale"
    assert shop.json("owners", "show", "--store", STORE.id) == changed
    assert shop.json("stores", "show", STORE.id)["plan"] == "scale"


def test_keys_are_listed_by_how_they_begin(shop: Shop) -> None:
    """So that people can tell them apart."""
    created = shop.json("keys", "create", "--store", STORE.id)
    (row,) = shop.run("keys", "list").stdout.splitlines()[1:]

    assert row.split()[2] == f"{created['key'][:9]}…"
    assert created["prefix"] == created["key"][:9]


def test_service_key(shop: Shop) -> None:
    """Shown once; it works until it is revoked, which is an error the second time."""
    create = ("services", "create", "--label", "billing", "--scope", "grants", "--scope", "read")
    key, hint = shop.run(*create).stdout.splitlines()
    (listed,) = shop.json("services", "list")
    table = shop.run("services", "list").stdout

    async def look(container: Any) -> Service | None:
        found: Service | None = await container.service_keys().service_of(key_sha256(key))
        return found

    before = shop.do(look)
    first = shop.run("services", "revoke", listed["id"])
    second = shop.run("services", "revoke", listed["id"])

    assert "save the key now" in hint
    assert before is not None
    assert before.scopes == {Scope.GRANTS, Scope.READ}
    assert (listed["prefix"], listed["scopes"]) == (key[:9], ["grants", "read"])
    assert f"{key[:9]}…" in table
    assert key not in table
    assert first.stdout == "Revoked.\n"
    assert shop.do(look) is None
    assert second.stderr == "Error: No such key, or it is already revoked.\n"
    assert last_action(shop)["subject"] == "service:billing"


CHANGES: dict[str, tuple[tuple[object, ...], str]] = {
    "stores create": (("new-store", "--name", "x"), "b2b:new-store"),
    "stores rename": ((STORE.id, "x"), str(STORE)),
    "stores origins": ((STORE.id, "--add", "https://a.example"), str(STORE)),
    "owners plan": (("--user", USER.id, "scale"), str(USER)),
    "owners suspend": (("--user", USER.id), str(USER)),
    "credits grant": (("--user", USER.id, 1), str(USER)),
    "keys create": (("--store", STORE.id), str(STORE)),
    "services create": (("--label", "billing", "--scope", "read"), "service:billing"),
}


@pytest.mark.parametrize("command", CHANGES)
def test_changes_are_in_the_audit_log(shop: Shop, command: str) -> None:
    """With who and why: by default the user of the machine, by option anybody."""
    arguments, subject = CHANGES[command]

    result = shop.run(*command.split(), *arguments, "--reason", "a ticket")
    action = last_action(shop)

    assert result.exit_code == 0, result.output
    assert (action["actor"], action["reason"]) == (USER_HERE, "a ticket")
    assert action["subject"] == subject


def test_audit_log_of_an_owner(shop: Shop) -> None:
    """As a table, newest first, of one owner or one subject."""
    shop.run("credits", "grant", "--user", USER.id, 1, "--by", "alice")
    shop.run("credits", "grant", "--store", STORE.id, 2, "--by", "bob", "--reason", "x")
    shop.run("credits", "grant", "--user", USER.id, 3, "--by", "carol")

    header, *rows = shop.run("audit", "list", "--user", USER.id).stdout.splitlines()
    by_subject = shop.json("audit", "list", "--subject", str(STORE))

    assert header.split() == [
        "ID", "AT", "(UTC)", "BY", "ACTION", "SUBJECT", "REASON", "DETAILS"
    ]  # fmt: skip
    assert [row.split()[3] for row in rows] == ["carol", "alice"]
    assert json.loads(rows[0].partition("{")[1] + rows[0].partition("{")[2])["amount"] == 3
    assert [action["actor"] for action in by_subject] == ["bob"]


def test_user_without_a_name(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container a user may have a number only."""

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    monkeypatch.setattr(os, "getuid", lambda: 1234)

    shop.run("credits", "grant", "--user", USER.id, 1)

    assert last_action(shop)["actor"] == "cli:1234"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("credits", "adjust", "--store", "s", "1"), "Missing option '--reason'."),
        (("owners", "suspend", "--store", "s"), "Missing option '--reason'."),
        (("owners", "suspend", "--store", "s", "--reason", ""), "reason: must not be empty"),
        (("owners", "suspend", "--reason", "x"), "Give --user UUID or --store ID."),
        (("owners", "plan", "--store", "s", "gold"), "'gold' is not one of 'default',"),
        (("credits", "grant", "--store", "s", "1", "--by", ""), "actor: must not be empty"),
        (("credits", "grant", "--store", "s", "1", "--reference", "a b"), "'--reference': must be"),
        (("services", "create", "--label", "x"), "Missing option '--scope'."),
        (("services", "create", "--label", "x", "--scope", "all"), "'all' is not one of 'grants',"),
        (("stores", "create", "s"), "Missing option '--name'."),
        (
            ("audit", "list", "--subject", "x", "--store", "s"),
            "Give --subject or an owner, not both.",
        ),
        (("audit", "list", "--limit", "0"), "'--limit': 0 is not in the range 1<=x<=1000."),
    ],
)
def test_invalid_command_line(arguments: tuple[str, ...], problem: str) -> None:
    """Exit code 2, nothing on standard output, and an error that names the problem."""
    result = wearon(*arguments, env=NOBODY)

    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr
