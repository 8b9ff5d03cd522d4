"""Run one task: claim its session, generate the picture, settle the session."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from random import Random
from typing import TypeVar
from uuid import UUID

from domain.causes import Cause, CauseKind
from domain.changes import NO_CHANGES, ChangePublisherPort
from domain.errors import (
    CancelRequested,
    ClaimFailed,
    DatabaseUnavailable,
    InputUnavailable,
    NotStarted,
    ProviderMisconfigured,
    ProviderUnavailable,
    Refused,
    StorageUnavailable,
    Superseded,
    TryAgain,
    Unavailable,
    WorkerExhausted,
    WorkFailed,
)
from domain.leases import Hint, run_under_lease
from domain.picture_ports import (
    Generated,
    PictureFetcherPort,
    PictureGeneratorPort,
    PictureRequest,
    PictureStoragePort,
)
from domain.ports import AttemptRepoPort, Renewal, SessionReadPort, SessionRepoPort, TaskQueuePort
from domain.sessions import (
    CANCELLED,
    Blame,
    ErrorCode,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)
from domain.slots import FREE_SLOT, Slot
from domain.tasks import GenerationTask, UnreadableTask

T = TypeVar("T")
NO_PICTURE = Failure(
    code=ErrorCode.GENERATION_FAILED,
    message="The picture could not be made; the credit was refunded",
)
_UNKNOWN_SESSION = "its session is not in the database: another producer's, or lost with it"
EXPIRED = Failure(code=ErrorCode.EXPIRED, message="The request waited too long")
_UNREADABLE = Failure(
    code=ErrorCode.INVALID_TASK,
    message="The request could not be read; the credit was refunded",
)
_MAX_RETRY_AFTER_SECONDS = 3_600.0
_MAX_INPUT_ATTEMPTS = 2
_LONGEST_HOLD_PAUSE_SECONDS = 5.0

OUR_FAULTS = (ProviderMisconfigured, StorageUnavailable, WorkerExhausted)
"""The errors because of which this worker can make no picture at the moment, for any session."""


class Outcome(StrEnum):
    """How the run of a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"
    """Back to ``queued`` for another attempt."""
    SKIPPED = "skipped"
    """The session does not exist or is not ``queued``: nothing was begun."""
    CANCELLED = "cancelled"
    """Failed, because its caller asked to cancel it."""
    OVERTAKEN = "overtaken"
    """The lease was lost, or the session ended otherwise meanwhile: this attempt wrote nothing."""
    UNSETTLED = "unsettled"
    """The database did not answer at the end: the lease runs out and recovery takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPolicy:
    """How long and how often to try.

    ``attempt_timeout`` bounds one attempt. The wait before attempt n+1 is random between 0 and
    ``min(backoff_cap, backoff_base * 2**(n-1))`` (backoff with full jitter), and never shorter
    than the other side's Retry-After, up to an hour. A session waits up to ``start_wait`` for the
    provider's limit, which is no part of its attempt, and then goes back.

    Only attempts that fail through the session's own fault are counted up to ``max_attempts``. The
    provider's transient faults fail a session once they have lasted for ``provider_patience``. A
    picture that the storage does not take is held for ``storage_patience``. An attempt that begins
    ``queue_ttl`` after the session's creation, or later, is its last.
    """

    lease: timedelta = timedelta(seconds=30)
    max_attempts: int = 3
    attempt_timeout: timedelta = timedelta(seconds=180)
    start_wait: timedelta = timedelta(seconds=60)
    backoff_base: timedelta = timedelta(seconds=1)
    backoff_cap: timedelta = timedelta(seconds=60)
    provider_patience: timedelta = timedelta(minutes=10)
    storage_patience: timedelta = timedelta(minutes=10)
    queue_ttl: timedelta = timedelta(hours=1)

    def backoff(self, attempt: int, retry_after_seconds: float, random: Random) -> timedelta:
        """The wait after attempt number ``attempt``."""
        doubled = self.backoff_base.total_seconds() * 2.0 ** min(attempt - 1, 32)
        wait = random.random() * min(self.backoff_cap.total_seconds(), doubled)
        return timedelta(seconds=max(wait, min(retry_after_seconds, _MAX_RETRY_AFTER_SECONDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A session's picture, and what it took of the provider if this attempt made it."""

    picture: StoredPicture
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A picture that is paid for, and that the storage did not take."""

    generated: Generated
    cause: Cause


class Generation:
    """Works on sessions, one per call, any number of them concurrently. ``worker`` is the name of
    this process, which is recorded with the faults."""

    def __init__(
        self,
        *,
        sessions: SessionRepoPort,
        reads: SessionReadPort,
        attempts: AttemptRepoPort,
        queue: TaskQueuePort,
        fetcher: PictureFetcherPort,
        generator: PictureGeneratorPort,
        storage: PictureStoragePort,
        policy: WorkPolicy,
        random: Random,
        new_id: Callable[[], UUID],
        worker: str = "",
        changes: ChangePublisherPort = NO_CHANGES,
    ) -> None:
        self._sessions = sessions
        self._reads = reads
        self._attempts = attempts
        self._queue = queue
        self._fetcher = fetcher
        self._generator = generator
        self._storage = storage
        self._policy = policy
        self._random = random
        self._new_id = new_id
        self._worker = worker
        self._changes = changes
        self._in_flight: dict[UUID, Hint] = {}

    def check_now(self, session_id: UUID) -> None:
        """A hint that the session may be cancelled: if this process works on it, its lease is
        renewed at once, which tells. Another id is ignored."""
        if hint := self._in_flight.get(session_id):
            hint.give()

    async def check_storage(self) -> None:
        """Raises ``StorageUnavailable`` if a picture could not be stored now: then take no task."""
        await self._storage.check()

    async def run(self, task: GenerationTask, slot: Slot = FREE_SLOT) -> Outcome:
        """Work on the session of ``task``, if it is still ``queued``.

        A task of an unknown session is buried. Raises ``Unavailable`` if the database does not
        answer the claim, or the queue not the burial, and ``ClaimFailed`` if the database rejects
        the claim; the task is back in the queue then. Raises one of OUR_FAULTS if this worker can
        make no picture at all; the session is back in the queue then, and no attempt is spent. Any
        other unexpected error fails the session with its refund and is raised. When its task is
        cancelled, gives the session back and stops. Once the session's cancellation is requested,
        no longer gives it back, but fails it.
        """
        session = await self._claim(task)
        if session is None:
            return Outcome.SKIPPED
        self._changes.publish(session)
        try:
            return await self._work(session, slot)
        except DatabaseUnavailable:
            return Outcome.UNSETTLED
        except NotStarted:
            return await self._give_back(session, None, slot)
        except OUR_FAULTS as error:
            fault = self._blame(session, error, slot, Blame.OURS)
            await self._give_back(session, fault, slot)
            raise
        except asyncio.CancelledError:
            await self._give_back(session, None, slot)
            raise
        finally:
            self._changes.publish(session)

    async def postpone(self, task: GenerationTask, delay: timedelta) -> None:
        """Let recovery push ``task`` again after ``delay``. Uses no attempt. A task of an unknown
        session is buried.

        Raises ``Unavailable``; the task is back in the queue then.
        """
        try:
            if not await self._attempts.postpone(task.session_id, delay=delay):
                await self._bury_if_unknown(task)
        except Unavailable:
            with suppress(Unavailable):
                await self._queue.push_next([task])
            raise

    async def refuse(self, message: UnreadableTask) -> bool:
        """Fail the session that a malformed message names, if any, and bury the message.

        Returns whether a session was failed. Raises ``Unavailable``: then call this again, because
        the message is no longer in the queue.
        """
        failed = message.session_id is not None and await self._sessions.fail_queued(
            message.session_id, _UNREADABLE
        )
        await self._queue.bury(message, reason=message.reason)
        return failed

    async def _claim(self, task: GenerationTask) -> GenerationSession | None:
        try:
            session = await self._attempts.claim(task.session_id, lease=self._policy.lease)
            if session is None:
                await self._bury_if_unknown(task)
        except (Exception, asyncio.CancelledError) as error:
            # If the claim did take effect, the next claim finds the session taken, and recovery
            # releases it once the lease has expired.
            with suppress(Unavailable):
                await self._queue.push_next([task])
            if isinstance(error, Unavailable | asyncio.CancelledError):
                raise
            raise ClaimFailed("The database rejected the claim") from error
        return session

    async def _bury_if_unknown(self, task: GenerationTask) -> None:
        if not await self._reads.is_known(task.session_id):
            await self._queue.bury(task, reason=_UNKNOWN_SESSION, once=True)

    async def _work(self, session: GenerationSession, slot: Slot) -> Outcome:
        """Make the picture, and settle the session whatever comes of that."""
        try:
            made = await self._under_lease(
                session,
                partial(self._make, session, slot),
                at_most=self._policy.attempt_timeout,
                waited=partial(slot.waited, session),
            )
            if isinstance(made, _Held):
                slot.picture_held(session, made.cause)
                made = await self._store_held(session, made)
        except TryAgain as error:
            return await self._try_again(session, error, slot)
        except Refused as error:
            fault = self._blame(session, error, slot)
            failure = Failure(code=error.reason, message=str(error))
            return await self._fail(session, failure, fault, slot)
        except Superseded:
            return Outcome.OVERTAKEN
        except CancelRequested:
            return await self._cancel(session, slot)
        except (NotStarted, DatabaseUnavailable, *OUR_FAULTS):
            raise
        except Exception as error:
            fault = self._blame(session, error, slot)
            with suppress(DatabaseUnavailable):
                await self._fail(session, NO_PICTURE, fault, slot)
            raise
        if made is None:
            return Outcome.OVERTAKEN
        return await self._complete(session, made)

    async def _under_lease(
        self,
        session: GenerationSession,
        work: Callable[[], Awaitable[T]],
        *,
        at_most: timedelta,
        waited: Callable[[], float] = lambda: 0.0,
    ) -> T | None:
        """None if the lease was lost meanwhile. Raises ``CancelRequested`` once it is known."""
        hint = self._in_flight[session.id] = Hint()
        try:
            return await run_under_lease(
                work,
                renew=partial(self._renew, session),
                lease=self._policy.lease,
                attempt_timeout=at_most,
                waited=waited,
                hint=hint,
            )
        finally:
            if self._in_flight.get(session.id) is hint:  # A newer attempt may have its own.
                del self._in_flight[session.id]

    async def _renew(self, session: GenerationSession) -> bool:
        renewal = await self._attempts.renew(
            session.id, attempt=session.attempt, lease=self._policy.lease
        )
        if renewal is Renewal.CANCEL_REQUESTED:
            raise CancelRequested("The caller asked to cancel the session")
        return renewal is not None

    async def _make(self, session: GenerationSession, slot: Slot) -> _Made | _Held:
        """Generate and save the picture, unless an earlier attempt saved one, whose usage was lost
        with that attempt."""
        saved = await self._storage.find(session.object_prefix)
        if saved is not None:
            return _Made(picture=saved)
        generated = await self._generate(session, slot)
        slot.picture_made(session, generated.usage)
        try:
            picture = await self._storage.save(session.object_prefix, generated.picture)
        except StorageUnavailable as error:
            return _Held(generated=generated, cause=error.cause)
        return _Made(picture=picture, usage=generated.usage)

    async def _store_held(self, session: GenerationSession, held: _Held) -> _Made | None:
        """Try to store the picture until that succeeds, so that it is not paid for again. None if
        the lease was lost meanwhile. Raises ``StorageUnavailable`` after ``storage_patience``."""
        with suppress(DatabaseUnavailable):  # A late save does no harm: the first picture stays.
            if not await self._renew(session):
                return None
        try:
            return await self._under_lease(
                session,
                partial(self._save_repeatedly, session, held),
                at_most=self._policy.storage_patience,
            )
        except TryAgain as error:
            message = "The picture could not be stored for too long"
            raise StorageUnavailable(message, cause=held.cause) from error

    async def _save_repeatedly(self, session: GenerationSession, held: _Held) -> _Made:
        tries = 0
        while True:
            tries += 1
            wait = self._policy.backoff(tries, 0.0, self._random).total_seconds()
            await asyncio.sleep(min(wait, _LONGEST_HOLD_PAUSE_SECONDS))
            with suppress(StorageUnavailable):
                picture = await self._storage.save(session.object_prefix, held.generated.picture)
                return _Made(picture=picture, usage=held.generated.usage)

    async def _generate(self, session: GenerationSession, slot: Slot) -> Generated:
        """Resume the job of an earlier attempt if that still leads to a picture: it is paid for,
        and it needs no input pictures, whose links may have expired. Else begin a new one, unless
        its picture could not be stored."""
        record_job = partial(self._record_job, session)
        if session.provider_job is not None:
            slot.has_inputs(session)
            slot.needs_no_start(session)
            resumed = await self._generator.resume(session.provider_job, record_job)
            if resumed is not None:
                return resumed
        images = await self._fetcher.fetch(session.input.image_urls, session.owner)
        slot.has_inputs(session)
        request = PictureRequest(
            session_id=session.id,
            prompt=session.input.prompt,
            images=images,
            traceparent=session.trace,
            instead_of=session.provider_job,
        )
        await slot.take_start(session, at_most=self._policy.start_wait)
        await self._storage.check()
        return await self._generator.generate(request, record_job)

    async def _record_job(self, session: GenerationSession, job: str) -> None:
        if not await self._attempts.record_job(session.id, attempt=session.attempt, job=job):
            raise Superseded(f"Attempt {session.attempt} is over")

    async def _complete(self, session: GenerationSession, made: _Made) -> Outcome:
        completed = await self._attempts.complete(
            session.id, attempt=session.attempt, picture=made.picture, usage=made.usage
        )
        return Outcome.COMPLETED if completed else Outcome.OVERTAKEN

    async def _fail(
        self, session: GenerationSession, failure: Failure, fault: Fault | None, slot: Slot
    ) -> Outcome:
        code = await self._attempts.fail(session.id, failure, attempt=session.attempt, fault=fault)
        if code is None:
            return Outcome.OVERTAKEN
        slot.session_failed(session, code)
        return Outcome.CANCELLED if code == CANCELLED.code else Outcome.FAILED

    async def _cancel(self, session: GenerationSession, slot: Slot) -> Outcome:
        """Fail the session, unless its picture is stored: that wins. A storage that does not answer
        counts as having none."""
        saved = None
        with suppress(StorageUnavailable):
            saved = await self._storage.find(session.object_prefix)
        if saved is not None:
            return await self._complete(session, _Made(picture=saved))
        return await self._fail(session, CANCELLED, None, slot)

    async def _try_again(self, session: GenerationSession, error: TryAgain, slot: Slot) -> Outcome:
        """Release the session with a backoff, or fail it if this was its last attempt."""
        fault = self._blame(session, error, slot)
        if self._was_last(session, error):
            failure = Failure(code=error.reason, message=str(error))
            return await self._fail(session, failure, fault, slot)
        if self._has_expired(session):
            return await self._fail(session, EXPIRED, fault, slot)
        return await self._release(session, self._delay(session, error), fault, slot)

    async def _release(
        self, session: GenerationSession, delay: timedelta, fault: Fault | None, slot: Slot
    ) -> Outcome:
        status = await self._attempts.release(
            session.id, attempt=session.attempt, delay=delay, fault=fault
        )
        if status is None:
            return Outcome.OVERTAKEN
        if status is SessionStatus.QUEUED:
            return Outcome.RELEASED
        slot.session_failed(session, CANCELLED.code)
        return Outcome.CANCELLED

    def _was_last(self, session: GenerationSession, error: TryAgain) -> bool:
        """Whether the fault, or its repetitions, used up what the session may have. The provider's
        must have lasted, and have been met more than once or twice: between two attempts a session
        may wait for long."""
        policy = self._policy
        match error:
            case ProviderUnavailable():
                lasted = session.begun_after(session.failing_since)
                return session.attempt >= policy.max_attempts and lasted >= policy.provider_patience
            case InputUnavailable():
                return session.attempts_spent >= min(policy.max_attempts, _MAX_INPUT_ATTEMPTS)
        return session.attempts_spent >= policy.max_attempts

    def _has_expired(self, session: GenerationSession) -> bool:
        """Whether the attempt began when recovery could have failed the session as expired. If it
        were released again, the next attempt could begin before recovery does so."""
        return session.begun_after(session.created_at) >= self._policy.queue_ttl

    def _delay(self, session: GenerationSession, error: TryAgain) -> timedelta:
        """How long the session waits for its next attempt. If its caller's host failed, it queues
        behind the others: it waits as long again as it has waited, as far as its life allows."""
        policy = self._policy
        delay = policy.backoff(session.attempt, error.retry_after_seconds, self._random)
        if not isinstance(error, InputUnavailable):
            return delay
        waited = session.begun_after(session.created_at)
        return max(delay, min(waited, (policy.queue_ttl - waited) / 2))

    async def _give_back(
        self, session: GenerationSession, fault: Fault | None, slot: Slot
    ) -> Outcome:
        """Let another worker have the session at once. If that fails, recovery does it later."""
        outcome = Outcome.UNSETTLED
        with suppress(Unavailable):
            if self._has_expired(session):
                return await self._fail(session, EXPIRED, fault, slot)
            outcome = await self._release(session, timedelta(0), fault, slot)
            if outcome is Outcome.RELEASED:
                await self._queue.push_next([GenerationTask.of(session, task_id=self._new_id())])
        return outcome

    def _blame(
        self,
        session: GenerationSession,
        error: Exception,
        slot: Slot,
        blame: Blame = Blame.SESSION,
    ) -> Fault:
        """Whose fault the error is. Tells the slot."""
        if isinstance(error, ProviderUnavailable):
            blame = Blame.PROVIDER
        cause = Cause(CauseKind.BUG, type(error).__name__)
        if isinstance(error, WorkFailed | Unavailable):
            cause = error.cause
        code = error.reason if isinstance(error, WorkFailed) else NO_PICTURE.code
        fault = Fault(blame=blame, cause=cause, code=code, worker=self._worker)
        slot.attempt_failed(session, fault)
        return fault
