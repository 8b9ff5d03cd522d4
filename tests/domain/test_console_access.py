"""Who gets into the console: invitations, passwords, sign-ins and the tokens of forms."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.operators.memory import InMemoryOperatorRepo
from domain import passwords
from domain.console_access import SIGN_IN_LIFETIME, ConsoleAccess, Operators, SignIn
from domain.console_ports import DEVELOPER, ConsoleOperator, Role
from domain.errors import (
    DatabaseUnavailable,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from tests.support.clock import FakeClock
from tests.support.examples import OPERATOR

pytestmark = pytest.mark.anyio

PASSWORD = "correct horse battery"
SECRET = "a secret for tests, long enough for it"


@pytest.fixture(autouse=True)
def fast_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_COST", 2)


async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread, which virtual time does not wait for."""
    return work(*arguments)


class FlakyOperatorRepo(InMemoryOperatorRepo):
    is_down = False

    async def get(self, name: str) -> ConsoleOperator | None:
        if self.is_down:
            raise DatabaseUnavailable("down")
        return await super().get(name)


class Desk:
    """A console's door, with time that tests move."""

    def __init__(self, *, allow_developer: bool = False) -> None:
        self.clock = FakeClock()
        self.ticks = 0.0
        log = InMemoryAuditLog(clock=self.clock.now)
        self.repo = FlakyOperatorRepo(clock=self.clock.now, log=log)
        self.operators = Operators(self.repo)
        self.access = self.with_secret(SECRET, allow_developer=allow_developer)

    def with_secret(self, secret: str, *, allow_developer: bool = False) -> ConsoleAccess:
        return ConsoleAccess(
            repo=self.repo,
            secret=secret,
            clock=self.clock.now,
            ticks=lambda: self.ticks,
            allow_developer=allow_developer,
            in_thread=at_once,
        )

    async def invited(self, name: str = "alice", role: Role = Role.OPERATOR) -> str:
        return (await self.operators.invite(name, role, by=OPERATOR)).token

    async def signed_in(self, name: str = "alice", role: Role = Role.OPERATOR) -> str:
        token = await self.invited(name, role)
        return await self.access.set_password(token, PASSWORD, address="::1")

    async def recognised(self, cookie: str) -> SignIn:
        person = await self.access.recognise(cookie)
        assert person is not None
        return person


async def test_link_sets_the_password_and_signs_in() -> None:
    """Once; afterwards the name and the password do."""
    desk = Desk()
    token = await desk.invited(role=Role.ADMIN)

    invited = await desk.access.invited(token, address="::1")
    cookie = await desk.access.set_password(token, PASSWORD, address="::1")

    person = await desk.recognised(cookie)
    assert (invited.name, person.name, person.role) == ("alice", "alice", Role.ADMIN)
    assert person.operator == "console:alice"
    again = await desk.access.sign_in("alice", PASSWORD, address="::1")
    assert await desk.access.recognise(again) is not None
    with pytest.raises(NotFound):
        await desk.access.set_password(token, PASSWORD, address="::1")


@pytest.mark.parametrize(
    ("name", "password"), [("alice", "wrong horse battery"), ("bob", PASSWORD), ("carol", PASSWORD)]
)
async def test_wrong_name_or_password(name: str, password: str) -> None:
    """An unknown, a revoked and an invited operator are answered like a wrong password."""
    desk = Desk()
    await desk.signed_in()
    await desk.invited("carol")

    with pytest.raises(Unauthenticated, match="This name and password do not match"):
        await desk.access.sign_in(name, password, address="::1")


async def test_revoked_operator_cannot_sign_in() -> None:
    desk = Desk()
    await desk.signed_in()
    await desk.operators.revoke("alice", by=OPERATOR)

    with pytest.raises(Unauthenticated):
        await desk.access.sign_in("alice", PASSWORD, address="::1")
    with pytest.raises(NotFound):
        await desk.operators.revoke("alice", by=OPERATOR)


async def test_attempts_are_limited() -> None:
    """To five a minute for a name and an address, also with the right password; others go on."""
    desk = Desk()
    await desk.signed_in()
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await desk.access.sign_in("alice", "wrong horse battery", address="::1")

    with pytest.raises(RateLimited):
        await desk.access.sign_in("alice", PASSWORD, address="::1")

    assert await desk.access.sign_in("alice", PASSWORD, address="::2")
    desk.ticks = 60
    assert await desk.access.sign_in("alice", PASSWORD, address="::1")


@pytest.mark.parametrize("password", ["elevenchars", "x" * 201])
async def test_password_has_a_length(password: str) -> None:
    """A refused password does not use the link."""
    desk = Desk()
    token = await desk.invited()

    with pytest.raises(InvalidInput, match="12 to 200"):
        await desk.access.set_password(token, password, address="::1")

    assert await desk.access.set_password(token, PASSWORD, address="::1")


@pytest.mark.parametrize("name", ["", "Alice", "a b", "-a", "x" * 65, "a\n", DEVELOPER])
async def test_name_of_an_operator(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^name: "):
        await Desk().invited(name)


async def test_name_may_have_dots() -> None:
    """Dots also separate the parts of a cookie."""
    desk = Desk()

    cookie = await desk.signed_in("a.b-c_d@e.f")

    assert (await desk.recognised(cookie)).name == "a.b-c_d@e.f"


async def test_forged_cookie_is_refused() -> None:
    """Changed in any part, signed with another key, or another text that we sign."""
    desk = Desk()
    cookie = await desk.signed_in()
    epoch, expires, role, name, signature = cookie.split(".")

    forged = [
        f"{int(epoch) + 1}.{expires}.{role}.{name}.{signature}",
        f"{epoch}.{int(expires) + 1}.{role}.{name}.{signature}",
        f"{epoch}.{expires}.admin.{name}.{signature}",
        f"{epoch}.{expires}.{role}.bob.{signature}",
        f"{epoch}.{expires}.{role}.{name}.{signature[:-1]}",
        f"developer.{desk.access.developer_token()}",
        *("", ".", "....", "\udcff.x", cookie[:-1]),
    ]

    for text in forged:
        assert await desk.access.recognise(text) is None, text
    assert await desk.with_secret(SECRET[::-1]).recognise(cookie) is None


async def test_cookie_expires() -> None:
    desk = Desk()
    cookie = await desk.signed_in()
    desk.clock.advance(SIGN_IN_LIFETIME - timedelta(seconds=1))
    before = await desk.access.recognise(cookie)
    desk.clock.advance(timedelta(seconds=1))

    assert before is not None
    assert await desk.access.recognise(cookie) is None


async def test_revocation_and_new_role_end_a_sign_in() -> None:
    """Within five seconds: for so long a look at the operator is believed."""
    desk = Desk()
    cookie, other = await desk.signed_in(), await desk.signed_in("bob")
    for each in (cookie, other):
        await desk.recognised(each)
    await desk.operators.revoke("alice", by=OPERATOR)
    await desk.operators.invite("bob", Role.ADMIN, by=OPERATOR)
    at_once = await desk.access.recognise(cookie)
    desk.ticks = 5

    assert at_once is not None
    assert await desk.access.recognise(cookie) is None
    assert await desk.access.recognise(other) is None


async def test_operators_only_read_while_the_database_is_down() -> None:
    """The page that names the trouble has to open; no operator's role can be checked meanwhile."""
    desk = Desk()
    cookie = await desk.signed_in(role=Role.ADMIN)
    desk.repo.is_down = True

    person = await desk.recognised(cookie)

    assert (person.role, person.verified) == (Role.VIEWER, False)


async def test_form_tokens_belong_to_a_sign_in() -> None:
    desk = Desk()
    one = await desk.recognised(await desk.signed_in())
    other = await desk.recognised(await desk.signed_in("bob"))

    token = desk.access.form_token(one)

    assert desk.access.is_form_token(one, token)
    assert not desk.access.is_form_token(other, token)
    assert not desk.access.is_form_token(one, "")


async def test_person_of_a_header() -> None:
    """Only an operator, with the operator's own role and a token for forms."""
    desk = Desk()
    await desk.signed_in(role=Role.ADMIN)

    person = await desk.access.of_header("alice")

    assert person is not None
    assert person.role is Role.ADMIN
    assert desk.access.is_form_token(person, desk.access.form_token(person))
    assert await desk.access.of_header("bob") is None


async def test_developer_signs_in_by_link_in_development_only() -> None:
    desk, production = Desk(allow_developer=True), Desk()
    token = desk.access.developer_token()

    cookie = desk.access.sign_in_developer(token)

    person = await desk.recognised(cookie)
    assert (person.name, person.role) == (DEVELOPER, Role.ADMIN)
    assert await production.access.recognise(cookie) is None
    for access, text in ((desk.access, "x"), (production.access, token)):
        with pytest.raises(Unauthenticated):
            access.sign_in_developer(text)


async def test_console_requires_an_operator_outside_development() -> None:
    """One who is not revoked."""
    desk = Desk()
    await Desk(allow_developer=True).access.require_operators()
    with pytest.raises(Forbidden, match="wearon operators add"):
        await desk.access.require_operators()

    await desk.invited()
    await desk.access.require_operators()

    await desk.operators.revoke("alice", by=OPERATOR)
    with pytest.raises(Forbidden):
        await desk.access.require_operators()


def test_role_includes_those_before() -> None:
    roles = list(Role)

    assert [[one.includes(other) for other in roles] for one in roles] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_hash_of_a_password_is_salted() -> None:
    one, other = passwords.hash_password(PASSWORD), passwords.hash_password(PASSWORD)

    assert one != other
    assert passwords.is_password(PASSWORD, one)
    assert not passwords.is_password(PASSWORD[::-1], one)
    assert PASSWORD not in one
