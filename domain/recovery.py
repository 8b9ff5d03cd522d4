"""Bring every session to its end, whatever was lost or killed, and delete its picture when that is
old. Run it every few seconds, in as many processes as you like."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from domain.errors import StorageUnavailable, TryAgain, Unavailable
from domain.generation import NO_PICTURE, WorkPolicy
from domain.ports import (
    PictureStoragePort,
    RecoveryRepoPort,
    SessionRepoPort,
    TaskQueuePort,
    UploadStoragePort,
)
from domain.sessions import ErrorCode, Failure, GenerationSession
from domain.submission import NOT_PUSHED
from domain.tasks import GenerationTask, UnreadableTask

_EXPIRED = Failure(code=ErrorCode.EXPIRED, message="The request waited too long")
_UPLOADS_AT_ONCE = 1_000
_LOOK_FOR_UPLOADS_EVERY = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """When a session counts as lost, dead or expired, and how much one run may do.

    ``requeue_after`` must be longer than a submit may take and than the interval at which
    ``Submission.confirm_pushed`` runs. ``picture_lifetime`` must be longer than an attempt: one
    that lost its lease may keep a picture after its session has ended, and what is kept after the
    deletion stays for ever. One run deletes up to ``deletions`` pictures, all at once, so that
    lost sessions wait for that no longer than ``deletion_timeout``; what was not deleted then is
    tried again after ``delete_again_after``. Uploads are kept for ``keep_uploads``.
    """

    requeue_after: timedelta = timedelta(seconds=15)
    max_attempts: int = 3
    external_timeout: timedelta = timedelta(minutes=15)
    queue_ttl: timedelta = timedelta(hours=1)
    keep_uploads: timedelta = timedelta(days=2)
    batch: int = 100
    max_batches: int = 10
    picture_lifetime: timedelta = timedelta(days=30)
    deletions: int = 50
    deletion_timeout: timedelta = timedelta(seconds=2)
    delete_again_after: timedelta = timedelta(minutes=5)

    def settle_bound(self, work: WorkPolicy, *, interval: timedelta) -> timedelta:
        """The longest time from a session's creation, or from the end of the last fault if that
        is later, to its final status, where a run of recovery begins every ``interval``.

        A session is failed by the first run after its time to live, unless it is worked on then.
        An attempt may begin just before that run, and ends by itself or by the first run after its
        lease, or what stands in for a lease, is over. Where attempts are left and their worker gave
        the session back, the next one may again begin just before the run that would fail it.

        One run moves up to ``batch * max_batches`` sessions by each rule: for each further so many
        that are due at once, one ``interval`` more.
        """
        attempt = max(work.attempt_timeout + work.lease, self.external_timeout)
        return self.queue_ttl + interval + self.max_attempts * (attempt + interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """How many sessions one run moved, by what was done to them. ``swept`` counts those of which
    the image storage holds nothing any more, ``uploads_deleted`` the uploads that it deleted."""

    refunded: int = 0
    expired: int = 0
    released: int = 0
    spent: int = 0
    pushed_again: int = 0
    never_pushed: int = 0
    swept: int = 0
    uploads_deleted: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """The counts by name, for a log line."""
        return asdict(self)


class Recovery:
    """The reconciler."""

    def __init__(
        self,
        *,
        sessions: SessionRepoPort,
        recovery_repo: RecoveryRepoPort,
        queue: TaskQueuePort,
        storage: PictureStoragePort,
        uploads: UploadStoragePort,
        policy: RecoveryPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._recovery = recovery_repo
        self._queue = queue
        self._storage = storage
        self._uploads = uploads
        self._policy = policy
        self._new_id = new_id
        self._clock = clock
        self._uploads_due = datetime.min.replace(tzinfo=UTC)
        # Waits for the queue only; what a killed process leaves in it can be read off the sessions.
        self._unburied: deque[GenerationSession] = deque(maxlen=policy.batch * policy.max_batches)

    async def run_once(self) -> RecoveryReport:
        """Do all that is to be done now, in bounded batches. What needs no queue comes first, and
        pictures, which nobody waits for, come last. What is too old for another attempt expires in
        the run that took it from its dead worker.

        A step that fails keeps none of the others from being done; at the end the error of the
        first one that did is raised.
        """
        done: Counter[str] = Counter()
        failures: list[Unavailable] = []
        for step in (
            self._refund_missing,
            self._fail_spent,
            self._release_dead,
            self._fail_expired,
            self._bury_spent,
            self._push_lost,
            self._delete_old_images,
            self._delete_old_uploads,
        ):
            try:
                await step(done)
            except Unavailable as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return RecoveryReport(**done)

    async def _refund_missing(self, done: Counter[str]) -> None:
        limit = self._policy.batch
        done["refunded"] = await self._drain(lambda: self._recovery.refund_missing(limit=limit))

    async def _fail_spent(self, done: Counter[str]) -> None:
        """Fail what killed all its workers; its task is kept for whoever finds out why."""
        done["spent"] = await self._drain(self._fail_some_spent)

    async def _release_dead(self, done: Counter[str]) -> None:
        policy = self._policy
        done["released"] = await self._drain(
            lambda: self._recovery.release_dead_leases(
                max_attempts=policy.max_attempts,
                external_timeout=policy.external_timeout,
                limit=policy.batch,
            )
        )

    async def _fail_expired(self, done: Counter[str]) -> None:
        policy = self._policy
        done["expired"] = await self._drain(
            lambda: self._recovery.fail_expired(
                _EXPIRED, older_than=policy.queue_ttl, limit=policy.batch
            )
        )

    async def _drain(self, step: Callable[[], Awaitable[int]]) -> int:
        """Repeat ``step`` until it does less than a whole batch."""
        done = 0
        for _ in range(self._policy.max_batches):
            count = await step()
            done += count
            if count < self._policy.batch:
                break
        return done

    async def _fail_some_spent(self) -> int:
        policy = self._policy
        spent = await self._recovery.fail_dead_leases(
            NO_PICTURE,
            max_attempts=policy.max_attempts,
            external_timeout=policy.external_timeout,
            limit=policy.batch,
        )
        self._unburied.extend(spent)
        return len(spent)

    async def _bury_spent(self, _: Counter[str]) -> None:
        while self._unburied:
            session = self._unburied[0]
            await self._queue.bury(
                GenerationTask.of(session, task_id=self._new_id()),
                reason=f"{session.attempt} attempts ended without a sign of life",
            )
            self._unburied.popleft()

    async def _push_lost(self, done: Counter[str]) -> None:
        """Push what the queue lost, and fail what it never got.

        The queue is first in, first out, so a session older than its oldest task is not in it.
        Newest first, each batch goes before all others, so the oldest task stays the next one.
        """
        for _ in range(self._policy.max_batches):
            oldest = await self._queue.oldest()
            if isinstance(oldest, UnreadableTask):
                break  # A consumer is about to bury it; it tells no age.
            sessions = await self._recovery.claim_overdue(
                created_before=None if oldest is None else oldest.created_at,
                again_after=self._policy.requeue_after,
                limit=self._policy.batch,
            )
            lost = [session for session in sessions if session.confirmed]
            done["never_pushed"] += await self._fail_unconfirmed(sessions)
            if lost:
                await self._queue.push_next(
                    [GenerationTask.of(session, task_id=self._new_id()) for session in lost]
                )
            done["pushed_again"] += len(lost)
            if len(sessions) < self._policy.batch:
                break

    async def _fail_unconfirmed(self, sessions: list[GenerationSession]) -> int:
        """Whoever submitted these was told 503, or was never answered: give the credit back."""
        failed = 0
        for session in sessions:
            if not session.confirmed:
                failed += await self._sessions.fail_queued(session.id, NOT_PUSHED)
        return failed

    async def _delete_old_images(self, done: Counter[str]) -> None:
        """Delete first, then note it: whoever dies in between leaves it to be done once more."""
        old = await self._recovery.claim_expired_images(
            older_than=self._policy.picture_lifetime,
            again_after=self._policy.delete_again_after,
            limit=self._policy.deletions,
        )
        if not old:
            return
        deleted = await asyncio.gather(*(self._delete_image(session) for session in old))
        gone = [session.id for session, is_gone in zip(old, deleted, strict=True) if is_gone]
        done["swept"] = await self._recovery.mark_images_deleted(gone)
        if len(gone) < len(old):
            raise StorageUnavailable(f"{len(old) - len(gone)} pictures could not be deleted")

    async def _delete_image(self, session: GenerationSession) -> bool:
        try:
            async with asyncio.timeout(self._policy.deletion_timeout.total_seconds()):
                await self._storage.delete(session.object_prefix)
        except (TryAgain, TimeoutError):
            return False
        return True

    async def _delete_old_uploads(self, done: Counter[str]) -> None:
        """A batch in each run while there is a whole one, then a look now and then: in a cloud each
        look is paid for."""
        now = self._clock()
        if now < self._uploads_due:
            return
        self._uploads_due = now + _LOOK_FOR_UPLOADS_EVERY
        try:
            deleted = await self._uploads.delete_uploads_before(
                now - self._policy.keep_uploads, limit=_UPLOADS_AT_ONCE
            )
        except TryAgain as error:
            raise StorageUnavailable("The storage of uploads does not answer") from error
        if deleted >= _UPLOADS_AT_ONCE:
            self._uploads_due = now
        done["uploads_deleted"] = deleted
