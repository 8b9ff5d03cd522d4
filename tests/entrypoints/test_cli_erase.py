"""``wearon owners erase``: what it asks, erases and reports."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import pytest
from click.testing import CliRunner, Result

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.queue.redis import redis_client
from config.closing import close
from config.container import Container
from config.loading import load_settings
from domain.credits import Owner
from domain.picture_ports import Picture
from domain.sessions import GenerationSession
from domain.tasks import GenerationTask
from domain.uploads import upload_folder
from entrypoints.cli.erase import erase_owner
from entrypoints.cli.output import CommandGroup
from tests.contracts.backends import PostgresBackend
from tests.support.examples import LEASE, MANY, OTHER, STORE, USER, a_session

T = TypeVar("T")

JPEG = Picture(data=b"a picture", media_type="image/jpeg")
WHY = ("--reason", "asked for on paper")
owners = CommandGroup(name="owners", commands={"erase": erase_owner})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the environment in which the tests run."""
    for name in os.environ:
        if name.startswith("WEARON_") or name in {"DATABASE_URL", "REDIS_URL"}:
            monkeypatch.delenv(name)


class Shop:
    """A service on real servers and a local disk."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    def erase(self, *arguments: object, **options: Any) -> Result:
        asked = ["erase", *map(str, arguments)]
        return CliRunner().invoke(owners, asked, env=self.env, **options)

    def do(self, work: Callable[[Container], Awaitable[T]]) -> T:
        """Work with a container, as API and worker do."""

        async def with_container() -> T:
            container = Container(settings=load_settings(self.env))
            try:
                return await work(container)
            finally:
                await close(container)

        return asyncio.run(with_container())

    def queued(self, owner: Owner) -> GenerationSession:
        async def create(container: Container) -> GenerationSession:
            await container.accounts().grant(owner, 1, note="test")
            session = a_session(owner=owner, prompt="a secret wish")
            return (await container.sessions().create(session, max_active=MANY)).session

        return self.do(create)

    def completed(self, owner: Owner) -> GenerationSession:
        """With a picture, an unused upload beside it, and a dead letter."""
        session = self.queued(owner)

        async def work(container: Container) -> None:
            storage = container.storage()
            await container.sessions().claim(session.id, lease=LEASE)
            picture = await storage.save(session.object_prefix, JPEG)
            await container.sessions().complete(session.id, attempt=1, picture=picture)
            folder = upload_folder(owner, container.clock()().date())
            sink = container.files()
            assert sink is not None
            await sink.keep_upload(f"{folder}/{session.id}.jpg", JPEG.data)
            task = GenerationTask.of(session, task_id=session.id)
            await container.queue().bury(task, reason="test")

        self.do(work)
        return session

    def get(self, session: GenerationSession) -> GenerationSession:
        return self.do(lambda container: container.sessions().get(session.id, None))

    def files(self) -> list[str]:
        root = Path(self.env["WEARON_DATA_DIR"])
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def shop(postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path: Path) -> Shop:
    shop = Shop(
        {
            "DATABASE_URL": postgres.url(),
            "REDIS_URL": valkey.url,
            "WEARON_DATA_DIR": str(tmp_path),
            "WEARON_SIGNING_SECRET": "signs the links to the pictures: 9876543210",
        }
    )

    async def empty(container: Container) -> None:
        await PostgresBackend(container.database()).empty()
        client = redis_client(valkey.url)
        await client.flushall()
        await client.aclose()

    shop.do(empty)
    return shop


@pytest.mark.parametrize("owner", [USER, STORE], ids=str)
def test_owner_is_erased(shop: Shop, owner: Owner) -> None:
    """Pictures, uploads, links, prompts and dead letters; the books balance, others keep all."""
    mine, other = shop.completed(owner), shop.completed(OTHER)
    option = "--user" if owner is USER else "--store"

    result = shop.erase(option, owner.id, *WHY, "--yes", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "erased": 1,
        "cancelled": 0,
        "uploads": 1,
        "shoppers": 0,
        "webhooks": 0,
        "dead_letters": 1,
        "unfinished": 0,
        "rejected": [],
    }
    assert shop.get(mine).erased_at is not None
    assert shop.get(mine).input.prompt == ""
    assert shop.get(other).input.prompt == "a secret wish"
    assert [str(other.id) in name for name in shop.files()] == [True, True]
    assert shop.do(lambda container: container.accounts().audit(limit=9)) == []


def test_sessions_in_progress_are_left_for_a_repetition(shop: Shop) -> None:
    """75, with the reason; queued sessions are cancelled and erased."""
    shop.queued(USER)
    processing = shop.queued(USER)
    shop.do(lambda container: container.sessions().claim(processing.id, lease=LEASE))

    result = shop.erase("--user", USER.id, *WHY, "--yes")

    assert result.exit_code == 75
    header, row, hint = result.stdout.splitlines()
    assert header.split("  ")[0] == "ERASED"
    assert row.split() == ["1", "1", "0", "0", "0", "0", "1"]
    assert hint == "1 session(s) are in progress: repeat this in some minutes."
    assert shop.get(processing).erased_at is None


def test_command_asks_before_it_erases(shop: Shop) -> None:
    """Without --yes. A no erases nothing."""
    session = shop.completed(USER)

    no = shop.erase("--user", USER.id, *WHY, input="n\n")
    before = shop.get(session)
    yes = shop.erase("--user", USER.id, *WHY, input="y\n")

    assert (no.exit_code, yes.exit_code) == (1, 0)
    assert f"Erase the personal data of {USER} for good?" in no.stderr
    assert (before.erased_at, shop.get(session).erased_at is not None) == (None, True)


def test_owner_with_nothing_to_erase_is_pointed_out(shop: Shop) -> None:
    """The id may be mistyped, or it is a repetition: not an error."""
    shop.completed(USER)

    mistyped = shop.erase("--user", OTHER.id, *WHY, "--yes")
    first, again = [shop.erase("--user", USER.id, *WHY, "--yes") for _ in range(2)]

    assert [result.exit_code for result in (mistyped, first, again)] == [0, 0, 0]
    hints = ["Is the id right?" in result.stderr for result in (mistyped, first, again)]
    assert hints == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--yes", *WHY), "Give --user UUID or --store ID."),
        (("--user", USER.id, "--yes"), "Missing option '--reason'."),
        (("--user", USER.id, "--shopper", "ann", *WHY, "--yes"), "--shopper needs --store."),
    ],
)
def test_invalid_command_line(shop: Shop, arguments: tuple[str, ...], problem: str) -> None:
    """2, and nothing is erased."""
    result = shop.erase(*arguments)

    assert result.exit_code == 2
    assert problem in click.unstyle(result.stderr)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"WEARON_SIGNING_SECRET": ""}, "WEARON_SIGNING_SECRET"),
        ({"WEARON_STORAGE": "memory", "WEARON_ENVIRONMENT": "development"}, "WEARON_STORAGE"),
        ({"REDIS_URL": ""}, "REDIS_URL"),
    ],
    ids=["secret", "storage", "queue"],
)
def test_all_services_have_to_be_configured(shop: Shop, change: dict[str, str], named: str) -> None:
    """Else the pictures of another place would be deleted, or the dead letters would stay."""
    session = shop.completed(USER)
    settings = {**shop.env, **change}
    erasing = Shop({name: value for name, value in settings.items() if value})

    result = erasing.erase("--user", USER.id, *WHY, "--yes")

    assert (result.exit_code, named in result.stderr) == (1, True)
    assert shop.get(session).erased_at is None
