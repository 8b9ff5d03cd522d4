"""The database and the storage of a world, which record what a guard should have prevented."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_rows import Row
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.causes import Cause, CauseKind
from domain.errors import (
    IllegalTransition,
    StorageUnavailable,
)
from domain.picture_ports import Picture
from domain.sessions import (
    Blocked,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)
from tests.simulation.limits import LIMITS
from tests.support.clock import loop_time

PICTURE_LIFETIME = timedelta(seconds=8)
NO_SPACE = Cause(CauseKind.STORAGE, "no space left on device")


@dataclass(slots=True)
class ProviderJob:
    """A job that runs at the provider, whether or not a worker waits for it."""

    ends_at: float
    has_picture: bool
    cancelled: bool = False

    @property
    def has_ended(self) -> bool:
        return self.cancelled or loop_time() >= self.ends_at

    @property
    def produced_nothing(self) -> bool:
        return self.cancelled or (self.has_ended and not self.has_picture)


class WatchedSessionRepo(InMemorySessionRepo):
    """Records each write that a guard should have prevented."""

    def __init__(self, *, accounts: InMemoryCreditRepo, clock: Callable[[], datetime]) -> None:
        super().__init__(accounts=accounts, clock=clock, limits=LIMITS)
        self.breaches: list[str] = []
        self.jobs: dict[str, ProviderJob] = {}
        """The provider's jobs, by the name that sessions record."""
        self.unsound: set[UUID] = set()
        """Sessions whose refund the database rejects, until an operator has repaired it."""
        self.repaired = False
        self._undone: set[UUID] = set()
        self._recorded: dict[UUID, str] = {}
        self._attempts: dict[UUID, int] = {}
        """The attempt of the worker that claimed a session, unless an external consumer took it."""

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        claimed = await super().claim(session_id, lease=lease)
        if claimed is not None:
            self._attempts[session_id] = claimed.attempt
        return claimed

    def overwrite(self, session_id: UUID, **changes: Any) -> None:
        if session_id not in self._rows:
            return  # An UPDATE of no row.
        before = self._rows[session_id].session.status
        super().overwrite(session_id, **changes)
        if before is SessionStatus.QUEUED:
            self._attempts.pop(session_id, None)

    async def fail_queued(self, session_id: UUID, failure: Failure, *, undo: bool = False) -> bool:
        done = await super().fail_queued(session_id, failure, undo=undo)
        if done and undo and self._rows[session_id].push_again_at is None:
            self._undone.add(session_id)
        return done

    def undone(self) -> set[UUID]:
        """The sessions that their submission undid, before recovery found them."""
        return self._undone

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        done = await super().complete(session_id, attempt=attempt, picture=picture, usage=usage)
        return self._checked(done, "completed", session_id, attempt)

    async def fail(
        self, session_id: UUID, failure: Failure, *, attempt: int, fault: Fault | None = None
    ) -> str | None:
        code = await super().fail(session_id, failure, attempt=attempt, fault=fault)
        self._checked(code is not None, "failed", session_id, attempt)
        return code

    async def release(
        self, session_id: UUID, *, attempt: int, delay: timedelta, fault: Fault | None = None
    ) -> SessionStatus | None:
        status = await super().release(session_id, attempt=attempt, delay=delay, fault=fault)
        self._checked(status is not None, "released", session_id, attempt)
        return status

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        done = await super().record_job(session_id, attempt=attempt, job=job)
        if done:
            before = self._recorded.get(session_id, job)
            if before != job and not self.jobs[before].produced_nothing:
                self.breaches.append(f"{session_id} has {job}, and {before} is paid for as well")
            self._recorded[session_id] = job
        return self._checked(done, "recorded a job of", session_id, attempt)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        alive = self._alive()
        done = await super().release_dead_leases(
            max_attempts=max_attempts,
            external_timeout=external_timeout,
            limit=limit,
            blocked=blocked,
        )
        self._check_taken(alive)
        return done

    async def fail_dead_leases(
        self,
        failure: Failure,
        *,
        max_attempts: int,
        external_timeout: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        alive = self._alive()
        failed = await super().fail_dead_leases(
            failure,
            max_attempts=max_attempts,
            external_timeout=external_timeout,
            limit=limit,
            blocked=blocked,
        )
        self._check_taken(alive)
        return failed

    def _refund(self, row: Row) -> None:
        if row.session.id in self.unsound and not self.repaired:
            raise IllegalTransition(f"{row.session.id} cannot be refunded")
        super()._refund(row)

    def has_failed(self, session_id: UUID) -> bool:
        row = self._rows.get(session_id)
        return row is not None and row.session.status is SessionStatus.FAILED

    def check_deletion(self, session_id: UUID) -> None:
        """Call this when the picture of a session was deleted."""
        row = self._rows[session_id]
        ended = row.session.status.is_final
        if not ended or self._clock() < row.status_changed_at + PICTURE_LIFETIME:
            self.breaches.append(f"the picture of {session_id} was deleted too early")

    def stored(self) -> Iterator[GenerationSession]:
        """All sessions, the oldest first; none is ever removed."""
        return (row.session for row in self._rows.values())

    def _checked(self, done: bool, what: str, session_id: UUID, attempt: int) -> bool:
        if done and self._attempts.get(session_id) != attempt:
            self.breaches.append(
                f"attempt {attempt} {what} {session_id}, which another attempt has"
            )
        return done

    def _alive(self) -> set[UUID]:
        """The sessions with a lease that has not expired."""
        now = self._clock()
        return {
            session_id
            for session_id in self._attempts
            if (session := self._rows[session_id].session).status is SessionStatus.PROCESSING
            and (session.lease_expires_at or now) > now
        }

    def _check_taken(self, alive: set[UUID]) -> None:
        for session_id in alive - self._alive():
            self.breaches.append(f"{session_id} was taken from a live worker")


class WatchedImageStorage(InMemoryPictureStorage):
    """Records the deleted pictures, and checks that each was old enough. May be ``full``."""

    def __init__(self, *, repo: WatchedSessionRepo, signer: UrlSigner) -> None:
        super().__init__(signer=signer)
        self.deleted: set[str] = set()
        self.full = False
        self._repo = repo

    async def check(self) -> None:
        if self.full:
            raise StorageUnavailable("full", cause=NO_SPACE)

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        if self.full:
            raise StorageUnavailable("full", cause=NO_SPACE)
        return await super().save(prefix, picture)

    async def delete(self, prefix: str) -> None:
        await super().delete(prefix)
        self.deleted.add(prefix)
        self._repo.check_deletion(UUID(prefix.rpartition("/")[2]))
