"""The store and the queue of a whole service in memory, both of which can be away, and the use
cases that move sessions between them."""

from datetime import timedelta
from uuid import UUID, uuid4

from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.payload import decode
from domain.credits import LedgerKind, Owner
from domain.ports import Receipt
from domain.recovery import Recovery, RecoveryPolicy, RecoveryReport
from domain.sessions import GenerationSession
from domain.submission import Submission
from domain.tasks import GenerationTask
from tests.support.clock import FakeClock, loop_time
from tests.support.examples import LEASE, USER, a_request
from tests.support.faults import FlakySessionRepo, FlakyTaskQueue


class Service:
    """Lives on the time of the running event loop: ``clock.advance`` and sleeping both move it."""

    def __init__(self) -> None:
        self.clock = FakeClock(ticks=loop_time)
        self.accounts = InMemoryCreditRepo(clock=self.clock.now)
        self.repo = FlakySessionRepo(accounts=self.accounts, clock=self.clock.now)
        self.queue = FlakyTaskQueue()
        self.submission = Submission(
            repo=self.repo,
            reads=self.repo,
            queue=self.queue,
            new_id=uuid4,
            clock=self.clock.now,
        )

    async def submitted(self, owner: Owner = USER, *, confirmed: bool = True) -> Receipt:
        """A session that was paid for and pushed; by default the store knows of the push."""
        await self.accounts.grant(owner, 1, note="test")
        receipt = await self.submission.submit(a_request(owner))
        if confirmed:
            await self.submission.confirm_pushed()
        return receipt

    async def backlog(self, count: int, *, apart: timedelta = timedelta(seconds=1)) -> list[UUID]:
        """The ids of ``count`` confirmed sessions, oldest first."""
        ids = []
        for _ in range(count):
            ids.append((await self.submitted()).session.id)
            self.clock.advance(apart)
        return ids

    async def claimed(self, session_id: UUID) -> GenerationSession:
        """Take the session's task off the queue and claim it, as a worker does."""
        await self.queue.pop(timeout_seconds=0)
        session = await self.repo.claim(session_id, lease=LEASE)
        assert session is not None
        return session

    async def session(self, session_id: UUID) -> GenerationSession:
        return await self.repo.get(session_id, None)

    async def sessions(self) -> list[GenerationSession]:
        """All sessions, newest first."""
        return await self.repo.history(None, status=None, limit=10_000, after=None)

    async def recover(self, policy: RecoveryPolicy | None = None) -> RecoveryReport:
        return await self.recovery(policy).run_once()

    def recovery(self, policy: RecoveryPolicy | None = None) -> Recovery:
        return Recovery(
            sessions=self.repo,
            lost=self.repo,
            queue=self.queue,
            policy=policy or RecoveryPolicy(),
            new_id=uuid4,
        )

    def waiting(self) -> list[GenerationTask]:
        """The tasks in the queue, the next one first."""
        tasks = [decode(raw) for raw in reversed(self.queue.messages)]
        return [task for task in tasks if isinstance(task, GenerationTask)]

    def balance(self, owner: Owner = USER) -> int:
        return self.accounts.balance_of(owner).balance

    def money_of(self, session_id: UUID) -> list[LedgerKind]:
        """What the ledger says of a session, oldest first."""
        return [entry.kind for entry in self.accounts.entries if entry.session_id == session_id]
