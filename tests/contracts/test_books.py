"""The books balance while all transitions run concurrently."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from domain.callers import Shopper
from domain.credits import Channel, Owner
from domain.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    IllegalTransition,
    InsufficientCredits,
    TooManyActive,
)
from domain.plans import Plan, TokenBudget
from domain.sessions import SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, MANY, OPERATOR, a_session, picture_of

pytestmark = pytest.mark.anyio

OWNERS = [
    Owner(channel=channel, id=f"owner-{number}")
    for number, channel in enumerate([*Channel, *Channel, Channel.B2C])
]
SHOP = OWNERS[0]
SHOPPERS = [Shopper(id=f"shopper-{number % 2}", token_id=UUID(int=number)) for number in (1, 2, 3)]
PICTURES = 4
TASKS = 8
STEPS_PER_TASK = 80
MAX_ATTEMPTS = 2
NO_TIME = timedelta(0)
LIMIT = 10


class Crowd:
    """All writers: submitters, workers, external consumers and recovery."""

    def __init__(self, backend: Backend, random: Random) -> None:
        self.backend = backend
        self.random = random
        self.ids: list[UUID] = []

    async def run(self) -> None:
        steps: list[Callable[[], Awaitable[object]]] = [
            *[self.create] * 6,
            *[self.work] * 4,
            self.cancel,
            self.confirm,
            self.write_externally,
            self.grant,
            self.adjust,
            self.change_plan,
            *[self.recover] * 3,
        ]
        for _ in range(STEPS_PER_TASK):
            with suppress(
                Conflict, Forbidden, IllegalTransition, InsufficientCredits, TooManyActive
            ):
                await self.random.choice(steps)()

    def some_id(self) -> UUID:
        return self.random.choice(self.ids[-30:])

    async def create(self) -> None:
        shopper = self.random.choice([None, *SHOPPERS])
        owner = SHOP if shopper else self.random.choice(OWNERS)
        session = a_session(owner=owner, shopper=shopper)
        await self.backend.sessions.create(session, max_active=MANY)
        self.ids.append(session.id)

    async def work(self) -> None:
        lease = self.random.choice([NO_TIME, LEASE])
        session = await self.backend.attempts.claim(self.some_id(), lease=lease)
        if session is None:
            return
        attempts, attempt = self.backend.attempts, session.attempt
        match self.random.randrange(5):
            case 0:
                await attempts.fail(session.id, FAILURE, attempt=attempt)
            case 1:
                await attempts.release(session.id, attempt=attempt, delay=NO_TIME)
            case 2:
                await attempts.renew(session.id, attempt=attempt, lease=LEASE)
            case _:
                await attempts.complete(
                    session.id, attempt=attempt, picture=picture_of(session.id, session.owner)
                )

    async def cancel(self) -> None:
        await self.backend.sessions.fail_queued(self.some_id(), FAILURE)

    async def confirm(self) -> None:
        await self.backend.sessions.confirm(self.random.sample(self.ids, min(len(self.ids), 20)))

    async def write_externally(self) -> None:
        status = self.random.choice(["processing", "completed", "failed", "failed"])
        picture = {"generated_image_url": "https://x.example/"} if status == "completed" else {}
        await self.backend.external_write(self.some_id(), status=status, **picture)

    async def grant(self) -> None:
        await self.backend.credits.grant(self.random.choice(OWNERS), 5, note="test")

    async def adjust(self) -> None:
        reference = self.random.choice([None, f"invoice-{self.random.randrange(10)}"])
        with suppress(IdempotencyKeyReused):
            await self.backend.credits.adjust(
                self.random.choice(OWNERS), 4, note="test", reference=reference, by=OPERATOR
            )

    async def change_plan(self) -> None:
        plan = self.random.choice([*Plan])
        await self.backend.accounts.set_plan(self.random.choice(OWNERS), plan, by=OPERATOR)

    async def recover(self) -> None:
        recovery = self.backend.recovery
        await recovery.claim_overdue(created_before=None, again_after=NO_TIME, limit=LIMIT)
        await recovery.release_dead_leases(
            max_attempts=MAX_ATTEMPTS, external_timeout=NO_TIME, limit=LIMIT
        )
        await recovery.fail_dead_leases(
            FAILURE, max_attempts=MAX_ATTEMPTS, external_timeout=NO_TIME, limit=LIMIT
        )
        await recovery.fail_expired(FAILURE, older_than=NO_TIME, limit=self.random.randrange(4))
        await recovery.refund_missing(limit=LIMIT)
        old = await recovery.claim_expired_images(
            older_than=NO_TIME, again_after=NO_TIME, limit=LIMIT
        )
        await recovery.mark_images_deleted([session.id for session in old])


@pytest.mark.parametrize("seed", range(3))
async def test_books_balance_after_concurrent_work(backend: Backend, seed: int) -> None:
    """Submitting, working, cancelling, adjusting, external writes and recovery over five accounts
    and three client tokens: no deadlock, every failure is refunded, and what was granted and not
    taken back equals the balances plus the delivered and the unfinished sessions."""
    for owner in OWNERS:
        await backend.credits.grant(owner, 40, note="test")
    for shopper in SHOPPERS:
        await backend.add_token(
            shopper.token_id,
            TokenBudget(
                store_id=SHOP.id,
                shopper_id=shopper.id,
                pictures=PICTURES,
                expires_at=datetime.now(UTC) + timedelta(minutes=30),
            ),
        )
    crowd = Crowd(backend, Random(seed))
    for owner in OWNERS:
        crowd.ids.append(await backend.queued(owner))

    await asyncio.gather(*(crowd.run() for _ in range(TASKS)))

    while await backend.recovery.refund_missing(limit=LIMIT):
        pass
    assert await backend.credits.audit(limit=10) == []
    for shopper in SHOPPERS:
        budget = await backend.budget_of(shopper.token_id)
        assert 0 < budget.submissions <= 3 * PICTURES
    for owner in OWNERS:
        account, stats = await backend.credits.account(owner), await backend.reads.stats(owner)
        kept = account.total_granted + account.total_adjusted
        assert account.balance == kept - (stats.active + stats.completed)
    assert any(action.action == "credits.adjust" for action in await backend.actions())
    ended = [await backend.get(session_id) for session_id in crowd.ids]
    assert {session.status for session in ended} >= {SessionStatus.COMPLETED, SessionStatus.FAILED}
