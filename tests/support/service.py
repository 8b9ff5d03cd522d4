"""A whole service in memory: adapters that fail on demand, a scripted fetcher and generator, and
the use cases between them."""

from datetime import timedelta
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.changes.memory import InMemoryChanges
from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.payload import decode
from adapters.storage.signing import UrlSigner
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.workers.memory import InMemoryWorkerRepo
from config.metrics import count_ended
from domain.credits import LedgerKind, Owner
from domain.deadlines import SharedTimeout
from domain.generation import Generation, Outcome, WorkPolicy
from domain.picture_ports import Picture, PictureGeneratorPort
from domain.ports import Receipt
from domain.recovery import Recovery, RecoveryPolicy, RecoveryReport
from domain.sessions import GenerationSession
from domain.submission import Submission, SubmissionPolicy
from domain.tasks import GenerationTask
from tests.support.clock import FakeClock, loop_time
from tests.support.examples import (
    BAG,
    HAT,
    LEASE,
    MANY,
    MODEL_URL,
    ORIGINS,
    OUTFIT_URL,
    USER,
    a_request,
)
from tests.support.faults import (
    FlakyClientTokenRepo,
    FlakyPictureStorage,
    FlakySessionRepo,
    FlakyTaskQueue,
    flaky,
)
from tests.support.images import FakePictureFetcher, FakePictureGenerator

INPUTS = {
    url: Picture(data=url.encode(), media_type="image/jpeg")
    for url in (MODEL_URL, OUTFIT_URL, HAT.url, BAG.url)
}
"""What the links of the examples lead to."""


def seeded_random() -> Random:
    """Draws the same numbers in every run."""
    return Random(1)


class Service:
    """Follows the running event loop's time: ``clock.advance`` and sleeping both move it."""

    def __init__(self) -> None:
        self.clock = FakeClock(ticks=loop_time)
        self.audit_log = InMemoryAuditLog(clock=self.clock.now)
        self.accounts = InMemoryCreditRepo(clock=self.clock.now, log=self.audit_log)
        self.repo = flaky(
            FlakySessionRepo(accounts=self.accounts, clock=self.clock.now, count_ended=count_ended)
        )
        self.origins = set(ORIGINS)
        """Of every store."""
        self.tokens = flaky(
            FlakyClientTokenRepo(
                clock=self.clock.now,
                origins_of=lambda _: self.origins,
                budgets=self.repo.budgets,
                may_refund=self.repo.may_refund,
            )
        )
        self.changes = InMemoryChanges()
        self.webhooks = InMemoryWebhookRepo(clock=self.clock.now, find_session=self.repo.find)
        self.repo.ended = self.webhooks.session_ended
        self.accounts.changed = self.webhooks.balance_changed
        self.workers = InMemoryWorkerRepo(
            clock=self.clock.now, pauses={}, spent_since=self.repo.spent_since
        )
        self.queue = flaky(FlakyTaskQueue(clock=self.clock.now))
        self.fetcher = FakePictureFetcher(INPUTS)
        self.generator = FakePictureGenerator()
        signer = UrlSigner(
            base_url="https://wearon.example",
            secret=b"secret",
            lifetime=timedelta(hours=1),
            clock=self.clock.now,
        )
        self.storage = flaky(FlakyPictureStorage(signer=signer))
        self.submission = self.submission_with(SubmissionPolicy(max_active=MANY, max_waiting=MANY))

    def submission_with(self, policy: SubmissionPolicy) -> Submission:
        return Submission(
            sessions=self.repo,
            reads=self.repo,
            queue=self.queue,
            policy=policy,
            new_id=uuid4,
            clock=self.clock.now,
            changes=self.changes,
        )

    def limit(self, policy: SubmissionPolicy) -> None:
        """Give ``submission`` other limits from now on."""
        self.submission._policy = policy
        self.submission._deadline = SharedTimeout(policy.deadline.total_seconds())

    async def submitted(
        self, owner: Owner = USER, *, confirmed: bool = True, **changes: Any
    ) -> Receipt:
        """A session that was paid for and pushed; by default, the push is confirmed."""
        await self.accounts.grant(owner, 1, note="test")
        receipt = await self.submission.submit(a_request(owner, **changes))
        if confirmed:
            await self.submission.confirm_pushed()
        return receipt

    async def backlog(self, count: int, *, apart: timedelta = timedelta(seconds=1)) -> list[UUID]:
        """Submit ``count`` sessions. Their ids, oldest first."""
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

    async def work(self, generation: Generation | None = None) -> Outcome:
        """Run the next task, as a worker does."""
        task = await self.queue.pop(timeout_seconds=0)
        assert isinstance(task, GenerationTask)
        return await (generation or self.generation()).run(task)

    async def session(self, session_id: UUID) -> GenerationSession:
        return await self.repo.get(session_id, None)

    async def picture(self, object_key: str) -> Picture:
        """The picture behind a finished picture's link."""
        query = parse_qs(urlsplit(self.storage.url(object_key)).query)
        return await self.storage.read_signed(
            object_key, expires=int(query["expires"][0]), signature=query["signature"][0]
        )

    async def sessions(self) -> list[GenerationSession]:
        """All sessions, newest first."""
        return await self.repo.history(None, status=None, limit=10_000, after=None)

    async def recover(self, policy: RecoveryPolicy | None = None) -> RecoveryReport:
        return await self.recovery(policy).run_once()

    def recovery(self, policy: RecoveryPolicy | None = None) -> Recovery:
        return Recovery(
            sessions=self.repo,
            recovery_repo=self.repo,
            queue=self.queue,
            storage=self.storage,
            uploads=self.storage,
            tokens=self.tokens,
            webhooks=self.webhooks,
            workers=self.workers,
            policy=policy or RecoveryPolicy(),
            new_id=uuid4,
            clock=self.clock.now,
        )

    def generation(
        self,
        policy: WorkPolicy | None = None,
        random: Random | None = None,
        *,
        generator: PictureGeneratorPort | None = None,
    ) -> Generation:
        return Generation(
            sessions=self.repo,
            reads=self.repo,
            attempts=self.repo,
            queue=self.queue,
            fetcher=self.fetcher,
            generator=generator or self.generator,
            storage=self.storage,
            policy=policy or WorkPolicy(),
            random=random or seeded_random(),
            new_id=uuid4,
            worker="worker-1:7",
            changes=self.changes,
        )

    def waiting(self) -> list[GenerationTask]:
        """The tasks in the queue, the next one first."""
        tasks = [decode(raw) for raw in reversed(self.queue.messages)]
        return [task for task in tasks if isinstance(task, GenerationTask)]

    def balance(self, owner: Owner = USER) -> int:
        return self.accounts.balance_of(owner).balance

    def money_of(self, session_id: UUID) -> list[LedgerKind]:
        """The ledger entries of a session, oldest first."""
        return [entry.kind for entry in self.accounts.entries if entry.session_id == session_id]
