"""Who may use the console: invitations, passwords, and the signed cookie of a sign-in."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from domain.console_ports import (
    DEVELOPER,
    ConsoleOperator,
    OperatorRepoPort,
    Role,
    checked_operator_name,
)
from domain.errors import DatabaseUnavailable, Forbidden, NotFound, Unauthenticated
from domain.operators import Operator
from domain.passwords import check_password, hash_password, is_password
from domain.throttle import Throttle

LINK_LIFETIME = timedelta(minutes=15)
SIGN_IN_LIFETIME = timedelta(hours=12)
ATTEMPTS_PER_MINUTE = 5
"""Of signing in, per name and address."""
MAX_OPERATORS = 1_000
_CHECK_SECONDS = 5.0
"""How long a look at an operator's row is believed: a revoked one is out after this time."""
_HASHES_AT_ONCE = 2
"""Each takes 32 MB."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A person at the console. ``proof`` is what the anti-forgery token of this sign-in's forms is
    made from. Not ``verified`` means that the database did not answer: such a person only reads."""

    name: str
    role: Role
    proof: str
    verified: bool = True

    @property
    def operator(self) -> str:
        """The actor in the audit log."""
        return f"console:{self.name}"

    def acting(self, reason: str) -> Operator:
        return Operator(actor=self.operator, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An operator and the token of the one-time link, which is not stored."""

    operator: ConsoleOperator
    token: str


class Operators:
    """Invites and revokes the console's operators, for the command line."""

    def __init__(self, repo: OperatorRepoPort) -> None:
        self._repo = repo

    async def invite(self, name: str, role: Role, *, by: Operator) -> Invitation:
        """Raises ``InvalidInput``."""
        token = secrets.token_urlsafe(32)
        operator = await self._repo.invite(
            checked_operator_name(name),
            role,
            link_sha256=_digest(token),
            lifetime=LINK_LIFETIME,
            by=by,
        )
        return Invitation(operator=operator, token=token)

    async def revoke(self, name: str, *, by: Operator) -> None:
        """Raises ``NotFound``."""
        if not await self._repo.revoke(name, by=by):
            raise NotFound(f"There is no operator {name}, or it is revoked already")

    async def all(self) -> Sequence[ConsoleOperator]:
        return await self._repo.all(limit=MAX_OPERATORS)


class ConsoleAccess:
    """Signs people in, and recognises them by their cookie.

    The cookie names the operator, role and epoch with an expiry, signed with ``secret``. The row of
    the operator is looked at once every few seconds, so a revocation ends a sign-in soon. With
    ``allow_developer``, ``developer_token`` signs in without an operator.
    """

    def __init__(
        self,
        *,
        repo: OperatorRepoPort,
        secret: str,
        clock: Callable[[], datetime],
        ticks: Callable[[], float],
        allow_developer: bool = False,
        in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        self._repo = repo
        self._in_thread = in_thread
        self._key = secret.encode()
        self._clock = clock
        self._ticks = ticks
        self._allow_developer = allow_developer
        self._attempts = Throttle(ATTEMPTS_PER_MINUTE, name="attempts to sign in", clock=ticks)
        self._hashing = asyncio.Semaphore(_HASHES_AT_ONCE)
        # Holds at most MAX_OPERATORS: see _current.
        self._seen: dict[str, tuple[float, ConsoleOperator | None]] = {}
        self._decoy: str | None = None

    async def require_operators(self) -> None:
        """Raises ``Forbidden`` if no operator could sign in. Raises ``DatabaseUnavailable``."""
        if self._allow_developer:
            return
        known = await self._repo.all(limit=MAX_OPERATORS)
        if all(operator.revoked_at is not None for operator in known):
            raise Forbidden(
                "The console has no operators; add one: wearon operators add NAME --role admin"
            )

    async def sign_in(self, name: str, password: str, *, address: str) -> str:
        """The cookie. Raises ``Unauthenticated`` and ``RateLimited``."""
        self._attempts.take((name[:64], address))
        operator = await self._repo.get(name)
        if operator is not None and operator.revoked_at is not None:
            operator = None
        stored = None if operator is None else operator.password_hash
        # An unknown name takes as long as a wrong password.
        matches = await self._hashed(is_password, password, stored or await self._any_hash())
        if operator is None or stored is None or not matches:
            raise Unauthenticated("This name and password do not match")
        return self._cookie_of(operator)

    async def invited(self, token: str, *, address: str) -> ConsoleOperator:
        """Who may set a password with a one-time link. Raises ``NotFound``, ``RateLimited``."""
        self._attempts.take(("", address))
        operator = await self._repo.by_link(_digest(token))
        if operator is None:
            raise _no_such_link()
        return operator

    async def set_password(self, token: str, password: str, *, address: str) -> str:
        """Use the link. Returns the cookie. Raises ``InvalidInput``, ``NotFound`` and
        ``RateLimited``."""
        check_password(password)
        await self.invited(token, address=address)
        hashed = await self._hashed(hash_password, password)
        operator = await self._repo.set_password(_digest(token), hashed)
        if operator is None:
            raise _no_such_link()
        return self._cookie_of(operator)

    async def recognise(self, cookie: str) -> SignIn | None:
        """The person with this cookie; None if it is forged, has expired or was ended."""
        signed, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(
            signature.encode("utf-8", "replace"), self._sign(f"cookie {signed}")
        ):
            return None
        epoch, expires, role, name = signed.split(".", 3)
        if int(expires) <= self._clock().timestamp():
            return None
        claimed = SignIn(name=name, role=Role(role), proof=cookie)
        if name == DEVELOPER and self._allow_developer:
            return claimed
        try:
            operator = await self._current(name)
        except DatabaseUnavailable:
            return replace(claimed, verified=False, role=Role.VIEWER)
        if operator is None or operator.epoch != int(epoch):
            return None
        return replace(claimed, role=operator.role)

    async def of_header(self, name: str) -> SignIn | None:
        """The person whom a proxy in front has signed in; None unless it is an operator. Raises
        ``DatabaseUnavailable``: without a cookie, nothing else vouches for a role."""
        operator = await self._current(name)
        if operator is None:
            return None
        proof = f"header.{operator.epoch}.{name}"
        return SignIn(name=name, role=operator.role, proof=proof)

    def form_token(self, person: SignIn) -> str:
        """The anti-forgery token of this sign-in's forms."""
        return self._sign(f"form {person.proof}").decode()

    def is_form_token(self, person: SignIn, token: str) -> bool:
        sent = token.encode("utf-8", "replace")
        return hmac.compare_digest(sent, self._sign(f"form {person.proof}"))

    def developer_token(self) -> str:
        """Signs in as ``DEVELOPER``, as often as wanted, where that is allowed."""
        return self._sign("developer").decode()

    def sign_in_developer(self, token: str) -> str:
        """The cookie. Raises ``Unauthenticated``."""
        sent = token.encode("utf-8", "replace")
        if not self._allow_developer or not hmac.compare_digest(sent, self._sign("developer")):
            raise Unauthenticated("This link is not valid")
        return self._cookie(name=DEVELOPER, role=Role.ADMIN, epoch=0)

    async def _current(self, name: str) -> ConsoleOperator | None:
        """The operator, unless revoked, as of a few seconds ago at most."""
        at, operator = self._seen.get(name, (-_CHECK_SECONDS, None))
        if self._ticks() - at >= _CHECK_SECONDS or name not in self._seen:
            operator = await self._repo.get(name)
            if operator is not None and operator.revoked_at is not None:
                operator = None
            if len(self._seen) >= MAX_OPERATORS:
                self._seen.clear()
            self._seen[name] = (self._ticks(), operator)
        return operator

    async def _any_hash(self) -> str:
        if self._decoy is None:
            self._decoy = await self._hashed(hash_password, secrets.token_urlsafe(16))
        return self._decoy

    async def _hashed(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """In a thread, because a hash takes as long as thousands of requests."""
        async with self._hashing:
            result: T = await self._in_thread(work, *arguments, **named)
            return result

    def _cookie_of(self, operator: ConsoleOperator) -> str:
        self._seen.pop(operator.name, None)
        return self._cookie(name=operator.name, role=operator.role, epoch=operator.epoch)

    def _cookie(self, *, name: str, role: Role, epoch: int) -> str:
        expires = int((self._clock().astimezone(UTC) + SIGN_IN_LIFETIME).timestamp())
        signed = f"{epoch}.{expires}.{role}.{name}"
        return f"{signed}.{self._sign(f'cookie {signed}').decode()}"

    def _sign(self, text: str) -> bytes:
        text_bytes = text.encode("utf-8", "replace")
        return hmac.new(self._key, text_bytes, hashlib.sha256).hexdigest().encode()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _no_such_link() -> NotFound:
    return NotFound("This link is not valid any more: it was used, or it is older than 15 minutes")
