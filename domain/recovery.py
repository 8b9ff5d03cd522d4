"""Bring every session to its end, whatever was lost or killed. Run it every few seconds,
in as many processes as you like."""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from uuid import UUID

from domain.generation import WorkPolicy
from domain.ports import RecoveryRepoPort, SessionRepoPort, TaskQueuePort
from domain.sessions import ErrorCode, Failure, GenerationSession
from domain.tasks import GenerationTask, UnreadableTask

_LOST = Failure(
    code=ErrorCode.QUEUE_UNAVAILABLE, message="Generation service temporarily unavailable"
)
_EXPIRED = Failure(code=ErrorCode.EXPIRED, message="The request waited too long")
_SPENT = Failure(
    code=ErrorCode.GENERATION_FAILED, message="The picture could not be made; the credit is back"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """When a session counts as lost, dead or expired, and how much one run may do.

    ``push_again_after`` must be longer than a submit may take and than the interval at which
    ``Submission.confirm_pushed`` runs.
    """

    push_again_after: timedelta = timedelta(seconds=15)
    max_attempts: int = 3
    without_lease: timedelta = timedelta(minutes=15)
    time_to_live: timedelta = timedelta(hours=1)
    batch: int = 100
    max_batches: int = 10

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
        attempt = max(work.attempt_timeout + work.lease, self.without_lease)
        return self.time_to_live + interval + self.max_attempts * (attempt + interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """How many sessions one run moved, by what was done to them."""

    refunded: int
    expired: int
    released: int
    spent: int
    pushed_again: int
    never_pushed: int

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
        lost: RecoveryRepoPort,
        queue: TaskQueuePort,
        policy: RecoveryPolicy,
        new_id: Callable[[], UUID],
    ) -> None:
        self._sessions = sessions
        self._lost = lost
        self._queue = queue
        self._policy = policy
        self._new_id = new_id
        # Waits for the queue only; what a killed process leaves in it can be read off the sessions.
        self._unburied: deque[GenerationSession] = deque(maxlen=policy.batch * policy.max_batches)

    async def run_once(self) -> RecoveryReport:
        """Do all that is to be done now, in bounded batches. What needs no queue comes first, so
        that it is done also when the queue is away; then ``QueueUnavailable`` is raised. What is
        too old for another attempt expires in the run that took it from its dead worker."""
        policy = self._policy
        refunded = await self._drain(lambda: self._lost.refund_missing(limit=policy.batch))
        spent = await self._drain(self._fail_spent)
        released = await self._drain(
            lambda: self._lost.release_dead_leases(
                max_attempts=policy.max_attempts,
                without_lease=policy.without_lease,
                limit=policy.batch,
            )
        )
        expired = await self._drain(
            lambda: self._lost.fail_expired(
                _EXPIRED, older_than=policy.time_to_live, limit=policy.batch
            )
        )
        await self._bury_spent()
        pushed_again, never_pushed = await self._push_lost()
        return RecoveryReport(
            refunded=refunded,
            expired=expired,
            released=released,
            spent=spent,
            pushed_again=pushed_again,
            never_pushed=never_pushed,
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

    async def _fail_spent(self) -> int:
        """Fail what killed all its workers; its task is kept for whoever finds out why."""
        policy = self._policy
        spent = await self._lost.fail_dead_leases(
            _SPENT,
            max_attempts=policy.max_attempts,
            without_lease=policy.without_lease,
            limit=policy.batch,
        )
        self._unburied.extend(spent)
        return len(spent)

    async def _bury_spent(self) -> None:
        while self._unburied:
            session = self._unburied[0]
            await self._queue.bury(
                GenerationTask.of(session, task_id=self._new_id()),
                reason=f"{session.attempt} attempts ended without a sign of life",
            )
            self._unburied.popleft()

    async def _push_lost(self) -> tuple[int, int]:
        """Push what the queue lost, and fail what it never got. Returns the two counts.

        The queue is first in, first out, so a session older than its oldest task is not in it.
        Newest first, each batch goes before all others, so the oldest task stays the next one.
        """
        pushed_again = never_pushed = 0
        for _ in range(self._policy.max_batches):
            oldest = await self._queue.oldest()
            if isinstance(oldest, UnreadableTask):
                break  # A consumer is about to bury it; it tells no age.
            sessions = await self._lost.overdue(
                created_before=None if oldest is None else oldest.created_at,
                again_after=self._policy.push_again_after,
                limit=self._policy.batch,
            )
            lost = [session for session in sessions if session.confirmed]
            never_pushed += await self._fail_unconfirmed(sessions)
            if lost:
                await self._queue.push_next(
                    [GenerationTask.of(session, task_id=self._new_id()) for session in lost]
                )
            pushed_again += len(lost)
            if len(sessions) < self._policy.batch:
                break
        return pushed_again, never_pushed

    async def _fail_unconfirmed(self, sessions: list[GenerationSession]) -> int:
        """Whoever submitted these was told 503, or was never answered: give the credit back."""
        failed = 0
        for session in sessions:
            if not session.confirmed:
                failed += await self._sessions.fail(session.id, _LOST, attempt=None)
        return failed
