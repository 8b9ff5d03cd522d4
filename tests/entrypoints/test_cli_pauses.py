"""``wearon pause`` and ``wearon resume``."""

import getpass
from typing import Any

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from tests.support.cli import Shop, new_shop, wearon

USER_HERE = f"cli:{getpass.getuser()}"


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def paused(shop: Shop) -> list[Any]:
    pauses = shop.do(lambda container: container.pauses().paused())
    return [(pause.switch, pause.actor, pause.reason) for pause in pauses]


@pytest.mark.parametrize("switch", ["intake", "workers"])
def test_pause_and_resume(shop: Shop, switch: str) -> None:
    """Each says what it did, and what follows; both are in the audit log."""
    pause = shop.run("pause", switch, "--reason", "the provider is down")
    while_paused = paused(shop)
    resume = shop.run("resume", switch)

    assert (pause.exit_code, resume.exit_code) == (0, 0)
    assert pause.stdout.startswith(f"Paused: {switch}. ")
    assert resume.stdout == f"Resumed: {switch}.\n"
    assert while_paused == [(switch, USER_HERE, "the provider is down")]
    assert paused(shop) == []
    actions = [(each["action"], each["subject"]) for each in shop.json("audit", "list")]
    assert actions == [("switch.resume", switch), ("switch.pause", switch)]


def test_what_is_so_already_is_no_error(shop: Shop) -> None:
    """It exits with 0 and says so; nothing changes."""
    resumed = shop.run("resume", "intake")
    shop.run("pause", "intake", "--reason", "first")
    again = shop.run("pause", "intake", "--reason", "second", "--by", "cli:bob")

    assert (resumed.exit_code, resumed.stdout) == (0, "Not paused: intake. Nothing changed.\n")
    assert (again.exit_code, again.stdout) == (
        0, "Paused already: intake. Nothing changed; the first reason stays.\n"
    )  # fmt: skip
    assert paused(shop) == [("intake", USER_HERE, "first")]


def test_json_tells_whether_something_changed(shop: Shop) -> None:
    """For scripts."""
    answers = [
        shop.json("pause", "workers", "--reason", "x"),
        shop.json("pause", "workers", "--reason", "x"),
        shop.json("resume", "workers", "--reason", "done"),
        shop.json("resume", "workers"),
    ]

    assert [(each["paused"], each["changed"]) for each in answers] == [
        (True, True), (True, False), (False, True), (False, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [("intake",), ("intake", "--reason", " "), ("intake", "--reason", "x" * 501),
     ("everything", "--reason", "x"), ("--reason", "x")],
)  # fmt: skip
def test_invalid_command_line(arguments: tuple[str, ...]) -> None:
    """A pause has a switch, and a reason of 1 to 500 characters."""
    result = wearon("pause", *arguments)

    assert result.exit_code == 2
