"""What accounts and client tokens allow, in this process's memory."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from domain.callers import Shopper
from domain.credits import Channel, CreditAccount, Owner
from domain.errors import WearonError
from domain.plans import AccountLimits, RateUse, RefundWindow, TokenBudget
from domain.refusals import Refusal, error_of, rates_used_up, refunded_too_often
from domain.sessions import CALLERS_FAULTS, ErrorCode, GenerationSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """How many sessions of an owner, and of a client token, are unfinished."""

    of_owner: int
    of_token: int


class InMemoryLimits:
    """Checks and counts what the debit's statement checks and counts in the database.

    ``budgets`` are the client tokens, by their ids.
    """

    def __init__(self, limits: AccountLimits, *, clock: Callable[[], datetime]) -> None:
        self.budgets: dict[UUID, TokenBudget] = {}
        self._limits = limits
        self._clock = clock
        self._unused_at: dict[tuple[Owner, str], datetime] = {}
        self._refunds: dict[Hashable, RefundWindow] = {}

    def check(
        self, session: GenerationSession, account: CreditAccount, active: Active, max_active: int
    ) -> None:
        """Raise the error of the first limit that refuses ``session``, in the database's order."""
        if account.suspended:
            raise error_of(Refusal.SUSPENDED)
        self._check_refunds(account.owner, self._limits.refunds_per_hour)
        if active.of_owner >= max_active:
            raise error_of(Refusal.TOO_MANY_ACTIVE)
        if session.shopper is not None and (problem := self._problem(session, active.of_token)):
            raise problem
        if any(rate.remaining == 0 for rate in self.rates(account)):
            of_shopper = session.shopper is not None
            raise rates_used_up(self.rates(account), of_shopper=of_shopper)

    def debited(self, session: GenerationSession, account: CreditAccount) -> int | None:
        """Count a new session. Returns how many pictures are left of its client token, if any."""
        now = self._clock()
        for rate in self._limits.rates_of(account.plan).all:
            state = (account.owner, rate.name)
            self._unused_at[state] = rate.used(self._unused_at.get(state), now)
        if session.shopper is None:
            return None
        token_id = session.shopper.token_id
        budget = self.budgets[token_id] = self.budgets[token_id].debited()
        return budget.remaining

    def refunded(self, session: GenerationSession, code: str) -> None:
        """Count the refund of a session that failed with ``code``."""
        whose: list[Hashable] = [session.owner]
        if session.shopper is not None:
            whose.append(_key_of(session.owner, session.shopper))
            budget = self.budgets.get(session.shopper.token_id)
            if budget is not None:  # Else the shopper was forgotten.
                undone = code == ErrorCode.QUEUE_UNAVAILABLE
                self.budgets[session.shopper.token_id] = budget.refunded(undone=undone)
        if code in CALLERS_FAULTS:
            now = self._clock()
            for one in whose:
                self._refunds[one] = self._refunds.get(one, RefundWindow.empty(now)).added(now)

    def rates(self, account: CreditAccount) -> tuple[RateUse, ...]:
        """The rates of an account's plan, as far as they are used."""
        now = self._clock()
        return tuple(
            rate.use(
                max(
                    0.0,
                    (self._unused_at.get((account.owner, rate.name), now) - now).total_seconds(),
                )
            )
            for rate in self._limits.rates_of(account.plan).all
        )

    @property
    def signups_per_day(self) -> int:
        return self._limits.signups_per_day

    def _problem(self, session: GenerationSession, active: int) -> WearonError | None:
        """Why the client token of ``session`` does not allow it."""
        shopper = session.shopper
        budget = None if shopper is None else self.budgets.get(shopper.token_id)
        if shopper is None or budget is None:
            return error_of(Refusal.TOKEN_INVALID)
        theirs = (session.owner.channel, session.owner.id, shopper.id)
        belongs = theirs == (Channel.B2B, budget.store_id, budget.shopper_id)
        if not belongs or not budget.is_valid(self._clock()):
            return error_of(Refusal.TOKEN_INVALID)
        self._check_refunds(_key_of(session.owner, shopper), self._limits.shopper_refunds_per_hour)
        if budget.is_used_up:
            return error_of(Refusal.TOKEN_USED_UP)
        if active >= self._limits.max_active_of_token:
            return error_of(Refusal.TOO_MANY_ACTIVE)
        return None

    def _check_refunds(self, whose: Hashable, limit: int | None) -> None:
        window, now = self._refunds.get(whose), self._clock()
        if window is not None and limit is not None and window.estimate(now) >= limit:
            raise refunded_too_often(window, limit, now)


def _key_of(owner: Owner, shopper: Shopper) -> Hashable:
    return owner, shopper.id
