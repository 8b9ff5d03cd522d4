"""Erasure of personal data, at once: pictures, uploads, links, prompts. Amounts, times and statuses
stay.

The picture storage comes first, the database second: a crash in between leaves a session that is
not erased yet, and a repetition does both again. An attempt that has lost its lease may save a
picture even later: recovery deletes the pictures of erased sessions once more, like all others.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from domain.callers import Caller, Shopper
from domain.credits import Owner
from domain.errors import Conflict, NotFound, Unavailable
from domain.picture_ports import PictureStoragePort, UploadStoragePort
from domain.ports import DeadLetterPort, Position, SessionReadPort, SessionRepoPort
from domain.sessions import ErrorCode, Failure, GenerationSession
from domain.uploads import is_upload_of, is_upload_of_shopper, shopper_folder, upload_path
from domain.webhook_ports import EndpointRepoPort

BATCH = 50
UPLOAD_BATCH = 1_000
WEBHOOK_BATCH = 1_000
MAX_LETTERS = 10_000
"""Dead letters looked through: as many as are kept."""
CANCELLED = Failure(code=ErrorCode.CANCELLED, message="Cancelled: the data were erased")


class ErasureRepoPort(Protocol):
    """Sessions and shoppers whose personal data go. Raises ``DatabaseUnavailable``."""

    async def sessions_of(
        self, owner: Owner, *, shopper: str | None, limit: int, after: Position | None
    ) -> list[GenerationSession]:
        """``owner``'s sessions, or those of one of its shoppers, newest first, starting after the
        position ``after``."""

    async def erase(self, session_ids: Sequence[UUID], *, with_shopper: bool = False) -> int:
        """Final sessions lose their links, their prompt, their provider job and their attempts'
        faults, and ``with_shopper`` also the id of their shopper: all sessions or none. Returns how
        many sessions changed: unfinished and already erased ones do not."""

    async def forget_shoppers(self, owner: Owner, *, shopper: str | None, limit: int) -> int:
        """Delete a store's shoppers, or one of them, with their client tokens: at most ``limit``.

        Returns the number found: less than ``limit`` means that none is left.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """What one run of ``erase_owner`` did, and what it left.

    ``cancelled`` sessions were queued, and are among the ``erased`` ones. ``unfinished`` sessions
    are being worked on: repeat the erasure when they have ended. The database rejected the change
    of the ``rejected`` ones. ``webhooks`` counts endpoints and deliveries.
    """

    erased: int = 0
    cancelled: int = 0
    uploads: int = 0
    shoppers: int = 0
    webhooks: int = 0
    dead_letters: int = 0
    unfinished: int = 0
    rejected: tuple[UUID, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.unfinished and not self.rejected

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found."""
        return self == ErasureReport()


class Erasure:
    """``upload_key`` finds the object's key in a link to an upload in our storage; None for any
    other link."""

    def __init__(
        self,
        *,
        repo: ErasureRepoPort,
        sessions: SessionRepoPort,
        reads: SessionReadPort,
        letters: DeadLetterPort,
        storage: PictureStoragePort,
        uploads: UploadStoragePort,
        webhooks: EndpointRepoPort,
        upload_key: Callable[[str], str | None],
    ) -> None:
        self._repo = repo
        self._sessions = sessions
        self._reads = reads
        self._letters = letters
        self._storage = storage
        self._uploads = uploads
        self._webhooks = webhooks
        self._upload_key = upload_key

    async def erase_session(self, session_id: UUID, caller: Caller) -> GenerationSession:
        """Erase one final session: its picture, the uploads that it used, its links and prompt.
        Repeating it changes nothing. The shopper still sees it.

        Raises ``NotFound``, ``Conflict`` for an unfinished session, and ``StorageUnavailable`` or
        ``DatabaseUnavailable``: then it may not be erased yet.
        """
        session = await self._reads.get(session_id, caller.owner)
        if caller.shopper is not None and not _is_same_shopper(session.shopper, caller.shopper):
            raise NotFound("No such generation")
        if not session.status.is_final:
            raise Conflict("Only a completed or failed session can be erased")
        if session.erased_at is not None:
            return session
        await self._delete_objects(session)
        await self._repo.erase([session.id])
        return await self._reads.get(session_id, caller.owner)

    async def erase_owner(
        self,
        owner: Owner,
        *,
        shopper: str | None = None,
        record: Callable[[], Awaitable[None]],
    ) -> ErasureReport:
        """Erase all sessions of an owner, or of one of a store's shoppers, with all that is stored
        beside them, in bounded batches. Queued sessions are cancelled before.

        ``record`` writes the entry of the audit log, before anything is erased. Whatever error ends
        a run, repeating it goes on. Raises ``Unavailable``.
        """
        await record()
        done: Counter[str] = Counter()
        rejected: list[UUID] = []
        after: Position | None = None
        # First, so that no client token makes new sessions, and no one is told of what is erased.
        # Deliveries hold ids only, but a shopper's own are those of the store.
        if shopper is None:
            done["webhooks"] = await _in_batches(
                lambda: self._webhooks.delete_all(owner, limit=WEBHOOK_BATCH), WEBHOOK_BATCH
            )
        done["shoppers"] = await _in_batches(
            lambda: self._repo.forget_shoppers(owner, shopper=shopper, limit=BATCH), BATCH
        )
        while page := await self._repo.sessions_of(
            owner, shopper=shopper, limit=BATCH, after=after
        ):
            after = Position(created_at=page[-1].created_at, id=page[-1].id)
            await self._erase_page(page, done, rejected)
        folder = upload_path(owner)
        folder = folder if shopper is None else shopper_folder(folder, shopper)
        done["uploads"] = await _in_batches(
            lambda: self._uploads.delete_uploads_below(folder, limit=UPLOAD_BATCH), UPLOAD_BATCH
        )
        done["dead_letters"] = await self._discard_letters(owner)
        return ErasureReport(**done, rejected=tuple(rejected))

    async def _erase_page(
        self, page: Sequence[GenerationSession], done: Counter[str], rejected: list[UUID]
    ) -> None:
        final: list[GenerationSession] = []
        for session in page:
            if not session.status.is_final:
                if not await self._sessions.fail_queued(session.id, CANCELLED):
                    done["unfinished"] += 1
                    continue
                done["cancelled"] += 1
            final.append(session)
        failures = await asyncio.gather(*map(self._try_to_delete_objects, final))
        gone = [session.id for session, failed in zip(final, failures, strict=True) if not failed]
        done["erased"] += await self._erase_rows(gone, rejected)
        for failure in filter(None, failures):
            raise failure

    async def _erase_rows(self, session_ids: Sequence[UUID], rejected: list[UUID]) -> int:
        """One by one if the database rejects them together: one row must not keep the others."""
        try:
            return await self._repo.erase(session_ids, with_shopper=True)
        except Unavailable:
            raise
        except Exception:  # noqa: BLE001 - reported
            if len(session_ids) == 1:
                rejected.extend(session_ids)
                return 0
        return sum([await self._erase_rows([one], rejected) for one in session_ids])

    async def _try_to_delete_objects(self, session: GenerationSession) -> Exception | None:
        """Returns why they could not be deleted."""
        try:
            if session.erased_at is None:
                await self._delete_objects(session)
        except Exception as error:  # noqa: BLE001 - raised once the others are erased
            return error
        return None

    async def _delete_objects(self, session: GenerationSession) -> None:
        """Delete the picture and the uploads that were made for it."""
        await self._storage.delete(session.object_prefix)
        await self._uploads.delete_uploads(self._uploads_for(session))

    def _uploads_for(self, session: GenerationSession) -> set[str]:
        """The uploads to which the session's links lead: the owner's, or the shopper's. A shopper's
        session may use uploads of the store, such as an outfit's, which other sessions need: they
        stay."""
        owner, shopper = session.owner, session.shopper
        keys = filter(None, map(self._upload_key, session.input.image_urls))
        if shopper is not None:
            return {key for key in keys if is_upload_of_shopper(owner, shopper.id, key)}
        return {key for key in keys if is_upload_of(owner, key)}

    async def _discard_letters(self, owner: Owner) -> int:
        """Dead letters are tasks as they were sent, with links and prompt."""
        discarded = 0
        for letter in await self._letters.dead(limit=MAX_LETTERS):
            if letter.session_id is not None and await self._is_erased(letter.session_id, owner):
                discarded += await self._letters.discard(letter.id)
        return discarded

    async def _is_erased(self, session_id: UUID, owner: Owner) -> bool:
        try:
            return (await self._reads.get(session_id, owner)).erased_at is not None
        except NotFound:
            return False


def _is_same_shopper(one: Shopper | None, other: Shopper) -> bool:
    """Whatever their client tokens."""
    return one is not None and one.id == other.id


async def _in_batches(delete: Callable[[], Awaitable[int]], batch: int) -> int:
    """Repeat ``delete`` until it finds less than a whole batch. Returns the number found."""
    total, found = 0, batch
    while found >= batch:
        found = await delete()
        total += found
    return total
