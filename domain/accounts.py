"""Accounts as their callers see them: with the sign-up credits of users who are new."""

from dataclasses import dataclass, replace

from domain.callers import Caller, CallerKind
from domain.credits import CreditAccount
from domain.ports import CreditRepoPort


@dataclass(frozen=True, slots=True, kw_only=True)
class SignupPolicy:
    """The credits that a user is granted at its first debit, and how many users get them on one
    day (UTC). ``anonymous_credits`` is for users whom the identity provider does not know."""

    credits: int = 0
    anonymous_credits: int = 0
    per_day: int = 1_000

    def credits_of(self, caller: Caller) -> int:
        """What ``caller`` is granted at its first debit."""
        if caller.kind is not CallerKind.USER:
            return 0
        return self.anonymous_credits if caller.is_anonymous else self.credits


NO_SIGNUP = SignupPolicy()


class Accounts:
    """Reads accounts. Before its first debit, a user counts as holding the sign-up credits."""

    def __init__(self, *, accounts: CreditRepoPort, policy: SignupPolicy) -> None:
        self._accounts = accounts
        self._policy = policy

    async def of(self, caller: Caller) -> CreditAccount:
        """The account. Raises ``DatabaseUnavailable``."""
        account = await self._accounts.account(caller.owner)
        credits_ = self._policy.credits_of(caller)
        if credits_ == 0 or not account.is_unfunded or account.suspended:
            return account
        if await self._accounts.signups_today() >= self._policy.per_day:
            return account
        return replace(account, balance=credits_, total_granted=credits_)
