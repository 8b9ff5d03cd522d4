"""Run one task: claim its session, generate the picture, settle the session."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from random import Random
from uuid import UUID

from domain.errors import (
    ClaimFailed,
    DatabaseUnavailable,
    NotStarted,
    ProviderMisconfigured,
    Refused,
    Superseded,
    TryAgain,
    Unavailable,
    WorkFailed,
)
from domain.leases import run_under_lease
from domain.ports import (
    AttemptRepoPort,
    Generated,
    PictureFetcherPort,
    PictureGeneratorPort,
    PictureRequest,
    PictureStoragePort,
    SessionRepoPort,
    TaskQueuePort,
)
from domain.sessions import ErrorCode, Failure, GenerationSession, StoredPicture, Usage
from domain.shares import DownloadShares
from domain.starts import Starts
from domain.tasks import GenerationTask, UnreadableTask

NO_PICTURE = Failure(
    code=ErrorCode.GENERATION_FAILED,
    message="The picture could not be made; the credit was refunded",
)
_UNREADABLE = Failure(
    code=ErrorCode.INVALID_TASK,
    message="The request could not be read; the credit was refunded",
)
_MAX_RETRY_AFTER_SECONDS = 3_600.0


class Outcome(StrEnum):
    """How the run of a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"
    """Back to ``queued`` for another attempt."""
    SKIPPED = "skipped"
    """The session does not exist or is not ``queued``: nothing was begun."""
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
    """

    lease: timedelta = timedelta(seconds=30)
    max_attempts: int = 3
    attempt_timeout: timedelta = timedelta(seconds=180)
    start_wait: timedelta = timedelta(seconds=60)
    backoff_base: timedelta = timedelta(seconds=1)
    backoff_cap: timedelta = timedelta(seconds=60)

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


class Generation:
    """Works on sessions, one per call, any number of them concurrently."""

    def __init__(
        self,
        *,
        sessions: SessionRepoPort,
        attempts: AttemptRepoPort,
        queue: TaskQueuePort,
        fetcher: PictureFetcherPort,
        generator: PictureGeneratorPort,
        storage: PictureStoragePort,
        policy: WorkPolicy,
        random: Random,
        new_id: Callable[[], UUID],
    ) -> None:
        self._sessions = sessions
        self._attempts = attempts
        self._queue = queue
        self._fetcher = fetcher
        self._generator = generator
        self._storage = storage
        self._policy = policy
        self._random = random
        self._new_id = new_id
        self.shares = DownloadShares()
        """``run`` leaves them once the inputs are there; who calls it enters them."""
        self.starts = Starts()
        """The limit of calls of the provider; who calls ``run`` sets it."""

    async def run(self, task: GenerationTask) -> Outcome:
        """Work on the session of ``task``, if it is still ``queued``.

        Raises ``DatabaseUnavailable`` if the database does not answer the claim, and
        ``ClaimFailed`` if it rejects the claim; the task is back in the queue then. Raises
        ``ProviderMisconfigured`` if the generator rejects every request; the session is back in
        the queue then, whatever its attempt. Any other unexpected error fails the session with its
        refund and is raised. When cancelled, gives the session back and stops.
        """
        session = await self._claim(task)
        if session is None:
            return Outcome.SKIPPED
        try:
            return await self._work(session)
        except DatabaseUnavailable:
            return Outcome.UNSETTLED
        except NotStarted:
            await self._give_back(session)
            return Outcome.RELEASED
        except (ProviderMisconfigured, asyncio.CancelledError):
            await self._give_back(session)
            raise

    async def postpone(self, task: GenerationTask, delay: timedelta) -> None:
        """Let recovery push ``task`` again after ``delay``. Uses no attempt.

        Raises ``DatabaseUnavailable``; the task is back in the queue then.
        """
        try:
            await self._attempts.postpone(task.session_id, delay=delay)
        except DatabaseUnavailable:
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
            return await self._attempts.claim(task.session_id, lease=self._policy.lease)
        except (Exception, asyncio.CancelledError) as error:
            # If the claim did take effect, the next claim finds the session taken, and recovery
            # releases it once the lease has expired.
            with suppress(Unavailable):
                await self._queue.push_next([task])
            if isinstance(error, DatabaseUnavailable | asyncio.CancelledError):
                raise
            raise ClaimFailed("The database rejected the claim") from error

    async def _work(self, session: GenerationSession) -> Outcome:
        """Make the picture, and settle the session whatever comes of that."""
        try:
            made = await self._make_under_lease(session)
        except TryAgain as error:
            return await self._try_again(session, error)
        except Refused as error:
            return await self._fail(session, _failure(error))
        except Superseded:
            return Outcome.OVERTAKEN
        except (NotStarted, ProviderMisconfigured, DatabaseUnavailable):
            raise
        except Exception:
            with suppress(DatabaseUnavailable):
                await self._fail(session, NO_PICTURE)
            raise
        if made is None:
            return Outcome.OVERTAKEN
        return await self._complete(session, made)

    async def _make_under_lease(self, session: GenerationSession) -> _Made | None:
        """None if the lease was lost meanwhile."""
        lease = self._policy.lease
        return await run_under_lease(
            partial(self._make, session),
            renew=partial(self._attempts.renew, session.id, attempt=session.attempt, lease=lease),
            lease=lease,
            attempt_timeout=self._policy.attempt_timeout,
            waited=partial(self.starts.waited, session.id),
        )

    async def _make(self, session: GenerationSession) -> _Made:
        """Generate and save the picture, unless an earlier attempt saved one, whose usage was lost
        with that attempt."""
        saved = await self._storage.find(session.object_prefix)
        if saved is not None:
            return _Made(picture=saved)
        generated = await self._generate(session)
        picture = await self._storage.save(session.object_prefix, generated.picture)
        return _Made(picture=picture, usage=generated.usage)

    async def _generate(self, session: GenerationSession) -> Generated:
        """Resume the job of an earlier attempt if that still leads to a picture: it is paid for,
        and it needs no input pictures, whose links may have expired. Else begin a new one."""
        record_job = partial(self._record_job, session)
        if session.provider_job is not None:
            self.shares.leave(session.id)
            self.starts.skip(session.id)
            resumed = await self._generator.resume(session.provider_job, record_job)
            if resumed is not None:
                return resumed
        images = await self._fetcher.fetch(session.input.image_urls, session.owner)
        self.shares.leave(session.id)
        request = PictureRequest(
            session_id=session.id,
            prompt=session.input.prompt,
            images=images,
            instead_of=session.provider_job,
        )
        await self.starts.take(session.id, at_most=self._policy.start_wait)
        return await self._generator.generate(request, record_job)

    async def _record_job(self, session: GenerationSession, job: str) -> None:
        if not await self._attempts.record_job(session.id, attempt=session.attempt, job=job):
            raise Superseded(f"Attempt {session.attempt} is over")

    async def _complete(self, session: GenerationSession, made: _Made) -> Outcome:
        completed = await self._attempts.complete(
            session.id, attempt=session.attempt, picture=made.picture, usage=made.usage
        )
        return Outcome.COMPLETED if completed else Outcome.OVERTAKEN

    async def _fail(self, session: GenerationSession, failure: Failure) -> Outcome:
        failed = await self._attempts.fail(session.id, failure, attempt=session.attempt)
        return Outcome.FAILED if failed else Outcome.OVERTAKEN

    async def _try_again(self, session: GenerationSession, error: TryAgain) -> Outcome:
        """Release the session with a backoff, or fail it after its last attempt."""
        if session.attempt >= self._policy.max_attempts:
            return await self._fail(session, _failure(error))
        delay = self._policy.backoff(session.attempt, error.retry_after_seconds, self._random)
        released = await self._attempts.release(session.id, attempt=session.attempt, delay=delay)
        return Outcome.RELEASED if released else Outcome.OVERTAKEN

    async def _give_back(self, session: GenerationSession) -> None:
        """Let another worker have the session at once. If that fails, recovery does it later."""
        with suppress(Unavailable):
            if await self._attempts.release(
                session.id, attempt=session.attempt, delay=timedelta(0)
            ):
                await self._queue.push_next([GenerationTask.of(session, task_id=self._new_id())])


def _failure(error: WorkFailed) -> Failure:
    return Failure(code=error.reason, message=str(error))
