"""Operators' use cases for accounts: grants, adjustments, plans and suspensions."""

from uuid import UUID

from domain.account_ports import AccountRepoPort
from domain.credits import MAX_GRANT, Booked, Channel, CreditAccount, Owner
from domain.errors import InvalidInput
from domain.labels import MAX_NOTE_LENGTH, checked_label, checked_reference
from domain.operators import Operator
from domain.plans import Plan
from domain.ports import CreditRepoPort
from domain.stores import Stores


def owner_named(channel: Channel, owner_id: str) -> Owner:
    """The owner with this id. Raises ``InvalidInput`` unless a user's is a UUID."""
    if channel is Channel.B2B:
        return Owner(channel=channel, id=owner_id)
    try:
        return Owner(channel=channel, id=str(UUID(owner_id)))
    except ValueError as error:
        raise InvalidInput("owner_id", "must be a UUID") from error


class Owners:
    """Reads and changes what owners may do. A store has to exist, a user needs no account yet:
    raises ``UnknownStore`` and ``InvalidInput``."""

    def __init__(
        self, *, accounts: AccountRepoPort, credit_repo: CreditRepoPort, stores: Stores
    ) -> None:
        self._accounts = accounts
        self._credit_repo = credit_repo
        self._stores = stores

    async def require(self, owner: Owner) -> None:
        """Raise for a store that does not exist."""
        if owner.channel is Channel.B2B:
            await self._stores.get(owner.id)
        else:
            owner_named(owner.channel, owner.id)

    async def account(self, owner: Owner) -> CreditAccount:
        await self.require(owner)
        return await self._credit_repo.account(owner)

    async def set_plan(self, owner: Owner, plan: Plan, *, by: Operator) -> CreditAccount:
        await self.require(owner)
        return await self._accounts.set_plan(owner, plan, by=by)

    async def suspend(self, owner: Owner, *, by: Operator) -> CreditAccount:
        """From now on, the owner can request nothing. What it requested goes on."""
        await self.require(owner)
        return await self._accounts.suspend(owner, by=by)

    async def resume(self, owner: Owner, *, by: Operator) -> CreditAccount:
        await self.require(owner)
        return await self._accounts.resume(owner, by=by)


class CreditGrants:
    """Adds credits to accounts, and takes mistaken grants back. Raises ``UnknownStore``, and
    ``InvalidInput`` for an amount below 1 or above ``MAX_GRANT``."""

    def __init__(self, *, accounts: CreditRepoPort, owners: Owners) -> None:
        self._accounts = accounts
        self._owners = owners

    async def grant(
        self,
        owner: Owner,
        amount: int,
        *,
        note: str,
        reference: str | None = None,
        by: Operator | None = None,
    ) -> Booked:
        """A ``reference`` makes it idempotent: see ``CreditRepoPort.grant``."""
        note = checked_label("note", note, max_length=MAX_NOTE_LENGTH, may_be_empty=True)
        await self._check(owner, amount, reference)
        return await self._accounts.grant(owner, amount, note=note, reference=reference, by=by)

    async def adjust(
        self, owner: Owner, amount: int, *, reference: str | None, by: Operator
    ) -> Booked:
        """Take ``amount`` credits back. The operator's reason is the entry's note, which the owner
        can read. Raises ``Conflict`` if the balance is smaller."""
        if by.reason is None:
            raise InvalidInput("reason", "is required")
        await self._check(owner, amount, reference)
        return await self._accounts.adjust(
            owner, amount, note=by.reason, reference=reference, by=by
        )

    async def top_up(self, owner: Owner, amount: int, *, note: str) -> bool:
        """Grant ``amount`` if the balance is 0. Returns whether it was."""
        account = await self._owners.account(owner)
        if account.balance > 0:
            return False
        await self.grant(owner, amount, note=note)
        return True

    async def _check(self, owner: Owner, amount: int, reference: str | None) -> None:
        if not 1 <= amount <= MAX_GRANT:
            raise InvalidInput("amount", f"must be 1 to {MAX_GRANT}")
        if reference is not None:
            checked_reference("reference", reference)
        await self._owners.require(owner)
