"""Pictures that a provider makes as jobs: begun by one call, asked for by others.

What a job is to its session is the same whoever the provider is, and stands here: its name is kept
as soon as it has one, a later attempt waits for it instead of paying for another, and an attempt
that stops cancels it, but never one that a newer attempt may wait for.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Protocol

from adapters.images.http import try_again
from adapters.images.limits import JobLimits
from domain.errors import (
    DatabaseUnavailable,
    ProviderMisconfigured,
    Superseded,
    TryAgain,
    WorkFailed,
)
from domain.ports import Generated, PictureGeneratorPort, PictureRequest, RecordJob

STOP_SECONDS = 4.0
"""How long an attempt that stops may take to cancel its job: less than it is waited for."""
_GROWTH = 1.5


class JobProducedNothing(Exception):
    """A job ended without a picture that can be used, or its provider does not know it."""


class Jobs(Protocol):
    """The calls of a provider. Each has its own bound, and none is repeated by itself."""

    async def begin(self, request: PictureRequest) -> str:
        """The id of a new job. Raises what ``PictureGeneratorPort.generate`` raises."""

    async def look(self, job_id: str) -> Generated | None:
        """The picture, or None while it is being made. Raises ``JobProducedNothing``; ``TryAgain``
        where the question failed, which says nothing of the job; ``Refused`` and
        ``ProviderMisconfigured``."""

    async def cancel(self, job_id: str) -> None:
        """End a job, if it has not ended by itself. Raises ``TryAgain`` and
        ``ProviderMisconfigured``."""


class JobPictureGenerator(PictureGeneratorPort):
    """Lives through one job for each picture. ``name`` begins the names of its jobs: after a change
    of generators nobody asks a provider for another one's."""

    def __init__(self, jobs: Jobs, *, name: str, limits: JobLimits, random: Random) -> None:
        self._jobs = jobs
        self._name = name
        self._limits = limits
        self._random = random

    async def generate(self, request: PictureRequest, note: RecordJob) -> Generated:
        job_id = await self._begun(request)
        try:
            return await self._waited_for(job_id, note, new=True)
        except JobProducedNothing as error:
            raise try_again() from error

    async def resume(self, job: str, note: RecordJob) -> Generated | None:
        name, _, job_id = job.partition(":")
        if name != self._name:
            return None
        try:
            return await self._waited_for(job_id, note, new=False)
        except JobProducedNothing:
            return None

    async def _begun(self, request: PictureRequest) -> str:
        """Told to stop before the provider has answered, waits a little for the id, to cancel what
        would be made and paid for unseen."""
        beginning = asyncio.create_task(self._jobs.begin(request))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            with suppress(TimeoutError, WorkFailed):  # No job, or none that we could name.
                async with asyncio.timeout(STOP_SECONDS):
                    await self._jobs.cancel(await beginning)
            raise

    async def _waited_for(self, job_id: str, note: RecordJob, *, new: bool) -> Generated:
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                return await self._polled(job_id, note, new=new)
        except TimeoutError as error:
            await self._abandon(job_id, note)
            raise try_again() from error
        except asyncio.CancelledError:
            await self._abandon(job_id, note)
            raise

    async def _polled(self, job_id: str, note: RecordJob, *, new: bool) -> Generated:
        pauses = self._pauses()
        noted = not new or await self._first_noted(job_id, note)
        wait = next(pauses) if new else 0.0
        while True:
            await asyncio.sleep(wait)
            noted = noted or await self._noted(job_id, note)
            asked = 0.0
            try:
                generated = await self._jobs.look(job_id)
            except TryAgain as error:
                asked = error.retry_after_seconds
            else:
                if generated is not None:
                    return generated
            wait = max(asked, next(pauses))

    def _pauses(self) -> Iterator[float]:
        longest = self._limits.first_pause_seconds
        while True:
            yield longest * self._random.uniform(0.5, 1.0)
            longest = min(longest * _GROWTH, self._limits.longest_pause_seconds)

    async def _first_noted(self, job_id: str, note: RecordJob) -> bool:
        """Whether a new job's name is kept. One that the session cannot have is cancelled."""
        try:
            return await self._noted(job_id, note)
        except Superseded:
            await self._cancel(job_id)
            raise

    async def _noted(self, job_id: str, note: RecordJob) -> bool:
        """False where the store does not answer: the job goes on, so it is asked again."""
        try:
            await note(self._named(job_id))
        except DatabaseUnavailable:
            return False
        return True

    async def _abandon(self, job_id: str, note: RecordJob) -> None:
        """Cancel a job that is still this attempt's. Its name stays: where it could not be
        cancelled, or was made before that, the next attempt gets its picture."""
        with suppress(TimeoutError, DatabaseUnavailable, Superseded):
            async with asyncio.timeout(STOP_SECONDS):
                await note(self._named(job_id))
                await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        """What cannot be cancelled is only money; the attempt ends as it would have."""
        with suppress(TryAgain, ProviderMisconfigured):
            await self._jobs.cancel(job_id)

    def _named(self, job_id: str) -> str:
        return f"{self._name}:{job_id}"
