"""Submit one generation: charge and record it, push its task, and tell the truth about both."""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from urllib.parse import urlsplit
from uuid import UUID

from domain.credits import Channel, Owner
from domain.deadlines import SharedTimeout
from domain.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidInput,
    Overloaded,
    QueueUnavailable,
    TooManyActive,
)
from domain.ports import Receipt, SessionReadPort, SessionRepoPort, TaskQueuePort
from domain.sessions import (
    DEFAULT_PROMPT,
    MAX_ACCESSORIES,
    MAX_PROMPT_LENGTH,
    Accessory,
    ErrorCode,
    Failure,
    GenerationSession,
    SessionStatus,
)
from domain.tasks import GenerationTask

MAX_URL_LENGTH = 2_048
CONFIRM_BATCH = 500
UNAVAILABLE_MESSAGE = "Generation service temporarily unavailable"
NOT_PUSHED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message=UNAVAILABLE_MESSAGE)

_KEY = re.compile(r"[!-~]{1,255}")
# Nothing is wrong with these, which are most, and nothing is to be taken apart to see that.
_USUAL_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::[1-9][0-9]{0,3})?/[A-Za-z0-9._~/?&=%+,:-]*")
_FULL = "Too many requests are waiting already; try again later"
_CANCELLED = Failure(code=ErrorCode.CANCELLED, message="Cancelled at the caller's request")


@dataclass(frozen=True, slots=True, kw_only=True)
class TryOnRequest:
    """What a caller asks for. Only stores may give a ``prompt`` of their own.

    Raises ``InvalidInput``, which names the field.
    """

    owner: Owner
    request_id: str
    model_image_url: str
    outfit_image_url: str | None = None
    accessories: tuple[Accessory, ...] = ()
    prompt: str | None = None
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        _check_url("model_image_url", self.model_image_url)
        if self.outfit_image_url is not None:
            _check_url("outfit_image_url", self.outfit_image_url)
        if len(self.accessories) > MAX_ACCESSORIES:
            raise InvalidInput("accessories", f"at most {MAX_ACCESSORIES} are possible")
        for index, accessory in enumerate(self.accessories):
            _check_url(f"accessories[{index}].url", accessory.url)
        if self.prompt is not None:
            self._check_prompt(self.prompt)
        if self.idempotency_key is not None and not _KEY.fullmatch(self.idempotency_key):
            raise InvalidInput("Idempotency-Key", "must be 1 to 255 visible ASCII characters")

    def _check_prompt(self, prompt: str) -> None:
        if self.owner.channel is not Channel.B2B:
            raise InvalidInput("prompt", "only stores may give a prompt of their own")
        if not prompt.strip() or len(prompt) > MAX_PROMPT_LENGTH:
            raise InvalidInput("prompt", f"must be 1 to {MAX_PROMPT_LENGTH} characters")


def _check_url(field: str, url: str) -> None:
    """Refuse what cannot be a link to a picture. The fetcher checks where it really leads."""
    if len(url) > MAX_URL_LENGTH:
        raise InvalidInput(field, f"is longer than {MAX_URL_LENGTH} characters")
    if _USUAL_URL.fullmatch(url):
        return
    if not url.isprintable() or any(character in url for character in ' \\"<>'):
        raise InvalidInput(field, "has a character that a URL cannot have")
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as error:
        raise InvalidInput(field, "is not a valid URL") from error
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise InvalidInput(field, "must be an http or https URL")
    if user is not None:
        raise InvalidInput(field, "must not carry a user name or password")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionPolicy:
    """How long a submission may take, and how much we take in.

    ``deadline`` is for charging, recording and pushing; undoing may take ``undo_deadline`` more.
    ``max_waiting`` bounds the queue as last measured, ``max_active`` the unfinished sessions of
    one owner.
    """

    deadline: timedelta = timedelta(seconds=2)
    undo_deadline: timedelta = timedelta(seconds=1)
    max_waiting: int = 100_000
    max_active: int = 1_000


class Submission:
    """Takes requests in, and takes them back while they still wait."""

    def __init__(
        self,
        *,
        sessions: SessionRepoPort,
        reads: SessionReadPort,
        queue: TaskQueuePort,
        policy: SubmissionPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._reads = reads
        self._queue = queue
        self._policy = policy
        self._new_id = new_id
        self._clock = clock
        self._deadline = SharedTimeout(policy.deadline.total_seconds())
        self._waiting = 0
        # No bound of its own: it grows by one per charged session and empties every second.
        self._unconfirmed: deque[UUID] = deque()

    async def submit(self, request: TryOnRequest) -> Receipt:
        """Debit one credit, create the session as ``queued`` and push its task.

        Raises, before anything happened, ``Overloaded``, ``TooManyActive``,
        ``InsufficientCredits`` and ``IdempotencyKeyReused``. Raises ``DatabaseUnavailable``
        (nothing happened, or recovery undoes it) and ``QueueUnavailable`` (it is undone, or
        recovery does that). A receipt means that the session will reach a final status.
        """
        full = self._waiting >= self._policy.max_waiting
        if full and request.idempotency_key is None:
            raise Overloaded(_FULL)
        receipt: Receipt | None = None
        try:
            with self._deadline.running():
                receipt = await self._create(request, full=full)
                if receipt.replayed and not self._is_abandoned(receipt.session):
                    return receipt
                await self._queue.push(GenerationTask.of(receipt.session, task_id=self._new_id()))
        except TimeoutError as error:
            if receipt is None:
                raise DatabaseUnavailable("The store took too long") from error
            await self._not_pushed(receipt, QueueUnavailable("The queue took too long"))
        except QueueUnavailable as error:
            assert receipt is not None  # noqa: S101 - only a push raises it
            await self._not_pushed(receipt, error)
        else:
            self._unconfirmed.append(receipt.session.id)
        return receipt

    async def _not_pushed(self, receipt: Receipt, cause: QueueUnavailable) -> None:
        if not receipt.replayed:  # else recovery settles what another submitter began
            await self._undo(receipt.session.id, cause)

    async def _create(self, request: TryOnRequest, *, full: bool) -> Receipt:
        """While the queue is ``full`` only what repeats an earlier request has a receipt."""
        max_active = 0 if full else self._policy.max_active
        try:
            return await self._sessions.create(self._session(request), max_active=max_active)
        except TooManyActive as error:
            if full:
                raise Overloaded(_FULL) from error
            raise

    def _is_abandoned(self, session: GenerationSession) -> bool:
        """Whether a repeated request should push again, because the first one's submitter died or
        never learnt that it had charged: it is past its deadline and confirmed nothing."""
        gave_up_at = session.created_at + self._policy.deadline + self._policy.undo_deadline
        return (
            session.status is SessionStatus.QUEUED
            and not session.confirmed
            and self._clock() > gave_up_at
        )

    async def _undo(self, session_id: UUID, cause: QueueUnavailable) -> None:
        """Fail the session with its refund and raise; return if a worker has it already.

        The push may have reached the queue although it failed here. Whoever changes the session
        first decides: if we do, a claim finds it final; if a worker did, the push did succeed.

        Where the store does not answer either, recovery settles the session. If the task is
        certainly not in the queue, nobody can claim it until then and its refund is certain:
        raise. Otherwise a worker may still complete it, so "unavailable" might turn out a lie;
        that the session will reach a final status is true in any case: return.
        """
        try:
            async with asyncio.timeout(self._policy.undo_deadline.total_seconds()):
                undone = await self._sessions.fail_queued(session_id, NOT_PUSHED)
        except (DatabaseUnavailable, TimeoutError):
            undone = cause.refused
        if undone:
            raise QueueUnavailable(UNAVAILABLE_MESSAGE) from cause

    async def measure_queue(self) -> int:
        """See how many tasks wait, so that ``submit`` can refuse more; call about once a second.

        Not part of ``submit``, which would wait for it. An unknown length refuses nobody.
        """
        try:
            self._waiting = await self._queue.depth()
        except QueueUnavailable:
            self._waiting = 0
            raise
        return self._waiting

    async def confirm_pushed(self) -> int:
        """Note in the store which tasks reached the queue; call about once a second.

        Only confirmed sessions are pushed again when the queue loses them. Not part of
        ``submit``, so that a request does not wait for it and most sessions are claimed before.
        """
        confirmed = 0
        while batch := list(islice(self._unconfirmed, CONFIRM_BATCH)):
            confirmed += await self._sessions.confirm(batch)
            for _ in batch:
                self._unconfirmed.popleft()
        return confirmed

    async def cancel(self, session_id: UUID, owner: Owner) -> GenerationSession:
        """Fail a ``queued`` session with its refund.

        Raises ``NotFound`` and, when it is no longer queued, ``Conflict``.
        """
        session = await self._reads.get(session_id, owner)
        if not await self._sessions.fail_queued(session.id, _CANCELLED):
            raise Conflict("Only a queued session can be cancelled")
        return await self._reads.get(session_id, owner)

    def _session(self, request: TryOnRequest) -> GenerationSession:
        return GenerationSession(
            id=self._new_id(),
            owner=request.owner,
            request_id=request.request_id,
            prompt=request.prompt or DEFAULT_PROMPT,
            model_image_url=request.model_image_url,
            outfit_image_url=request.outfit_image_url,
            accessories=request.accessories,
            created_at=self._clock(),
            idempotency_key=request.idempotency_key,
        )
