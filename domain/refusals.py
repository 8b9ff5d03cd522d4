"""Why no session is created: the errors of all limits that the debit checks."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from domain.credits import GENERATION_COST
from domain.errors import (
    InsufficientCredits,
    RateLimited,
    Suspended,
    TokenUsedUp,
    TooManyActive,
    Unauthenticated,
    WearonError,
)
from domain.plans import RateUse, RefundWindow


class Refusal(StrEnum):
    """What the debit decided, as the database names it. ``UNFUNDED`` accounts, and those that do
    not exist, have no ledger entry yet."""

    NO_ACCOUNT = "no_account"
    UNFUNDED = "unfunded"
    TOO_LITTLE_BALANCE = "too_little_balance"
    KEY_IS_TAKEN = "key_is_taken"
    SUSPENDED = "suspended"
    TOO_MANY_ACTIVE = "too_many_active"
    RATE_LIMITED = "rate_limited"
    REFUNDED_TOO_OFTEN = "refunded_too_often"
    SHOPPER_REFUNDED_TOO_OFTEN = "shopper_refunded_too_often"
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - no password
    TOKEN_USED_UP = "token_used_up"  # noqa: S105 - no password


def error_of(refusal: Refusal) -> WearonError:
    """The error of a refusal that needs no more than its name."""
    match refusal:
        case Refusal.NO_ACCOUNT | Refusal.UNFUNDED | Refusal.TOO_LITTLE_BALANCE:
            return InsufficientCredits(required=GENERATION_COST)
        case Refusal.SUSPENDED:
            return Suspended("The account is suspended")
        case Refusal.TOO_MANY_ACTIVE:
            return TooManyActive("Too many sessions are unfinished; wait for some to end")
        case Refusal.TOKEN_INVALID:
            return Unauthenticated("The client token has expired or was revoked")
        case Refusal.TOKEN_USED_UP:
            return TokenUsedUp("The client token allows no further pictures")
        case (
            Refusal.KEY_IS_TAKEN
            | Refusal.RATE_LIMITED
            | Refusal.REFUNDED_TOO_OFTEN
            | Refusal.SHOPPER_REFUNDED_TOO_OFTEN
        ):
            raise AssertionError(f"{refusal} needs more than its name")
        case _:
            assert_never(refusal)


def rates_used_up(rates: Sequence[RateUse], *, of_shopper: bool = False) -> RateLimited:
    """The error for the rates of a plan, of which one at least is used up. A shopper does not see
    its store's rates."""
    used_up = max(rates, key=lambda rate: rate.retry_seconds)
    if of_shopper:
        return RateLimited(
            "The shop has too many requests at the moment; try again later",
            retry_after_seconds=max(1, used_up.retry_seconds),
        )
    return RateLimited(
        f"At most {used_up.limit} submissions per {used_up.name}",
        retry_after_seconds=max(1, used_up.retry_seconds),
        rates=rates,
    )


def refunded_too_often(window: RefundWindow, limit: int, now: datetime) -> RateLimited:
    """The error for too many refunds through the caller's own fault."""
    return RateLimited(
        "Too many sessions were cancelled or rejected within an hour",
        retry_after_seconds=window.retry_seconds(limit, now),
    )
