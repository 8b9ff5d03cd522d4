"""A store, a queue and an image storage that can be away.

A method named in ``away`` fails before it has done anything; one in ``deaf`` does its work, and
then its reply is lost. To the caller the two look the same. One in ``broken`` has a bug, and one in
``slow`` does its work at once and replies so many seconds later. Every call lets other tasks run
first, as one over a network does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.memory import InMemorySessionRepo
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.errors import DatabaseUnavailable, QueueUnavailable, TryAgain, Unavailable
from domain.ports import Receipt
from domain.sessions import Failure, GenerationSession, StoredPicture, Usage
from domain.tasks import GenerationTask, UnreadableTask


class Faults:
    """Which methods fail, with what, and which were called."""

    def __init__(
        self, error: Callable[[str], Unavailable], refusal: Callable[[str], Unavailable]
    ) -> None:
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.broken: set[str] = set()
        self.slow: dict[str, float] = {}
        self.calls: list[str] = []
        self._error = error
        self._refusal = refusal

    @asynccontextmanager
    async def around(self, method: str) -> AsyncIterator[None]:
        self.calls.append(method)
        await asyncio.sleep(0)
        if method in self.away:
            raise self._refusal(f"{method}: refused")
        if method in self.broken:
            raise RuntimeError(f"{method}: a bug")
        yield
        if method in self.slow:
            await asyncio.sleep(self.slow[method])
        if method in self.deaf:
            raise self._error(f"{method}: no reply")


class FlakySessionRepo(InMemorySessionRepo):
    def __init__(self, *, accounts: InMemoryCreditRepo, clock: Callable[[], datetime]) -> None:
        super().__init__(accounts=accounts, clock=clock)
        self.faults = Faults(DatabaseUnavailable, DatabaseUnavailable)

    async def create(self, session: GenerationSession, *, max_active: int) -> Receipt:
        async with self.faults.around("create"):
            return await super().create(session, max_active=max_active)

    async def find_replay(self, session: GenerationSession) -> Receipt | None:
        async with self.faults.around("find_replay"):
            return await super().find_replay(session)

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        async with self.faults.around("confirm"):
            return await super().confirm(session_ids)

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        async with self.faults.around("claim"):
            return await super().claim(session_id, lease=lease)

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> bool:
        async with self.faults.around("renew"):
            return await super().renew(session_id, attempt=attempt, lease=lease)

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        async with self.faults.around("complete"):
            return await super().complete(session_id, attempt=attempt, picture=picture, usage=usage)

    async def fail_queued(self, session_id: UUID, failure: Failure) -> bool:
        async with self.faults.around("fail_queued"):
            return await super().fail_queued(session_id, failure)

    async def fail(self, session_id: UUID, failure: Failure, *, attempt: int) -> bool:
        async with self.faults.around("fail"):
            return await super().fail(session_id, failure, attempt=attempt)

    async def release(self, session_id: UUID, *, attempt: int, delay: timedelta) -> bool:
        async with self.faults.around("release"):
            return await super().release(session_id, attempt=attempt, delay=delay)

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        async with self.faults.around("record_job"):
            return await super().record_job(session_id, attempt=attempt, job=job)

    async def claim_overdue(
        self, *, created_before: datetime | None, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        async with self.faults.around("claim_overdue"):
            return await super().claim_overdue(
                created_before=created_before, again_after=again_after, limit=limit
            )

    async def refund_missing(self, *, limit: int) -> int:
        async with self.faults.around("refund_missing"):
            return await super().refund_missing(limit=limit)

    async def fail_expired(self, failure: Failure, *, older_than: timedelta, limit: int) -> int:
        async with self.faults.around("fail_expired"):
            return await super().fail_expired(failure, older_than=older_than, limit=limit)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> int:
        async with self.faults.around("release_dead_leases"):
            return await super().release_dead_leases(
                max_attempts=max_attempts, external_timeout=external_timeout, limit=limit
            )

    async def fail_dead_leases(
        self, failure: Failure, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> list[GenerationSession]:
        async with self.faults.around("fail_dead_leases"):
            return await super().fail_dead_leases(
                failure, max_attempts=max_attempts, external_timeout=external_timeout, limit=limit
            )

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        async with self.faults.around("claim_expired_images"):
            return await super().claim_expired_images(
                older_than=older_than, again_after=again_after, limit=limit
            )

    async def mark_images_deleted(self, session_ids: Sequence[UUID]) -> int:
        async with self.faults.around("mark_images_deleted"):
            return await super().mark_images_deleted(session_ids)


class FlakyPictureStorage(InMemoryPictureStorage):
    """Refuses to delete what lies under the prefixes in ``refused``, and keeps everybody waiting
    ``seconds`` for it."""

    def __init__(self, *, signer: UrlSigner) -> None:
        super().__init__(signer=signer)
        self.refused: set[str] = set()
        self.seconds = 0.0

    async def delete(self, prefix: str) -> None:
        await asyncio.sleep(self.seconds)
        if prefix in self.refused:
            raise TryAgain("delete: refused")
        await super().delete(prefix)


class FlakyTaskQueue(InMemoryTaskQueue):
    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        super().__init__(clock=clock)
        self.faults = Faults(QueueUnavailable, partial(QueueUnavailable, refused=True))
        self.pushed_next: list[int] = []
        """The size of each batch that was pushed before all others."""

    async def push(self, task: GenerationTask) -> None:
        async with self.faults.around("push"):
            await super().push(task)

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        async with self.faults.around("push_next"):
            await super().push_next(tasks)
            self.pushed_next.append(len(tasks))

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        async with self.faults.around("pop"):
            return await super().pop(timeout_seconds=timeout_seconds)

    async def depth(self) -> int:
        async with self.faults.around("depth"):
            return await super().depth()

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        async with self.faults.around("oldest"):
            return await super().oldest()

    async def bury(self, message: GenerationTask | UnreadableTask, *, reason: str) -> None:
        async with self.faults.around("bury"):
            await super().bury(message, reason=reason)

    @property
    def buried(self) -> list[UnreadableTask]:
        """The dead list, oldest first, as the messages that went into it."""
        return [
            UnreadableTask(raw=letter.raw, reason=letter.reason, session_id=letter.session_id)
            for letter in self.letters
        ]
