"""The callers whose limits a random run reaches, and the rules of these limits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import combinations, groupby
from uuid import UUID

from domain.accounts import SignupPolicy
from domain.callers import Caller, Shopper
from domain.credits import Channel, LedgerEntry, LedgerKind, Owner
from domain.plans import (
    SUBMISSIONS_PER_PICTURE,
    AccountLimits,
    Plan,
    PlanRates,
    TokenBudget,
)
from domain.sessions import GenerationSession, SessionStatus
from tests.support.examples import STORE

PER_MINUTE = 8
LIMITS = AccountLimits(
    rates={Plan.DEFAULT: PlanRates(submissions_per_minute=PER_MINUTE)},
    max_active_of_token=2,
    signups_per_day=2,
)
SIGNUP = SignupPolicy(credits=2, per_day=LIMITS.signups_per_day)
PICTURES = 2
TOKEN_ID = UUID(int=1)
SHOPPER = Caller(owner=STORE, shopper=Shopper(id="shopper", token_id=TOKEN_ID))
NEWCOMERS = [
    Caller(owner=Owner(channel=Channel.B2C, id=str(UUID(int=number)))) for number in range(11, 14)
]


def a_budget(now: datetime) -> TokenBudget:
    """The client token of SHOPPER, valid for the whole run."""
    return TokenBudget(
        store_id=STORE.id,
        shopper_id="shopper",
        pictures=PICTURES,
        expires_at=now + timedelta(hours=1),
    )


def broken_at_once(budgets: Mapping[UUID, TokenBudget]) -> Iterator[str]:
    """What is wrong with client tokens at any step."""
    for budget in budgets.values():
        most = SUBMISSIONS_PER_PICTURE * budget.pictures
        if not 0 <= budget.used <= budget.pictures or not budget.used <= budget.submissions <= most:
            yield f"a token counts {budget}"


def broken_when_settled(
    budgets: Mapping[UUID, TokenBudget],
    sessions: Iterable[GenerationSession],
    entries: Sequence[LedgerEntry],
) -> Iterator[str]:
    """What is wrong once every failed session is refunded."""
    sessions = list(sessions)
    for token_id, budget in budgets.items():
        paid = [
            session
            for session in sessions
            if session.shopper is not None
            and session.shopper.token_id == token_id
            and session.status is not SessionStatus.FAILED
        ]
        if budget.used != len(paid):
            yield f"a token counts {budget.used} pictures for {len(paid)} sessions"
    yield from _broken_rates(sessions)
    yield from _broken_signups(entries)


def _broken_rates(sessions: list[GenerationSession]) -> Iterator[str]:
    """Between any two sessions of an owner there are no more than a burst and what returned."""
    by_owner = sorted(sessions, key=lambda session: (str(session.owner), session.created_at))
    for owner, group in groupby(by_owner, key=lambda session: session.owner):
        for (first, one), (last, other) in combinations(enumerate(group), 2):
            seconds = (other.created_at - one.created_at).total_seconds()
            if last - first + 1 > PER_MINUTE * (1 + seconds / 60) + 1:
                yield f"{owner} got {last - first + 1} sessions within {seconds} s"


def _broken_signups(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """Each newcomer is granted its credits once, before all else, and no more newcomers than a day
    allows."""
    granted = 0
    for newcomer in NEWCOMERS:
        theirs = [entry for entry in entries if entry.owner == newcomer.owner]
        grants = [entry for entry in theirs if entry.kind is LedgerKind.GRANT]
        granted += len(grants)
        if theirs and (grants != theirs[:1] or grants[0].amount != SIGNUP.credits):
            yield f"{newcomer} has the entries {theirs}"
    if granted > LIMITS.signups_per_day:
        yield f"{granted} users signed up"
