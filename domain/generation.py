"""Run one task: claim its session, make the picture, settle. A worker's whole duty."""

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
    ProviderMisconfigured,
    Refused,
    Superseded,
    TryAgain,
    Unavailable,
    WorkFailed,
)
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
from domain.tasks import GenerationTask, UnreadableTask

NO_PICTURE = Failure(
    code=ErrorCode.GENERATION_FAILED, message="The picture could not be made; the credit is back"
)
_UNREADABLE = Failure(
    code=ErrorCode.INVALID_TASK, message="The request could not be read; the credit is back"
)
_NO_DELAY = timedelta(0)
_LONGEST_ASKED_SECONDS = 3_600.0
_STOP_SECONDS = 5.0
"""How long we wait for work that was told to stop before we leave it behind."""


class Outcome(StrEnum):
    """How the run of a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"
    """Back to ``queued`` for another attempt."""
    SKIPPED = "skipped"
    """The session is not there, not queued, or another attempt's: nothing was begun."""
    OVERTAKEN = "overtaken"
    """The lease was lost, or the session ended otherwise meanwhile: what was done is void."""
    UNSETTLED = "unsettled"
    """The store did not answer at the end; the lease runs out and recovery takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPolicy:
    """How long and how often to try.

    ``attempt_timeout`` bounds one attempt. The wait before attempt n+1 is random between 0 and
    ``min(backoff_cap, backoff_base * 2**(n-1))`` (backoff with full jitter), and never shorter
    than the other side asked for, up to an hour.
    """

    lease: timedelta = timedelta(seconds=30)
    max_attempts: int = 3
    attempt_timeout: timedelta = timedelta(seconds=180)
    backoff_base: timedelta = timedelta(seconds=1)
    backoff_cap: timedelta = timedelta(seconds=60)

    def backoff(self, attempt: int, asked: float, random: Random) -> timedelta:
        """The wait after attempt number ``attempt``; ``asked`` is in seconds."""
        doubled = self.backoff_base.total_seconds() * 2.0 ** min(attempt - 1, 32)
        wait = random.random() * min(self.backoff_cap.total_seconds(), doubled)
        return timedelta(seconds=max(wait, min(asked, _LONGEST_ASKED_SECONDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """The picture of a session, and what it took if this attempt made it."""

    picture: StoredPicture
    usage: Usage | None = None


class Generation:
    """Works on sessions, one per call, any number at once."""

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

    async def run(self, task: GenerationTask) -> Outcome:
        """Do what ``task`` invites to, if its session is still waiting.

        When the store does not answer the claim, the task goes back to the queue and
        ``DatabaseUnavailable`` is raised; when it answers with another error, ``ClaimFailed`` is.
        When the generator turns everybody away, the session is given back, however often that
        happened to it, and ``ProviderMisconfigured`` is raised. Any other unexpected error fails
        the session with its refund and is raised. When cancelled, gives the session back and stops.
        """
        try:
            session = await self._attempts.claim(task.session_id, lease=self._policy.lease)
        except (Exception, asyncio.CancelledError) as error:
            # If the claim did take effect the task is a ghost now, and the lease runs out.
            with suppress(Unavailable):
                await self._queue.push_next([task])
            if isinstance(error, DatabaseUnavailable | asyncio.CancelledError):
                raise
            raise ClaimFailed("The store cannot give out sessions") from error
        if session is None:
            return Outcome.SKIPPED
        try:
            return await self._work_and_settle(session)
        except DatabaseUnavailable:
            return Outcome.UNSETTLED
        except (ProviderMisconfigured, asyncio.CancelledError):
            await self._give_back(session)
            raise

    async def refuse(self, message: UnreadableTask) -> bool:
        """Fail the session that a message names which breaks the contract, and bury the message.

        Returns whether a session was failed. Raises when store or queue does not answer; to be
        called again then, for nobody else has the message any more.
        """
        failed = message.session_id is not None and await self._sessions.fail_queued(
            message.session_id, _UNREADABLE
        )
        await self._queue.bury(message, reason=message.reason)
        return failed

    async def _work_and_settle(self, session: GenerationSession) -> Outcome:
        try:
            made = await self._within_lease(session)
        except TryAgain as error:
            return await self._try_again(session, error)
        except Refused as error:
            return await self._fail(session, _failure(error))
        except Superseded:
            return Outcome.OVERTAKEN
        except (ProviderMisconfigured, DatabaseUnavailable):
            raise
        except Exception:
            with suppress(DatabaseUnavailable):
                await self._fail(session, NO_PICTURE)
            raise
        if made is None:
            return Outcome.OVERTAKEN
        settled = await self._attempts.complete(
            session.id, attempt=session.attempt, picture=made.picture, usage=made.usage
        )
        return Outcome.COMPLETED if settled else Outcome.OVERTAKEN

    async def _within_lease(self, session: GenerationSession) -> _Made | None:
        """The picture, or None if the lease was lost while it was being made.

        The bound of an attempt stands here, around the work, so that it holds also for work that
        ignores being stopped.
        """
        lease_seconds = self._policy.lease.total_seconds()
        attempt_seconds = self._policy.attempt_timeout.total_seconds()
        first_seconds = min(lease_seconds / 3, attempt_seconds)
        valid_until = asyncio.get_running_loop().time() + lease_seconds
        work = asyncio.create_task(self._make_or_fail(session))
        lease: asyncio.Task[None] | None = None
        try:
            # Nobody needs to look after the lease of what is done before it must be renewed.
            await asyncio.wait((work,), timeout=first_seconds)
            if not work.done():
                lease = asyncio.create_task(self._keep_lease(session, valid_until))
                await asyncio.wait(
                    (work, lease),
                    timeout=attempt_seconds - first_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if work.cancelled():
                raise RuntimeError("The work cancelled itself")
            if work.done():
                return _made_by(work.result())
            if lease is not None and lease.done():
                return lease.result()
            raise TryAgain("Making the picture took too long")
        finally:
            await _stop(work, lease)
            del work, lease  # An error's trace leads here, and from here would lead to the error.

    async def _keep_lease(self, session: GenerationSession, valid_until: float) -> None:
        """Renew the lease now, and three times in its life; return once it is or may be lost."""
        lease = self._policy.lease
        loop = asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            with suppress(DatabaseUnavailable):
                if not await self._attempts.renew(session.id, attempt=session.attempt, lease=lease):
                    return
                valid_until = asked_at + lease.total_seconds()
            if loop.time() >= valid_until:
                return
            await asyncio.sleep(lease.total_seconds() / 3)

    async def _make_or_fail(self, session: GenerationSession) -> _Made | WorkFailed:
        """An expected failure has no trace, for the pictures in its frames would outlive it: it
        leads from the failure to timers, from these to this task and from the task to the failure,
        and the garbage collector, which alone ends such a circle, seldom comes."""
        try:
            return await self._make(session)
        except WorkFailed as failure:
            failure.__cause__ = failure.__context__ = None
            return failure.with_traceback(None)

    async def _make(self, session: GenerationSession) -> _Made:
        """Make and keep the picture, unless an earlier attempt got as far as keeping it. What
        that one took was lost with it."""
        kept = await self._storage.find(session.object_prefix)
        if kept is not None:
            return _Made(picture=kept)
        generated = await self._generated(session)
        picture = await self._storage.save(session.object_prefix, generated.picture)
        return _Made(picture=picture, usage=generated.usage)

    async def _generated(self, session: GenerationSession) -> Generated:
        """By the job that an earlier attempt began, if that leads to a picture: it is paid for,
        and needs no input pictures, whose links may be dead by now. Else by a new one."""
        note = partial(self._note, session)
        if session.provider_job is not None:
            resumed = await self._generator.resume(session.provider_job, note)
            if resumed is not None:
                return resumed
        images = [await self._fetcher.fetch(url, session.owner) for url in session.input.image_urls]
        request = PictureRequest(
            session_id=session.id,
            prompt=session.input.prompt,
            images=tuple(images),
            instead_of=session.provider_job,
        )
        return await self._generator.generate(request, note)

    async def _note(self, session: GenerationSession, job: str) -> None:
        if not await self._attempts.record_job(session.id, attempt=session.attempt, job=job):
            raise Superseded(f"Attempt {session.attempt} is over")

    async def _try_again(self, session: GenerationSession, error: TryAgain) -> Outcome:
        if session.attempt >= self._policy.max_attempts:
            return await self._fail(session, _failure(error))
        delay = self._policy.backoff(session.attempt, error.retry_after_seconds, self._random)
        released = await self._attempts.release(session.id, attempt=session.attempt, delay=delay)
        return Outcome.RELEASED if released else Outcome.OVERTAKEN

    async def _fail(self, session: GenerationSession, failure: Failure) -> Outcome:
        settled = await self._attempts.fail(session.id, failure, attempt=session.attempt)
        return Outcome.FAILED if settled else Outcome.OVERTAKEN

    async def _give_back(self, session: GenerationSession) -> None:
        """Let another worker have the session at once; if that fails, recovery does it later."""
        with suppress(Unavailable):
            if await self._attempts.release(session.id, attempt=session.attempt, delay=_NO_DELAY):
                await self._queue.push_next([GenerationTask.of(session, task_id=self._new_id())])


def _made_by(result: _Made | WorkFailed) -> _Made:
    try:
        if isinstance(result, WorkFailed):
            raise result
        return result
    finally:
        del result  # As in _within_lease.


def _failure(error: WorkFailed) -> Failure:
    return Failure(code=error.reason, message=str(error))


async def _stop(*tasks: asyncio.Task[object] | None) -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
        task.add_done_callback(_take_note)
    if not all(task.done() for task in begun):
        await asyncio.wait(begun, timeout=_STOP_SECONDS)


def _take_note(task: asyncio.Task[object]) -> None:
    """Nobody else asks how a stopped task ended, and asyncio complains of errors unasked for."""
    if not task.cancelled():
        task.exception()
