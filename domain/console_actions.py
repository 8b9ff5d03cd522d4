"""What operators do in the console. Each call has the id of the form that asked for it: the same
form, sent twice, acts once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from domain.account_ports import AuditLogPort
from domain.accounts import CreditGrants
from domain.books import BookChecks
from domain.callers import Caller
from domain.credits import Booked, Discrepancy, Owner
from domain.errors import Conflict, InvalidInput, NotFound
from domain.keys import ApiKeyIssuer, IssuedKey
from domain.labels import checked_label
from domain.operations import DeadLetters
from domain.operator_ports import MAX_DISCREPANCIES, Switch
from domain.operators import Operator
from domain.pauses import Pauses
from domain.ports import ApiKey, Receipt, SessionReadPort
from domain.requests import TryOnRequest
from domain.sessions import GenerationSession, SessionStatus
from domain.submission import Submission

MIN_REASON_LENGTH = 5
MAX_REASON_LENGTH = 200
VERIFY_TIMEOUT = timedelta(seconds=300)


class Payer(StrEnum):
    """Who pays for a session that an operator repeats."""

    OWNER = "owner"
    GRANT = "grant"
    """The operator: one credit is granted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One press of a button: who, why, and the form's id."""

    id: UUID
    by: Operator

    @property
    def reference(self) -> str:
        """The key of what is booked or created."""
        return f"console-{self.id}"


def checked_reason(reason: str) -> str:
    """Raises ``InvalidInput`` unless it says something."""
    checked = checked_label("reason", reason, max_length=MAX_REASON_LENGTH)
    if len(checked) < MIN_REASON_LENGTH:
        raise InvalidInput("reason", f"must have at least {MIN_REASON_LENGTH} characters")
    return checked


class ConsoleActions:
    """Raises what the use cases raise that it calls, and ``Conflict`` if the state that the
    operator saw is gone."""

    def __init__(
        self,
        *,
        sessions: SessionReadPort,
        submission: Submission,
        grants: CreditGrants,
        letters: DeadLetters,
        keys: ApiKeyIssuer,
        pauses: Pauses,
        books: BookChecks,
        audit_log: AuditLogPort,
        new_request_id: Callable[[], str],
    ) -> None:
        self._sessions = sessions
        self._submission = submission
        self._grants = grants
        self._letters = letters
        self._keys = keys
        self._pauses = pauses
        self._books = books
        self._audit_log = audit_log
        self._new_request_id = new_request_id
        self._verifying = asyncio.Lock()

    async def grant(
        self, owner: Owner, amount: int, act: Act, *, session_id: UUID | None = None
    ) -> Booked:
        """Goodwill, perhaps about a session of the owner. Raises ``NotFound`` for another's."""
        note = act.by.reason or ""
        if session_id is not None:
            await self._sessions.get(session_id, owner)
            note = f"{note} (session {session_id})"
        return await self._grants.grant(
            owner, amount, note=note, reference=act.reference, by=act.by
        )

    async def take_back(self, owner: Owner, amount: int, act: Act) -> Booked:
        """Of a mistaken grant. Raises ``Conflict`` if the balance is smaller."""
        return await self._grants.adjust(owner, amount, reference=act.reference, by=act.by)

    async def cancel(self, session_id: UUID, act: Act) -> GenerationSession:
        """The owner's own cancellation. Raises ``Conflict`` for a session that has ended."""
        session = await self._sessions.get(session_id, None)
        is_first = await self._begin(act, "session.cancel", f"session:{session_id}")
        if not is_first and session.cancel_requested_at is not None:
            return session
        return await self._submission.cancel(session_id, session.owner)

    async def again(self, session_id: UUID, payer: Payer, act: Act) -> Receipt:
        """A new session with the inputs of one that has ended, which a store's shopper does not
        see: the owner asks for it. Raises ``Conflict`` if the inputs are gone, and what
        ``Submission.submit`` raises."""
        session = await self._sessions.get(session_id, None)
        self._check_repeatable(session)
        await self._begin(act, "session.again", f"session:{session_id}", payer=payer)
        if payer is Payer.GRANT:
            await self.grant(session.owner, 1, act, session_id=session_id)
        # Sent twice, the key finds the session that the first call made.
        request = TryOnRequest(
            caller=Caller(owner=session.owner, any_origin=True),
            request_id=self._new_request_id(),
            input=session.input,
            idempotency_key=f"again-{session_id}-{act.id}",
            links=self._submission.links,
        )
        return await self._submission.submit(request)

    async def requeue(self, letter_id: UUID, act: Act) -> None:
        """Raises what ``DeadLetters.requeue`` raises."""
        await self._with_letter(act, "dead.requeue", letter_id, self._letters.requeue)

    async def discard(self, letter_id: UUID, act: Act) -> None:
        """Raises ``NotFound``."""
        await self._with_letter(act, "dead.discard", letter_id, self._letters.discard)

    async def create_key(self, store: Owner, label: str, act: Act) -> IssuedKey[ApiKey]:
        """The key itself is in the first answer only."""
        return await self._keys.issue(store, label=label, idempotency_key=act.reference, by=act.by)

    async def revoke_key(self, key_id: UUID, act: Act) -> ApiKey:
        """Raises ``NotFound``."""
        return await self._keys.revoke(key_id, by=act.by)

    async def pause(self, switch: Switch, act: Act) -> bool:
        """False if it was paused already."""
        return await self._pauses.pause(switch, by=act.by)

    async def resume(self, switch: Switch, act: Act) -> bool:
        """False if it was not paused."""
        return await self._pauses.resume(switch, by=act.by)

    async def verify(self) -> list[Discrepancy]:
        """Check the books, one check at a time, and keep the result for all operators. Raises
        ``Conflict`` while another check runs, and ``TimeoutError``."""
        if self._verifying.locked():
            raise Conflict("The books are being checked already; look again in a minute")
        async with self._verifying, asyncio.timeout(VERIFY_TIMEOUT.total_seconds()):
            return await self._books.verify(limit=MAX_DISCREPANCIES)

    async def _with_letter(
        self, act: Act, action: str, letter_id: UUID, change: Callable[[UUID], Awaitable[None]]
    ) -> None:
        """Redis and the audit log share no transaction: an entry says what was begun, and another
        one that it was done. A letter that is gone at the second press was dealt with before."""
        is_first = await self._begin(act, action, f"letter:{letter_id}")
        try:
            await change(letter_id)
        except NotFound:
            if is_first:
                raise
        else:
            await self._audit_log.add(act.by, f"{action}.done", f"letter:{letter_id}")

    async def _begin(self, act: Act, action: str, subject: str, **details: object) -> bool:
        return await self._audit_log.begin(act.by, action, subject, action_id=act.id, **details)

    def _check_repeatable(self, session: GenerationSession) -> None:
        if problem := why_not_again(session):
            raise Conflict(problem)


def why_not_again(session: GenerationSession) -> str | None:
    """Why a session cannot be repeated; None if it can."""
    if session.erased_at is not None:
        return "The session was erased: what it asked for is not known any more"
    if session.status not in {SessionStatus.COMPLETED, SessionStatus.FAILED}:
        return f"The session is {session.status}: wait for its end, or cancel it"
    return None
