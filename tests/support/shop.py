"""One session whose picture comes from a generator under test."""

from datetime import timedelta
from uuid import UUID

from domain.credits import LedgerKind
from domain.generation import Generation, Outcome
from domain.picture_ports import PictureGeneratorPort
from domain.sessions import SessionStatus
from tests.support.examples import OUTFIT_URL
from tests.support.service import Service

CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]


class Shop:
    """A service in memory whose pictures come from ``generator``, and one session."""

    def __init__(self, generator: PictureGeneratorPort) -> None:
        self.service = Service()
        self.generation: Generation = self.service.generation(generator=generator)
        self.session_id = UUID(int=0)

    async def submit(self) -> None:
        self.session_id = (await self.service.submitted(outfit_image_url=OUTFIT_URL)).session.id

    async def work(self) -> Outcome:
        return await self.service.work(self.generation)

    async def later(self, delay: timedelta) -> None:
        """Let time pass, and run recovery."""
        self.service.clock.advance(delay)
        await self.service.recover()

    async def state(self) -> tuple[SessionStatus, str | None]:
        """Status and error code."""
        session = await self.service.session(self.session_id)
        assert await self.service.accounts.audit(limit=10) == []
        return session.status, None if session.failure is None else session.failure.code

    async def message(self) -> str:
        """The customer's message about the failure."""
        failure = (await self.service.session(self.session_id)).failure
        assert failure is not None
        return failure.message

    @property
    def money(self) -> list[LedgerKind]:
        return self.service.money_of(self.session_id)
