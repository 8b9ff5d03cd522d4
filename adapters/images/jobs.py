"""Pictures that a provider makes as jobs: one call begins a job, later calls poll it.

The rules that tie a job to its session are the same for every provider:

- The job's name is recorded with the session as soon as the provider has named the job.
- A later attempt waits for the recorded job instead of paying for another one.
- An attempt that stops cancels its job, unless a newer attempt may be waiting for that job.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Protocol

import structlog

from adapters.images.http import no_picture
from adapters.images.limits import JobLimits
from domain.errors import (
    DatabaseUnavailable,
    ProviderMisconfigured,
    Superseded,
    TryAgain,
    WorkFailed,
)
from domain.picture_ports import Generated, PictureGeneratorPort, PictureRequest, RecordJob

log = structlog.get_logger(__name__)

STOP_SECONDS = 4.0
"""Time for a stopping attempt to cancel its job. The caller waits slightly longer than this."""
_GROWTH = 1.5


class JobProducedNothing(Exception):
    """A job ended without a usable picture, or the provider does not know it."""


class Jobs(Protocol):
    """The calls of a provider. Each call has its own timeout and is never repeated by itself."""

    async def begin(self, request: PictureRequest) -> str:
        """The id of a new job. Raises what ``PictureGeneratorPort.generate`` raises."""

    async def poll(self, job_id: str) -> Generated | None:
        """The picture, or None while the job runs.

        Raises ``JobProducedNothing``, ``Refused``, ``ProviderMisconfigured``, and ``TryAgain`` if
        the call failed, which says nothing about the job.
        """

    async def cancel(self, job_id: str) -> None:
        """End a job that still runs. Raises ``TryAgain`` and ``ProviderMisconfigured``."""


class JobPictureGenerator(PictureGeneratorPort):
    """Runs one provider job per picture. Job names are prefixed with ``name``, so after switching
    providers no job is looked up at the wrong one."""

    def __init__(self, jobs: Jobs, *, name: str, limits: JobLimits, random: Random) -> None:
        self._jobs = jobs
        self._name = name
        self._limits = limits
        self._random = random

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:
        job_id = await self._begin(request)
        try:
            return await self._wait_for(job_id, record, is_new=True)
        except JobProducedNothing as error:
            raise no_picture("job without a picture") from error

    async def resume(self, job: str, record: RecordJob) -> Generated | None:
        name, _, job_id = job.partition(":")
        if name != self._name:
            return None
        try:
            return await self._wait_for(job_id, record, is_new=False)
        except JobProducedNothing:
            return None

    async def _begin(self, request: PictureRequest) -> str:
        """If cancelled before the provider answers, wait briefly for the id and cancel the job,
        which would be paid for although its picture is never used."""
        beginning = asyncio.create_task(self._jobs.begin(request))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            with suppress(TimeoutError, WorkFailed):  # There is no job, or its id is unknown.
                async with asyncio.timeout(STOP_SECONDS):
                    await self._jobs.cancel(await beginning)
            raise

    async def _wait_for(self, job_id: str, record: RecordJob, *, is_new: bool) -> Generated:
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                return await self._poll(job_id, record, is_new=is_new)
        except TimeoutError as error:
            await self._abandon(job_id, record)
            raise no_picture("job timeout") from error
        except asyncio.CancelledError:
            await self._abandon(job_id, record)
            raise

    async def _poll(self, job_id: str, record: RecordJob, *, is_new: bool) -> Generated:
        pauses = self._pauses()
        is_recorded = not is_new or await self._record_new(job_id, record)
        pause = next(pauses) if is_new else 0.0
        while True:
            await asyncio.sleep(pause)
            is_recorded = is_recorded or await self._record(job_id, record)
            retry_after = 0.0
            try:
                generated = await self._jobs.poll(job_id)
            except TryAgain as error:
                retry_after = error.retry_after_seconds
            else:
                if generated is not None:
                    return generated
            pause = max(retry_after, next(pauses))

    def _pauses(self) -> Iterator[float]:
        longest = self._limits.first_pause_seconds
        while True:
            yield longest * self._random.uniform(0.5, 1.0)
            longest = min(longest * _GROWTH, self._limits.longest_pause_seconds)

    async def _record_new(self, job_id: str, record: RecordJob) -> bool:
        """As ``_record``, but cancel the job if the session has a newer attempt, which does not
        know of it."""
        try:
            return await self._record(job_id, record)
        except Superseded:
            await self._cancel(job_id)
            raise

    async def _record(self, job_id: str, record: RecordJob) -> bool:
        """Whether the job's name is recorded. False if the database does not answer: the job runs
        on, and the next poll tries again."""
        try:
            await record(self._job_name(job_id))
        except DatabaseUnavailable:
            return False
        return True

    async def _abandon(self, job_id: str, record: RecordJob) -> None:
        """Cancel the job if this attempt is still the current one.

        The name stays recorded. If the job cannot be cancelled, or was finished before, the next
        attempt gets its picture.
        """
        # Not asyncio.timeout: in Python 3.11.2 a task that was cancelled already gets no
        # TimeoutError from it.
        cancelling = asyncio.create_task(self._cancel_own(job_id, record))
        try:
            await asyncio.wait((cancelling,), timeout=STOP_SECONDS)
            if cancelling.done():
                cancelling.result()
            else:
                log.warning("job_not_cancelled", job=self._job_name(job_id), cause="timeout")
        finally:
            cancelling.cancel()

    async def _cancel_own(self, job_id: str, record: RecordJob) -> None:
        with suppress(DatabaseUnavailable, Superseded):  # It may be another attempt's.
            await record(self._job_name(job_id))
            await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        """A failed cancellation only costs money, so it does not change how the attempt ends."""
        try:
            await self._jobs.cancel(job_id)
        except (TryAgain, ProviderMisconfigured) as error:
            cause = str(error.cause)
            log.warning("job_not_cancelled", job=self._job_name(job_id), cause=cause)

    def _job_name(self, job_id: str) -> str:
        return f"{self._name}:{job_id}"
