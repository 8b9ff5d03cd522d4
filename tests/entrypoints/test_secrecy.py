"""Secrets and tokens stay out of answers, logs, tracebacks, representations and arguments."""

import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import rich_click as click
from rich.pretty import pretty_repr

from adapters.auth.user_keys import KeyRules, UserKeys
from adapters.auth.user_tokens import UserTokens
from config.container import Container
from config.loading import load_settings
from config.logging import configure_logging
from domain.errors import Unauthenticated
from entrypoints.cli import main
from tests.adapters.test_token_table import ACCEPTED, PROVIDER, REJECTED
from tests.support.http import Api
from tests.support.tokens import (
    ALGORITHMS,
    NOW,
    PREVIOUS_SECRET,
    RULES,
    SECRET,
    FakeProvider,
    hs256,
)

pytestmark = pytest.mark.anyio

SHORTEST = 12
"""Characters of a token's part that count as a leak."""


def parts_of(sent: str) -> list[str]:
    return [part for part in sent.split(".") if len(part) >= SHORTEST]


@pytest.mark.parametrize("exact", [True, False], ids=["development", "production"])
async def test_no_answer_has_a_part_of_a_token(exact: bool) -> None:
    """Nor of a secret, whatever is wrong with the token; and no exception on the way has one."""
    users = UserTokens(
        RULES,
        keys=UserKeys(PROVIDER, KeyRules(algorithms=ALGORITHMS)),
        exact=exact,
        clock=lambda: NOW,
    )
    for name, row in REJECTED.items():
        with pytest.raises(Unauthenticated) as rejected:
            await users(row.token)
        shown = f"{rejected.value!r} {''.join(traceback.format_exception(rejected.value))}"

        leaked = [part for part in (SECRET, PREVIOUS_SECRET, *parts_of(row.token)) if part in shown]
        assert leaked == [], name


async def test_no_log_has_a_token_or_a_secret(capfd: pytest.CaptureFixture[str]) -> None:
    """Accepted, rejected, not answerable, and when our own code fails, with its traceback."""
    configure_logging(load_settings({}))
    down = FakeProvider()
    down.problem = "status 500"
    sent = [row.token for row in (ACCEPTED | REJECTED).values()]
    for provider in (PROVIDER, down):
        keys = UserKeys(provider, KeyRules(algorithms=ALGORITHMS))
        api = Api(users=UserTokens(RULES, keys=keys, clock=lambda: NOW))
        for each in sent:
            await api.get("/api/v1/credits", owner=None, headers=[authorization(each)])
    api = Api(users=UserTokens(RULES, clock=fails))
    crashed = await api.get("/api/v1/credits", owner=None, headers=[authorization(hs256())])

    printed = "".join(capfd.readouterr())
    assert crashed.error == (500, "INTERNAL_ERROR")
    assert "RuntimeError" in printed
    assert "user_keys_not_fetched" in printed
    for secret in (SECRET, PREVIOUS_SECRET, *(part for each in sent for part in parts_of(each))):
        assert secret not in printed


def authorization(sent: str) -> tuple[str, str]:
    return "authorization", f"Bearer {sent}"


def fails() -> datetime:
    raise RuntimeError("a bug")


def test_no_representation_has_a_secret(tmp_path: Path) -> None:
    """Of the settings and of all that is built from them."""
    secrets = {
        "WEARON_JWT_SECRET": SECRET,
        "WEARON_JWT_PREVIOUS_SECRET": PREVIOUS_SECRET,
        "WEARON_SIGNING_SECRET": "signs the links to the pictures: 9876543210",
        "WEARON_SIGNING_PREVIOUS_SECRET": "signed the links before that: 5647382910",
    }
    memory = dict.fromkeys(("WEARON_DATABASE", "WEARON_QUEUE", "WEARON_STORAGE"), "memory")
    settings = load_settings(
        secrets
        | memory
        | {"WEARON_ENVIRONMENT": "development", "WEARON_DATA_DIR": str(tmp_path)}
        | {"WEARON_JWT_JWKS_URL": "https://id.example/keys"}
    )
    container = Container(settings=settings)
    built = [settings, container.signer(), container.authenticate(), container.user_token()]
    built += [container.user_keys(), RULES, replace(RULES, roles=frozenset())]

    shown = " ".join(f"{each} {each!r} {pretty_repr(each)}" for each in built)

    assert [secret for secret in (*secrets.values(), SECRET) if secret in shown] == []


def test_no_command_takes_a_secret() -> None:
    """`ps` shows the arguments of every process to all users of the machine."""
    options = {
        f"{name} {option}"
        for name, command in commands(main)
        for parameter in command.params
        for option in (*parameter.opts, parameter.name or "")
    }

    words = ("secret", "password", "token", "api-key", "api_key")
    assert "keys create --label" in options
    secret = {
        option
        for option in options
        if any(word in option.rpartition(" ")[2] for word in words) and not option.endswith("_id")
    }
    assert secret == set()


def commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command with its full name."""
    for part, command in group.commands.items():
        full = f"{name} {part}".strip()
        yield full, command
        if isinstance(command, click.Group):
            yield from commands(command, full)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2hunter2@id.example/keys",
        "https://hunter2hunter2@id.example/keys",
        "https://id.example/keys#hunter2hunter2",
        "https://id.example:hunter2hunter2/keys",
    ],
)
def test_jwks_url_has_no_credential(url: str) -> None:
    """It would be sent to nobody, but shown in the settings; the refusal does not repeat it."""
    with pytest.raises(Exception, match=r"^WEARON_JWT_JWKS_URL: ") as refused:
        load_settings({"WEARON_JWT_JWKS_URL": url})

    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
