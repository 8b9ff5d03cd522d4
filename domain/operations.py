"""Operators' use cases: grant credits, issue API keys, requeue dead letters."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from domain.credits import MAX_GRANT, CreditAccount, Owner
from domain.errors import Conflict, InvalidInput, NotFound, TruncatedLetter
from domain.ports import ApiKey, ApiKeyRepoPort, CreditRepoPort, DeadLetterPort
from domain.sessions import GenerationSession
from domain.tasks import DeadLetter

ReadSession = Callable[[UUID], Awaitable[GenerationSession]]
"""Any owner's session. Raises ``NotFound`` and ``DatabaseUnavailable``."""


class CreditGrants:
    """Adds credits to accounts."""

    def __init__(self, *, accounts: CreditRepoPort) -> None:
        self._accounts = accounts

    async def grant(self, owner: Owner, amount: int, *, note: str) -> CreditAccount:
        """The account after the grant. Raises ``InvalidInput`` for an amount below 1 or above
        ``MAX_GRANT``."""
        if not 1 <= amount <= MAX_GRANT:
            raise InvalidInput("amount", f"must be 1 to {MAX_GRANT}")
        return await self._accounts.grant(owner, amount, note=note)

    async def top_up(self, owner: Owner, amount: int, *, note: str) -> bool:
        """Grant ``amount`` if the balance is 0. Returns whether it was."""
        account = await self._accounts.account(owner)
        if account.balance > 0:
            return False
        await self.grant(owner, amount, note=note)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A new API key. ``secret`` is the key itself, which is not stored."""

    secret: str = field(repr=False)
    key: ApiKey


class ApiKeyIssuer:
    """Creates API keys. ``hash_secret`` is applied before a key is stored."""

    def __init__(
        self,
        *,
        api_keys: ApiKeyRepoPort,
        new_secret: Callable[[], str],
        hash_secret: Callable[[str], str],
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._api_keys = api_keys
        self._new_secret = new_secret
        self._hash_secret = hash_secret
        self._new_id = new_id
        self._clock = clock

    async def issue(self, owner: Owner, *, label: str) -> IssuedKey:
        """A new key for ``owner``."""
        secret = self._new_secret()
        return IssuedKey(secret=secret, key=await self._add(secret, owner, label))

    async def register(self, secret: str, owner: Owner, *, label: str) -> bool:
        """Store a key that exists already. False if it is stored and valid."""
        if await self._api_keys.caller_of(self._hash_secret(secret)) is not None:
            return False
        await self._add(secret, owner, label)
        return True

    async def _add(self, secret: str, owner: Owner, label: str) -> ApiKey:
        key = ApiKey(
            id=self._new_id(),
            owner=owner,
            key_sha256=self._hash_secret(secret),
            label=label,
            created_at=self._clock(),
        )
        await self._api_keys.add(key)
        return key


class DeadLetters:
    """Reads, requeues and discards single dead letters. Raises ``NotFound`` for an unknown one."""

    def __init__(self, *, letters: DeadLetterPort, read_session: ReadSession) -> None:
        self._letters = letters
        self._read_session = read_session

    async def get(self, letter_id: UUID) -> DeadLetter:
        letter = await self._letters.get(letter_id)
        if letter is None:
            raise _no_such_letter()
        return letter

    async def requeue(self, letter_id: UUID) -> None:
        """Move the letter back to the queue, behind all tasks. Raises ``TruncatedLetter``, and
        ``Conflict`` if its session has a final status: a worker would find nothing to do."""
        letter = await self.get(letter_id)
        if letter.is_truncated:
            raise TruncatedLetter(
                f"Of letter {letter_id} only the first {len(letter.raw):,} of {letter.size:,} bytes"
                " were kept, so it cannot be requeued; discard it"
            )
        if letter.session_id is not None:
            await self._require_open(letter.session_id)
        if not await self._letters.requeue(letter_id):
            raise _no_such_letter()

    async def discard(self, letter_id: UUID) -> None:
        """Delete the letter."""
        if not await self._letters.discard(letter_id):
            raise _no_such_letter()

    async def _require_open(self, session_id: UUID) -> None:
        try:
            session = await self._read_session(session_id)
        except NotFound:
            return  # A worker will find out, and report it.
        if session.status.is_final:
            raise Conflict(
                f"Session {session_id} is already {session.status}: a worker would find nothing to"
                " do; discard the letter instead"
            )


def _no_such_letter() -> NotFound:
    return NotFound("No such dead letter; it may have been requeued or discarded already")
