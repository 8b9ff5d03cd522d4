"""SessionRepoPort: the limits that the debit checks. Rates, refunds, suspension, sign-up credits
and client tokens."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.callers import Shopper
from domain.credits import LedgerKind, Owner
from domain.errors import (
    InsufficientCredits,
    RateLimited,
    Suspended,
    TokenUsedUp,
    TooManyActive,
    Unauthenticated,
    WearonError,
)
from domain.plans import NO_LIMITS, AccountLimits, Plan, PlanRates, TokenBudget
from domain.ports import Receipt, SessionRepoPort
from domain.sessions import CALLERS_FAULTS, ErrorCode, Failure
from tests.contracts.backends import Backend
from tests.support.examples import MANY, OTHER, STORE, USER, a_session

pytestmark = pytest.mark.anyio

FIVE = AccountLimits(rates={Plan.DEFAULT: PlanRates(submissions_per_minute=5)})
HOUR = timedelta(hours=1)


def failed(code: str) -> Failure:
    return Failure(code=code, message="test")


async def submit(
    repo: SessionRepoPort,
    count: int = 1,
    *,
    owner: Owner = USER,
    max_active: int = MANY,
    signup_credits: int = 0,
    **changes: Any,
) -> list[Receipt | WearonError]:
    """The outcomes of concurrent submissions."""
    calls = (
        repo.create(
            a_session(owner=owner, **changes),
            max_active=max_active,
            signup_credits=signup_credits,
        )
        for _ in range(count)
    )
    found = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in found:
        if not isinstance(outcome, Receipt | WearonError):
            raise outcome
    return found  # type: ignore[return-value]  # checked above


def kinds(outcomes: Sequence[Receipt | WearonError]) -> dict[str, int]:
    """How many outcomes there are of each type."""
    names = [type(outcome).__name__ for outcome in outcomes]
    return {name: names.count(name) for name in names}


async def one(repo: SessionRepoPort, **options: Any) -> Receipt:
    """The receipt of a single submission. Raises its error."""
    (outcome,) = await submit(repo, **options)
    if isinstance(outcome, WearonError):
        raise outcome
    return outcome


async def test_rate_is_exact_under_concurrency(backend: Backend) -> None:
    """As many submissions as the plan allows are charged, together or one by one."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(FIVE)

    outcomes = [*await submit(repo, 3), *await submit(repo, 20), *await submit(repo)]

    assert kinds(outcomes) == {"Receipt": 5, "RateLimited": 19}
    assert await backend.balance() == 95


async def test_rate_of_one_owner_is_not_anothers(backend: Backend) -> None:
    """Each account has its own."""
    for owner in (USER, OTHER):
        await backend.credits.grant(owner, 100, note="test")
    repo = backend.limited(FIVE)

    mine, others = await submit(repo, 6), await submit(repo, 4, owner=OTHER)

    assert (kinds(mine), kinds(others)) == ({"Receipt": 5, "RateLimited": 1}, {"Receipt": 4})


async def test_rate_returns_one_by_one(backend: Backend) -> None:
    """After a burst, one submission per interval is allowed; after the period, a burst again."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(FIVE)
    await submit(repo, 5)

    found = []
    for seconds in (11, 1.2, 0.1, 61):
        await backend.advance(timedelta(seconds=seconds))
        found.append(kinds(await submit(repo, 7)).get("Receipt", 0))

    assert found == [0, 1, 0, 5]


async def test_rate_says_when_to_come_back(backend: Backend) -> None:
    """The state of each rate is on the receipt and on the error."""
    await backend.credits.grant(USER, 100, note="test")
    limits = PlanRates(submissions_per_minute=2, submissions_per_hour=3)
    repo = backend.limited(AccountLimits(rates={Plan.DEFAULT: limits}))

    first, second = await one(repo), await one(repo)
    (refused,) = await submit(repo)
    await backend.advance(timedelta(seconds=61))
    last = await one(repo)
    (of_hour,) = await submit(repo)

    assert [(rate.name, rate.remaining) for rate in first.rates] == [("minute", 1), ("hour", 2)]
    assert [(rate.name, rate.remaining) for rate in second.rates] == [("minute", 0), ("hour", 1)]
    assert isinstance(refused, RateLimited)
    assert str(refused) == "At most 2 submissions per minute"
    assert 29 <= refused.retry_after_seconds <= 31
    assert [rate.remaining for rate in last.rates] == [1, 0]
    assert isinstance(of_hour, RateLimited)
    assert str(of_hour) == "At most 3 submissions per hour"
    assert 1_100 < of_hour.retry_after_seconds < 1_200
    assert [rate.limit for rate in of_hour.rates] == [2, 3]


async def test_plan_has_its_rates(backend: Backend) -> None:
    """A plan without numbers has no limit."""
    rates = {
        Plan.DEFAULT: PlanRates(submissions_per_minute=1),
        Plan.GROWTH: PlanRates(submissions_per_minute=3),
    }
    repo = backend.limited(AccountLimits(rates=rates))
    found = {}
    for plan in (Plan.DEFAULT, Plan.GROWTH, Plan.SCALE):
        owner = Owner(channel=STORE.channel, id=f"store-{plan}")
        await backend.credits.grant(owner, 100, note="test")
        await backend.set_account(owner, plan=plan)
        found[plan.value] = kinds(await submit(repo, 9, owner=owner))["Receipt"]

    assert found == {"default": 1, "growth": 3, "scale": 9}


async def test_lower_plan_counts_what_was_used(backend: Backend) -> None:
    """The time until the rate is unused stays, so a full rate stays full."""
    rates = {
        Plan.DEFAULT: PlanRates(submissions_per_minute=1),
        Plan.GROWTH: PlanRates(submissions_per_minute=60),
    }
    repo = backend.limited(AccountLimits(rates=rates))
    await backend.credits.grant(USER, 100, note="test")
    await backend.set_account(USER, plan=Plan.GROWTH)
    await submit(repo, 40)
    await backend.set_account(USER, plan=Plan.DEFAULT)

    (refused,) = await submit(repo)

    assert isinstance(refused, RateLimited)
    assert 39 <= refused.retry_after_seconds <= 41


async def test_refused_submission_uses_no_rate(backend: Backend) -> None:
    """Neither without credits, nor with too many unfinished sessions, nor as a replay."""
    repo = backend.limited(FIVE)
    await backend.credits.grant(USER, 3, note="test")
    await submit(repo, idempotency_key="k")

    await submit(repo, 20, max_active=1)
    replays = await submit(repo, 20, idempotency_key="k")
    await submit(repo, 2)
    await submit(repo, 20)
    await backend.credits.grant(USER, 100, note="test")
    rest = await submit(repo, 20)

    assert all(isinstance(replay, Receipt) and replay.replayed for replay in replays)
    assert kinds(rest) == {"Receipt": 2, "RateLimited": 18}


async def test_refund_returns_no_rate(backend: Backend) -> None:
    """The credit comes back, the rate does not: a loop of submissions and cancellations ends."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(FIVE)

    for _ in range(5):
        receipt = await one(repo)
        assert await repo.fail_queued(receipt.session.id, failed(ErrorCode.CANCELLED))

    assert kinds(await submit(repo)) == {"RateLimited": 1}
    assert await backend.balance() == 100


@pytest.mark.parametrize("code", ErrorCode)
async def test_only_callers_faults_count_as_refunds(backend: Backend, code: ErrorCode) -> None:
    """What the service or its provider failed at never keeps a caller out."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(AccountLimits(refunds_per_hour=2))

    for _ in range(2):
        receipt = await one(repo)
        assert await repo.fail_queued(receipt.session.id, failed(code))
    found = kinds(await submit(repo))

    assert found == ({"RateLimited": 1} if code in CALLERS_FAULTS else {"Receipt": 1})


async def test_refunds_are_forgotten(backend: Backend) -> None:
    """Two hours later at the latest."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(AccountLimits(refunds_per_hour=1))
    receipt = await one(repo)
    await repo.fail_queued(receipt.session.id, failed(ErrorCode.CANCELLED))

    (refused,) = await submit(repo)
    await backend.advance(2 * HOUR)

    assert isinstance(refused, RateLimited)
    assert str(refused) == "Too many sessions were cancelled or rejected within an hour"
    assert 0 < refused.retry_after_seconds <= 2 * HOUR.total_seconds()
    assert kinds(await submit(repo)) == {"Receipt": 1}


async def test_refund_after_an_external_failure_counts(backend: Backend) -> None:
    """An external consumer writes the status, recovery refunds and counts it."""
    await backend.credits.grant(USER, 100, note="test")
    repo = backend.limited(AccountLimits(refunds_per_hour=1))
    receipt = await one(repo)
    columns = {"status": "failed", "error_message": "blocked"}
    await backend.external_write(receipt.session.id, **columns)
    before = kinds(await submit(repo))

    assert await backend.recovery.refund_missing(limit=10) == 1

    assert before == {"Receipt": 1}
    assert kinds(await submit(repo)) == {"Receipt": 1}  # GENERATION_FAILED is not its fault


async def test_suspended_account_gets_nothing_new(backend: Backend) -> None:
    """A replay of an earlier request is still answered; a resumed account goes on."""
    await backend.credits.grant(USER, 100, note="test")
    await submit(backend.sessions, idempotency_key="k")
    await backend.set_account(USER, suspended=True)

    refused = await submit(backend.sessions, 3)
    replay = await one(backend.sessions, idempotency_key="k")
    balance = await backend.balance()
    await backend.set_account(USER)

    assert [type(outcome) for outcome in refused] == [Suspended] * 3
    assert (replay.replayed, balance) == (True, 99)
    assert kinds(await submit(backend.sessions)) == {"Receipt": 1}


async def test_user_signs_up_once(backend: Backend) -> None:
    """Concurrent first requests share one grant, which stands in the ledger before the debit."""
    outcomes = await submit(backend.sessions, 10, signup_credits=3)

    assert kinds(outcomes) == {"Receipt": 3, "InsufficientCredits": 7}
    entries = list(reversed(await backend.credits.ledger(USER, limit=50, before_id=None)))
    assert [(entry.kind, entry.amount, entry.note) for entry in entries] == [
        (LedgerKind.GRANT, 3, "sign-up credits"),
        *[(LedgerKind.DEBIT, -1, None)] * 3,
    ]
    assert await backend.credits.signups_today() == 1
    assert await backend.credits.audit(limit=10) == []


async def test_user_without_credits_signs_up_no_more(backend: Backend) -> None:
    """Neither after its sign-up credits were spent, nor after a grant was."""
    await submit(backend.sessions, signup_credits=1)
    await backend.credits.grant(OTHER, 1, note="test")
    await submit(backend.sessions, owner=OTHER)

    mine = await submit(backend.sessions, signup_credits=1)
    others = await submit(backend.sessions, owner=OTHER, signup_credits=1)

    assert kinds([*mine, *others]) == {"InsufficientCredits": 2}


async def test_granted_user_keeps_its_credits(backend: Backend) -> None:
    """A user with a ledger entry is not new."""
    await backend.credits.grant(USER, 5, note="test")

    receipt = await one(backend.sessions, signup_credits=3)

    assert receipt.credits_remaining == 4


async def test_account_without_entries_signs_up(backend: Backend) -> None:
    """A plan set beforehand makes no difference; a suspension does."""
    await backend.set_account(USER, plan=Plan.GROWTH)
    await backend.set_account(OTHER, suspended=True)

    mine = await one(backend.sessions, signup_credits=3)
    others = await submit(backend.sessions, owner=OTHER, signup_credits=3)

    assert mine.credits_remaining == 2
    assert [type(outcome) for outcome in others] == [Suspended]
    assert (await backend.credits.account(USER)).plan is Plan.GROWTH


async def test_signups_of_a_day_are_capped(backend: Backend) -> None:
    """The cap is never exceeded, and counts anew on the next day."""
    repo = backend.limited(AccountLimits(signups_per_day=4))
    users = [Owner(channel=USER.channel, id=str(uuid4())) for _ in range(12)]

    found = await asyncio.gather(*(submit(repo, owner=user, signup_credits=2) for user in users))
    await backend.advance(timedelta(days=1))
    tomorrow = await submit(repo, owner=USER, signup_credits=2)

    outcomes = [outcome for outcomes in found for outcome in outcomes]
    assert kinds(outcomes) == {"Receipt": 4, "InsufficientCredits": 8}
    granted = [(await backend.credits.account(user)).total_granted for user in users]
    assert sorted(granted) == [0] * 8 + [2] * 4
    assert kinds(tomorrow) == {"Receipt": 1}


async def test_sign_up_uses_the_rate(backend: Backend) -> None:
    """The first request counts like any other."""
    repo = backend.limited(FIVE)

    first = await one(repo, signup_credits=50)
    others = await submit(repo, 9)

    assert [rate.remaining for rate in first.rates] == [4]
    assert kinds(others) == {"Receipt": 4, "RateLimited": 5}


async def test_signup_with_a_key_is_replayed(backend: Backend) -> None:
    """One session and one grant, however often the first request is sent."""
    outcomes = await submit(backend.sessions, 6, signup_credits=5, idempotency_key="k")

    ids = {outcome.session.id for outcome in outcomes if isinstance(outcome, Receipt)}
    assert (len(ids), await backend.balance()) == (1, 4)


SHOPPER = "shopper-1"


async def a_token(backend: Backend, store: Owner = STORE, **changes: Any) -> Shopper:
    """A client token of a store with credits."""
    shopper = Shopper(id=changes.pop("shopper_id", SHOPPER), token_id=uuid4())
    await backend.credits.grant(store, 100, note="test")
    fields: dict[str, Any] = {
        "store_id": store.id,
        "shopper_id": shopper.id,
        "pictures": 5,
        "expires_at": datetime.now(UTC) + timedelta(minutes=15),
    }
    await backend.add_token(shopper.token_id, TokenBudget(**fields | changes))
    return shopper


async def test_token_is_exact_under_concurrency(backend: Backend) -> None:
    """As many pictures as the token allows are charged to the store, which pays."""
    shopper = await a_token(backend)
    repo = backend.limited(AccountLimits(max_active_of_token=MANY))

    outcomes = [
        *await submit(repo, 2, owner=STORE, shopper=shopper),
        *await submit(repo, 200, owner=STORE, shopper=shopper),
    ]

    assert kinds(outcomes) == {"Receipt": 5, "TokenUsedUp": 197}
    budget = await backend.budget_of(shopper.token_id)
    assert (budget.used, budget.submissions, await backend.balance(STORE)) == (5, 5, 95)
    assert await backend.credits.audit(limit=10) == []


async def test_receipt_says_what_the_token_has_left(backend: Backend) -> None:
    """And the session remembers the shopper and the token."""
    shopper = await a_token(backend)

    first = await one(backend.sessions, owner=STORE, shopper=shopper)
    second = await one(backend.sessions, owner=STORE, shopper=shopper)

    assert (first.pictures_remaining, second.pictures_remaining) == (4, 3)
    assert (await backend.get(first.session.id)).shopper == shopper
    assert (await one(backend.sessions, owner=STORE)).pictures_remaining is None


async def test_tokens_share_a_batch(backend: Backend) -> None:
    """Each is counted by itself; a token that is used up does not use the store's balance."""
    first, second = await a_token(backend, pictures=1), await a_token(backend, pictures=2)
    await backend.change_balance(STORE, -197)
    repo = backend.limited(AccountLimits(max_active_of_token=MANY))

    found = await asyncio.gather(
        submit(repo, 4, owner=STORE, shopper=first), submit(repo, 4, owner=STORE, shopper=second)
    )

    assert kinds(found[0]) == {"Receipt": 1, "TokenUsedUp": 3}
    assert kinds(found[1]) == {"Receipt": 2, "TokenUsedUp": 2}
    assert await backend.balance(STORE) == 0


async def test_refund_gives_the_picture_back(backend: Backend) -> None:
    """Up to three submissions for each picture, however they end."""
    shopper = await a_token(backend, pictures=2)

    left = []
    for _ in range(6):
        receipt = await one(backend.sessions, owner=STORE, shopper=shopper)
        left.append(receipt.pictures_remaining)
        assert await backend.sessions.fail_queued(receipt.session.id, failed("CANCELLED"))

    assert left == [1, 1, 1, 1, 1, 0]
    assert kinds(await submit(backend.sessions, owner=STORE, shopper=shopper)) == {"TokenUsedUp": 1}
    budget = await backend.budget_of(shopper.token_id)
    assert (budget.used, budget.submissions, await backend.balance(STORE)) == (0, 6, 100)


async def test_undone_submission_does_not_count(backend: Backend) -> None:
    """An outage of the queue uses up no token."""
    shopper = await a_token(backend, pictures=1)

    for _ in range(4):
        receipt = await one(backend.sessions, owner=STORE, shopper=shopper)
        undone = failed(ErrorCode.QUEUE_UNAVAILABLE)
        assert await backend.sessions.fail_queued(receipt.session.id, undone, undo=True)

    budget = await backend.budget_of(shopper.token_id)
    assert (budget.used, budget.submissions) == (0, 0)


async def test_externally_failed_picture_is_given_back(backend: Backend) -> None:
    """By recovery, with the refund, once."""
    shopper = await a_token(backend)
    receipt = await one(backend.sessions, owner=STORE, shopper=shopper)
    await backend.external_write(receipt.session.id, status="failed")

    refunds = [await backend.recovery.refund_missing(limit=10) for _ in range(2)]

    assert refunds == [1, 0]
    assert (await backend.budget_of(shopper.token_id)).used == 0


async def test_audit_compares_tokens_with_their_sessions(backend: Backend) -> None:
    """A token that counts a picture for no session, or none for one, is named."""
    shopper = await a_token(backend, used=1, submissions=1)

    (found,) = await backend.credits.audit(limit=10)

    assert found.subject == f"client token {shopper.token_id}"
    assert found.problem.startswith("counts 1 picture(s)")


async def test_active_sessions_of_a_token_are_limited(backend: Backend) -> None:
    """Those of this token only; a finished one makes room."""
    shopper, other = await a_token(backend), await a_token(backend)
    repo = backend.limited(AccountLimits(max_active_of_token=2))

    outcomes = await submit(repo, 4, owner=STORE, shopper=shopper)
    others = await submit(repo, owner=STORE, shopper=other)
    (first, *_) = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    await repo.fail_queued(first.session.id, failed("CANCELLED"))

    assert kinds(outcomes) == {"Receipt": 2, "TooManyActive": 2}
    assert kinds(others) == {"Receipt": 1}
    assert kinds(await submit(repo, 2, owner=STORE, shopper=shopper)) == {
        "Receipt": 1,
        "TooManyActive": 1,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": datetime.now(UTC) - timedelta(seconds=1)},
        {"revoked_at": datetime.now(UTC)},
        {"shopper_id": "another"},
        {"store_id": "store-2"},
    ],
    ids=["expired", "revoked", "another shopper's", "another store's"],
)
async def test_token_that_is_not_valid(backend: Backend, changes: dict[str, Any]) -> None:
    """Is refused at the debit, whatever was known before; nothing is charged."""
    known = await a_token(backend)
    of_another = Shopper(id=SHOPPER, token_id=uuid4())
    fields: dict[str, Any] = {
        "store_id": STORE.id,
        "shopper_id": SHOPPER,
        "pictures": 5,
        "expires_at": datetime.now(UTC) + timedelta(minutes=15),
    }
    await backend.add_token(of_another.token_id, TokenBudget(**fields | changes))

    refused = [
        await submit(backend.sessions, owner=STORE, shopper=shopper)
        for shopper in (of_another, Shopper(id=known.id, token_id=UUID(int=0)))
    ]

    assert [kinds(outcomes) for outcomes in refused] == [{"Unauthenticated": 1}] * 2
    assert await backend.balance(STORE) == 100


async def test_refunds_of_a_shopper_are_limited(backend: Backend) -> None:
    """Over all its tokens; other shoppers, and the store itself, are not affected."""
    first, second = await a_token(backend), await a_token(backend)
    other = await a_token(backend, shopper_id="shopper-2")
    repo = backend.limited(AccountLimits(shopper_refunds_per_hour=2))
    for shopper in (first, second):
        receipt = await one(repo, owner=STORE, shopper=shopper)
        await repo.fail_queued(receipt.session.id, failed(ErrorCode.MODERATION_BLOCKED))

    theirs = [*await submit(repo, owner=STORE, shopper=first)]
    theirs += await submit(repo, owner=STORE, shopper=second)
    others = [*await submit(repo, owner=STORE, shopper=other), *await submit(repo, owner=STORE)]

    assert (kinds(theirs), kinds(others)) == ({"RateLimited": 2}, {"Receipt": 2})


async def test_shopper_does_not_see_the_stores_rates(backend: Backend) -> None:
    """Only when to come back."""
    shopper = await a_token(backend)
    repo = backend.limited(FIVE)
    await submit(repo, 5, owner=STORE)

    (refused,) = await submit(repo, owner=STORE, shopper=shopper)

    assert isinstance(refused, RateLimited)
    assert "5" not in str(refused)
    assert refused.rates == ()
    assert refused.retry_after_seconds >= 1


async def test_shopper_is_refused_by_the_stores_limits(backend: Backend) -> None:
    """The store's rate, suspension and balance hold for its shoppers; the token is not counted."""
    shopper = await a_token(backend)
    repo = backend.limited(FIVE)
    await submit(repo, 5, owner=STORE)
    limited = await submit(repo, owner=STORE, shopper=shopper)
    await backend.set_account(STORE, suspended=True)
    suspended = await submit(repo, owner=STORE, shopper=shopper)
    await backend.set_account(STORE)
    await backend.change_balance(STORE, -95)
    broke = await submit(backend.limited(NO_LIMITS), owner=STORE, shopper=shopper)

    assert [kinds(outcomes) for outcomes in (limited, suspended, broke)] == [
        {"RateLimited": 1},
        {"Suspended": 1},
        {"InsufficientCredits": 1},
    ]
    budget = await backend.budget_of(shopper.token_id)
    assert (budget.used, budget.submissions) == (0, 0)


NAMESAKE = Owner(channel=USER.channel, id=STORE.id)
OTHER_STORE = Owner(channel=STORE.channel, id="store-2")


async def test_shoppers_of_two_stores_share_a_batch(backend: Backend) -> None:
    """Each store pays for its own, also if their shoppers have the same id, and if a user has the
    id of a store."""
    await backend.credits.grant(NAMESAKE, 7, note="test")
    mine, second = await a_token(backend), await a_token(backend, shopper_id="shopper-2")
    others = await a_token(backend, OTHER_STORE, pictures=1)

    found = await asyncio.gather(
        submit(backend.sessions, 2, owner=STORE, shopper=mine),
        submit(backend.sessions, 3, owner=OTHER_STORE, shopper=others),
        submit(backend.sessions, 1, owner=STORE, shopper=second),
    )

    assert [kinds(outcomes) for outcomes in found] == [
        {"Receipt": 2},
        {"Receipt": 1, "TokenUsedUp": 2},
        {"Receipt": 1},
    ]
    owners = (STORE, OTHER_STORE, NAMESAKE)
    assert [await backend.balance(owner) for owner in owners] == [197, 99, 7]
    assert await backend.credits.audit(limit=10) == []


async def test_token_is_of_no_use_to_a_user_with_the_stores_id(backend: Backend) -> None:
    shopper = await a_token(backend)
    await backend.credits.grant(NAMESAKE, 7, note="test")

    refused = await submit(backend.sessions, owner=NAMESAKE, shopper=shopper)

    assert kinds(refused) == {"Unauthenticated": 1}
    assert await backend.balance(NAMESAKE) == 7


async def test_shoppers_key_is_replayed(backend: Backend) -> None:
    """In the same batch and later. Another store's shopper may have the same key."""
    shopper, other = await a_token(backend), await a_token(backend, OTHER_STORE)

    together = await asyncio.gather(
        submit(backend.sessions, 4, owner=STORE, shopper=shopper, idempotency_key="k"),
        submit(backend.sessions, owner=OTHER_STORE, shopper=other, idempotency_key="k"),
        submit(backend.sessions, 2, owner=STORE, shopper=shopper),
    )
    later = await one(backend.sessions, owner=STORE, shopper=shopper, idempotency_key="k")

    mine, others, without_a_key = together
    ids = {outcome.session.id for outcome in mine if isinstance(outcome, Receipt)}
    assert (ids, later.replayed) == ({later.session.id}, True)
    assert kinds([*others, *without_a_key]) == {"Receipt": 3}
    assert [await backend.balance(owner) for owner in (STORE, OTHER_STORE)] == [97, 99]


async def test_unfinished_sessions_of_a_store_limit_its_shoppers(backend: Backend) -> None:
    """Exactly, within a batch and after it, whatever a token has left; those that have ended make
    room."""
    shopper = await a_token(backend, pictures=20)
    used_up = await a_token(backend, pictures=1, used=1, submissions=1)
    repo = backend.limited(AccountLimits(max_active_of_token=MANY))

    for _ in range(2):
        outcomes = await submit(repo, 5, owner=STORE, shopper=shopper, max_active=3)
        more = await submit(repo, owner=STORE, shopper=shopper, max_active=3)
        more += await submit(repo, owner=STORE, shopper=used_up, max_active=3)
        assert kinds([*outcomes, *more]) == {"Receipt": 3, "TooManyActive": 4}
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                await repo.fail_queued(outcome.session.id, failed("CANCELLED"))


async def test_refunds_of_a_store_limit_its_shoppers(backend: Backend) -> None:
    """Also those that another caller caused."""
    shopper = await a_token(backend)
    repo = backend.limited(AccountLimits(refunds_per_hour=2))
    for _ in range(2):
        receipt = await one(repo, owner=STORE)
        await repo.fail_queued(receipt.session.id, failed(ErrorCode.MODERATION_BLOCKED))

    assert kinds(await submit(repo, owner=STORE, shopper=shopper)) == {"RateLimited": 1}


async def test_shopper_of_a_store_without_an_account(backend: Backend) -> None:
    """Is refused like its store, in a batch with another store's shopper."""
    mine = await a_token(backend)
    others = Shopper(id=SHOPPER, token_id=uuid4())
    expires_at = datetime.now(UTC) + timedelta(minutes=15)
    budget = TokenBudget(
        store_id=OTHER_STORE.id, shopper_id=SHOPPER, pictures=5, expires_at=expires_at
    )
    await backend.add_token(others.token_id, budget)

    found = await asyncio.gather(
        submit(backend.sessions, owner=OTHER_STORE, shopper=others),
        submit(backend.sessions, owner=STORE, shopper=mine),
    )

    assert [kinds(outcomes) for outcomes in found] == [{"InsufficientCredits": 1}, {"Receipt": 1}]


ERRORS = (InsufficientCredits, RateLimited, Suspended, TokenUsedUp, TooManyActive, Unauthenticated)


def test_every_refusal_is_tested() -> None:
    """The errors of this suite are those that ``create`` names."""
    named = str(SessionRepoPort.create.__doc__)

    assert [error.__name__ for error in ERRORS if f"``{error.__name__}``" not in named] == []
