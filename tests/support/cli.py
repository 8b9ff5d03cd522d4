"""The ``wearon`` command, run in this process, on a service in PostgreSQL."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from adapters.auth.api_keys import key_sha256
from config.closing import close
from config.container import Container
from config.loading import load_settings
from domain.credits import Channel, Owner
from domain.sessions import Failure, GenerationSession
from entrypoints.cli import main
from tests.contracts.backends import PostgresBackend
from tests.support.examples import LEASE, MANY, USAGE, USER, a_session, picture_of

T = TypeVar("T")


def wearon(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)


class Shop:
    """A service on PostgreSQL, as its operator and its users see it."""

    def __init__(self, url: str) -> None:
        self.env = {"DATABASE_URL": url}
        self._settings = load_settings(self.env)

    def run(self, *arguments: object) -> Result:
        return wearon(*arguments, env=self.env)

    def json(self, *arguments: object) -> Any:
        """The command's output with --json; it has to succeed."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def do(self, work: Callable[[Container], Awaitable[T]]) -> T:
        """Work with a container, as API and worker do."""

        async def with_container() -> T:
            container = Container(settings=self._settings)
            try:
                return await work(container)
            finally:
                await close(container)

        return asyncio.run(with_container())

    def session(self, owner: Owner = USER, **changes: Any) -> GenerationSession:
        """A charged, queued session."""

        async def create(container: Container) -> GenerationSession:
            await container.accounts().grant(owner, 1, note="test")
            receipt = await container.sessions().create(
                a_session(owner=owner, **changes), max_active=MANY
            )
            session: GenerationSession = receipt.session
            return session

        return self.do(create)

    def failed(self, **changes: Any) -> GenerationSession:
        session = self.session(**changes)
        failure = Failure(code="MODERATION_BLOCKED", message="This picture cannot be made")
        self.do(lambda container: container.sessions().fail_queued(session.id, failure))
        return session

    def completed(self, **changes: Any) -> GenerationSession:
        session = self.session(**changes)

        async def work(container: Container) -> None:
            await container.sessions().claim(session.id, lease=LEASE)
            await container.sessions().complete(
                session.id, attempt=1, picture=picture_of(session.id, session.owner), usage=USAGE
            )

        self.do(work)
        return session

    def misbook(self, owner: Owner, amount: int) -> None:
        self.do(
            lambda container: PostgresBackend(container.database()).change_balance(owner, amount)
        )

    def owner_of(self, key: str) -> Owner | None:
        async def look(container: Container) -> Owner | None:
            caller = await container.api_keys().caller_of(key_sha256(key))
            return None if caller is None else caller.owner

        return self.do(look)


def new_shop(url: str) -> Shop:
    """On an empty database, with two stores."""
    shop = Shop(url)

    async def prepare(container: Container) -> None:
        await PostgresBackend(container.database()).empty()
        for number in (1, 2):
            await container.stores().ensure(Owner(channel=Channel.B2B, id=f"store-{number}"))

    shop.do(prepare)
    return shop
