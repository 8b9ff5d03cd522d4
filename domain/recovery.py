"""The reconciler: brings every session to a final status, whatever was lost or killed, and deletes
old pictures and uploads. Run it every few seconds, in any number of processes."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from domain.causes import Cause, CauseKind
from domain.client_tokens import ClientTokenRepoPort
from domain.errors import StorageUnavailable, Unavailable
from domain.generation import EXPIRED, NO_PICTURE, WorkPolicy
from domain.operator_ports import WorkerRepoPort
from domain.picture_ports import PictureStoragePort, UploadStoragePort
from domain.ports import RecoveryRepoPort, SessionRepoPort, TaskQueuePort
from domain.sessions import BlockedSession, GenerationSession
from domain.submission import NOT_PUSHED
from domain.tasks import GenerationTask, UnreadableTask
from domain.webhook_ports import DeliveryRepoPort

_UPLOAD_BATCH = 1_000
_TOKEN_BATCH = 1_000
_TOKENS_KEPT = timedelta(days=1)
"""How long an expired client token can still be looked up."""
_WEBHOOK_BATCH = 1_000
_WORKER_BATCH = 1_000
_WORKERS_KEPT = timedelta(days=1)
"""How long operators are shown a worker that has died."""
_MAX_BLOCKED = 10_000
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK_SKEW = timedelta(hours=1)
_UPLOAD_SEARCH_INTERVAL = timedelta(hours=1)
_TOKEN_SEARCH_INTERVAL = timedelta(minutes=5)
_WEBHOOK_SEARCH_INTERVAL = timedelta(minutes=5)
_WORKER_SEARCH_INTERVAL = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """When a session counts as lost, dead or expired, and how much one run may do.

    ``requeue_after`` must be longer than a submission may take and than the interval of
    ``Submission.confirm_pushed``. ``picture_lifetime`` must be longer than an attempt: an attempt
    that lost its lease may save a picture after its session has ended, and a picture saved after
    the deletion is never deleted. One run deletes up to ``deletions`` pictures concurrently and
    waits for them up to ``deletion_timeout``, so that lost sessions wait no longer; failed
    deletions are repeated after ``delete_again_after``. Uploads are kept for ``upload_lifetime``.
    A webhook that was never delivered expires after ``webhook_retention``; one that was delivered,
    failed or expired is deleted ``webhooks_kept`` later.
    Sessions whose change the database rejects are tried again after ``blocked_again_after``.
    """

    requeue_after: timedelta = timedelta(seconds=15)
    max_attempts: int = WorkPolicy().max_attempts
    external_timeout: timedelta = timedelta(minutes=15)
    queue_ttl: timedelta = WorkPolicy().queue_ttl
    upload_lifetime: timedelta = timedelta(days=2)
    batch: int = 100
    max_batches: int = 10
    picture_lifetime: timedelta = timedelta(days=30)
    deletions: int = 50
    deletion_timeout: timedelta = timedelta(seconds=2)
    delete_again_after: timedelta = timedelta(minutes=5)
    webhook_retention: timedelta = timedelta(days=14)
    webhooks_kept: timedelta = timedelta(days=7)
    blocked_again_after: timedelta = timedelta(minutes=5)

    def settle_bound(self, work: WorkPolicy, *, interval: timedelta) -> timedelta:
        """The longest time from a session's creation, or from the end of the last fault if that
        is later, to its final status, if a run of recovery begins every ``interval``.

        The first run after ``queue_ttl`` fails a session that is ``queued`` then. An attempt may
        begin just before that run. It ends by itself, or with the first run after its lease, or an
        external consumer's ``external_timeout``, has expired. If the attempt died and may be spent,
        the next one may again begin just before the run that would fail the session. An attempt
        that began before ``queue_ttl`` may also be given back without being spent, and so comes on
        top of these; one that began later is not given back.

        One run moves up to ``batch * max_batches`` sessions by each rule. Each further
        ``batch * max_batches`` sessions that are due at the same time take one more ``interval``.
        """
        working = work.attempt_timeout + work.start_wait + work.storage_patience + work.lease
        attempt = max(working, self.external_timeout)
        return self.queue_ttl + interval + (self.max_attempts + 1) * (attempt + interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What one run did: how many sessions it moved, by rule, and what it deleted.

    ``exhausted`` sessions failed because their last attempt died, or one that was to be cancelled.
    ``pictures_deleted`` counts the sessions of which the picture storage holds nothing any more.
    ``blocked`` sessions are due, but the database rejects their change: see
    ``Recovery.take_blocked``.
    """

    refunded: int = 0
    exhausted: int = 0
    released: int = 0
    expired: int = 0
    pushed_again: int = 0
    never_pushed: int = 0
    pictures_deleted: int = 0
    uploads_deleted: int = 0
    tokens_deleted: int = 0
    webhooks_expired: int = 0
    webhooks_deleted: int = 0
    workers_forgotten: int = 0
    blocked: int = 0

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
        tokens: ClientTokenRepoPort,
        webhooks: DeliveryRepoPort,
        workers: WorkerRepoPort,
        policy: RecoveryPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._recovery_repo = recovery_repo
        self._queue = queue
        self._storage = storage
        self._uploads = uploads
        self._tokens = tokens
        self._webhooks = webhooks
        self._workers = workers
        self._policy = policy
        self._new_id = new_id
        self._clock = clock
        self._next_upload_search = datetime.min.replace(tzinfo=UTC)
        self._next_token_search = datetime.min.replace(tzinfo=UTC)
        self._next_webhook_search = datetime.min.replace(tzinfo=UTC)
        self._next_worker_search = datetime.min.replace(tzinfo=UTC)
        # Waits only while the queue is unavailable. A killed process loses it, but the sessions'
        # rows tell the same.
        self._to_bury: deque[GenerationSession] = deque(maxlen=policy.batch * policy.max_batches)
        self._blocked: dict[UUID, BlockedSession] = {}
        self._blocked_taken = 0
        self._blocked_until = self._next_upload_search
        self._unreported: Counter[str] = Counter()

    async def run_once(self) -> RecoveryReport:
        """Do everything that is due now, in bounded batches.

        The steps that need only the database come first, so that they run without the queue, and
        the deletions, for which no customer waits, come last. Expired leases are released before
        old sessions expire, so that one run does both to a session.

        The failure of a step, whatever it is, does not stop the others. Raises it at the end: a
        bug rather than an unavailable dependency, and the first one of these.
        """
        done: Counter[str] = Counter()
        failures: list[Exception] = []
        self._forget_blocked()
        known = len(self._blocked)
        try:
            await self._run_steps(done, failures)
        finally:
            done["blocked"] = len(self._blocked) - known
            self._unreported += done
        if failures:
            raise min(failures, key=lambda error: isinstance(error, Unavailable))
        return RecoveryReport(**done)

    async def _run_steps(self, done: Counter[str], failures: list[Exception]) -> None:
        for step in (
            self._refund_missing,
            self._fail_exhausted,
            self._release_dead,
            self._fail_expired,
            self._bury_exhausted,
            self._push_lost,
            self._delete_pictures,
            self._delete_uploads,
            self._delete_tokens,
            self._delete_webhooks,
            self._forget_workers,
        ):
            try:
                await step(done)
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)

    def take_report(self) -> RecoveryReport:
        """What was done since the last call, also by runs that failed or were cancelled."""
        report = RecoveryReport(**self._unreported)
        self._unreported.clear()
        return report

    def take_blocked(self) -> list[BlockedSession]:
        """The sessions found blocked since the last call. They are passed over, so that the others
        need not wait for them, until ``blocked_again_after`` has passed."""
        new = list(self._blocked.values())[self._blocked_taken :]
        self._blocked_taken = len(self._blocked)
        return new

    def _forget_blocked(self) -> None:
        now = self._clock()
        if now >= self._blocked_until or len(self._blocked) > _MAX_BLOCKED:
            self._blocked.clear()
            self._blocked_taken = 0
            self._blocked_until = now + self._policy.blocked_again_after

    async def _refund_missing(self, done: Counter[str]) -> None:
        limit = self._policy.batch
        await self._in_batches(
            lambda: self._recovery_repo.refund_missing(limit=limit, blocked=self._blocked),
            "refunded",
            done,
        )

    async def _fail_exhausted(self, done: Counter[str]) -> None:
        await self._in_batches(self._fail_exhausted_batch, "exhausted", done)

    async def _fail_exhausted_batch(self) -> int:
        failed = await self._recovery_repo.fail_dead_leases(
            NO_PICTURE,
            max_attempts=self._policy.max_attempts,
            external_timeout=self._policy.external_timeout,
            limit=self._policy.batch,
            blocked=self._blocked,
        )
        self._to_bury.extend(one for one in failed if one.cancel_requested_at is None)
        return len(failed)

    async def _release_dead(self, done: Counter[str]) -> None:
        policy = self._policy
        await self._in_batches(
            lambda: self._recovery_repo.release_dead_leases(
                max_attempts=policy.max_attempts,
                external_timeout=policy.external_timeout,
                limit=policy.batch,
                blocked=self._blocked,
            ),
            "released",
            done,
        )

    async def _fail_expired(self, done: Counter[str]) -> None:
        policy = self._policy
        await self._in_batches(
            lambda: self._recovery_repo.fail_expired(
                EXPIRED, older_than=policy.queue_ttl, limit=policy.batch, blocked=self._blocked
            ),
            "expired",
            done,
        )

    async def _in_batches(
        self, move_batch: Callable[[], Awaitable[int]], rule: str, done: Counter[str]
    ) -> None:
        """Repeat ``move_batch`` until it finds less than a whole batch. Adds each batch to what
        ``rule`` has done, because a later one may fail."""
        for _ in range(self._policy.max_batches):
            known = len(self._blocked)
            count = await move_batch()
            done[rule] += count
            if count + len(self._blocked) - known < self._policy.batch:
                break

    async def _bury_exhausted(self, _: Counter[str]) -> None:
        """Keep the tasks that killed their workers in the dead-letter list, for an operator."""
        while self._to_bury:
            session = self._to_bury.popleft()
            try:
                await self._queue.bury(
                    GenerationTask.of(session, task_id=self._new_id()),
                    reason=f"{session.attempts_spent} attempts ended without a sign of life",
                )
            except Unavailable:
                self._to_bury.appendleft(session)
                raise

    async def _push_lost(self, done: Counter[str]) -> None:
        """Push the tasks that the queue lost, and fail the sessions whose task it never got.

        The queue is first in, first out, so the task of a session older than the oldest task in
        the queue is not in it. Each batch, newest sessions first, goes to the end that is popped
        next: the oldest task stays the next one, and the rule stays true.
        """
        for _ in range(self._policy.max_batches):
            oldest = await self._queue.oldest()
            if isinstance(oldest, UnreadableTask) or not self._tells_age(oldest):
                break  # A worker will pop it. Until then, nothing is known to be lost.
            known = len(self._blocked)
            sessions = await self._recovery_repo.claim_overdue(
                created_before=None if oldest is None else oldest.created_at,
                again_after=self._policy.requeue_after,
                limit=self._policy.batch,
                blocked=self._blocked,
            )
            found = len(sessions) + len(self._blocked) - known
            lost = [session for session in sessions if session.confirmed]
            if lost:
                await self._queue.push_next(
                    [GenerationTask.of(session, task_id=self._new_id()) for session in lost]
                )
            done["pushed_again"] += len(lost)
            await self._fail_unconfirmed(sessions, done)
            if found < self._policy.batch:
                break

    def _tells_age(self, oldest: GenerationTask | None) -> bool:
        """False for a task whose ``created_at`` no session of ours can have. It came from another
        producer: by a far future all waiting sessions would look lost."""
        latest = self._clock() + _CLOCK_SKEW
        return oldest is None or _EARLIEST < oldest.created_at < latest

    async def _fail_unconfirmed(
        self, sessions: list[GenerationSession], done: Counter[str]
    ) -> None:
        """Their callers were told 503 or got no answer, so the credits go back."""
        for session in sessions:
            if session.confirmed:
                continue
            try:
                failed = await self._sessions.fail_queued(session.id, NOT_PUSHED)
                done["never_pushed"] += failed
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - one session must not stop the others
                self._blocked[session.id] = BlockedSession(
                    id=session.id, owner=str(session.owner), problem=type(error).__name__
                )

    async def _delete_pictures(self, done: Counter[str]) -> None:
        """Delete first, then mark as deleted: after a crash in between, both are repeated."""
        old = await self._recovery_repo.claim_expired_images(
            older_than=self._policy.picture_lifetime,
            again_after=self._policy.delete_again_after,
            limit=self._policy.deletions,
            blocked=self._blocked,
        )
        if not old:
            return
        failures = await asyncio.gather(*(self._delete_picture(session) for session in old))
        gone = [session.id for session, error in zip(old, failures, strict=True) if error is None]
        done["pictures_deleted"] = await self._recovery_repo.mark_images_deleted(
            gone, blocked=self._blocked
        )
        if len(gone) < len(old):
            raise _not_deleted([error for error in failures if error is not None])

    async def _delete_picture(self, session: GenerationSession) -> Exception | None:
        """Returns why it could not be deleted."""
        try:
            async with asyncio.timeout(self._policy.deletion_timeout.total_seconds()):
                await self._storage.delete(session.object_prefix)
        except TimeoutError:
            cause = Cause(CauseKind.STORAGE, "timeout")
            return StorageUnavailable("The picture storage takes too long", cause=cause)
        except Exception as error:  # noqa: BLE001 - one picture must not stop the others
            return error
        return None

    async def _delete_uploads(self, done: Counter[str]) -> None:
        """One batch per run. After an incomplete batch the next search is an hour later, because
        a cloud charges for each."""
        now = self._clock()
        if now < self._next_upload_search:
            return
        self._next_upload_search = now + _UPLOAD_SEARCH_INTERVAL
        deleted = await self._uploads.delete_uploads_before(
            now - self._policy.upload_lifetime, limit=_UPLOAD_BATCH
        )
        if deleted >= _UPLOAD_BATCH:
            self._next_upload_search = now
        done["uploads_deleted"] = deleted

    async def _delete_tokens(self, done: Counter[str]) -> None:
        """One batch of expired client tokens per run. After an incomplete batch the next search is
        some minutes later: most runs would find nothing."""
        now = self._clock()
        if now < self._next_token_search:
            return
        deleted = await self._tokens.purge(expired_for=_TOKENS_KEPT, limit=_TOKEN_BATCH)
        if deleted < _TOKEN_BATCH:
            self._next_token_search = now + _TOKEN_SEARCH_INTERVAL
        done["tokens_deleted"] = deleted

    async def _delete_webhooks(self, done: Counter[str]) -> None:
        """One batch per run, like the tokens."""
        now = self._clock()
        if now < self._next_webhook_search:
            return
        expired, deleted = await self._webhooks.purge(
            pending_for=self._policy.webhook_retention,
            finished_for=self._policy.webhooks_kept,
            limit=_WEBHOOK_BATCH,
        )
        if max(expired, deleted) < _WEBHOOK_BATCH:
            self._next_webhook_search = now + _WEBHOOK_SEARCH_INTERVAL
        done["webhooks_expired"], done["webhooks_deleted"] = expired, deleted

    async def _forget_workers(self, done: Counter[str]) -> None:
        """One batch per run, like the tokens."""
        now = self._clock()
        if now < self._next_worker_search:
            return
        forgotten = await self._workers.forget(older_than=_WORKERS_KEPT, limit=_WORKER_BATCH)
        if forgotten < _WORKER_BATCH:
            self._next_worker_search = now + _WORKER_SEARCH_INTERVAL
        done["workers_forgotten"] = forgotten


def _not_deleted(errors: Sequence[Exception]) -> Exception:
    """A bug among these errors, or else that the storage is unavailable."""
    for error in errors:
        if not isinstance(error, StorageUnavailable):
            return error
    first = errors[0]
    cause = first.cause if isinstance(first, StorageUnavailable) else None
    return StorageUnavailable(f"{len(errors)} pictures could not be deleted", cause=cause)
