"""Submit one generation: charge and record it, push its task, and answer truthfully about both."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from domain.age import AgeVerification
from domain.changes import NO_CHANGES, ChangePublisherPort
from domain.credits import Channel, Owner
from domain.deadlines import SharedTimeout
from domain.errors import (
    AgeVerificationRequired,
    Conflict,
    DatabaseUnavailable,
    IntakePaused,
    Overloaded,
    QueueUnavailable,
    Unconfirmed,
    WearonError,
)
from domain.links import PUBLIC_LINKS, LinkRules
from domain.ports import Receipt, SessionReadPort, SessionRepoPort, TaskQueuePort
from domain.queue_gate import QueueGate
from domain.requests import TryOnRequest
from domain.sessions import (
    ErrorCode,
    Failure,
    GenerationInput,
    GenerationSession,
    SessionStatus,
)
from domain.signup import NO_SIGNUP, SignupPolicy
from domain.tasks import GenerationTask

CONFIRM_BATCH = 500
UNAVAILABLE_MESSAGE = "Generation service temporarily unavailable"
NOT_PUSHED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message=UNAVAILABLE_MESSAGE)

_QUEUE_FULL = "Too many requests are waiting already; try again later"
_PAUSED = "Paused by the operator; try again later"
_NOT_SETTLED = "It is not known yet whether the first request with this key is accepted"
_UNDONE = "The first request with this key was not accepted"
_PROBE_SECONDS = 0.5
_FIRST_LOOK_SECONDS = 0.02
_LOOK_SECONDS = 0.4
"""A waiting replay reads its session again after the first, then after twice as long each time, up
to the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionPolicy:
    """The limits on one submission and on the load that is accepted.

    Charging, recording and pushing share ``deadline``; undoing them may take ``undo_deadline``
    more. ``max_waiting`` bounds the queue as last measured, ``max_active`` one owner's unfinished
    sessions. ``age_b2b`` is the rule for stores and their shoppers, ``age_b2c`` for users.
    """

    deadline: timedelta = timedelta(seconds=2)
    undo_deadline: timedelta = timedelta(seconds=1)
    max_waiting: int = 100_000
    max_active: int = 1_000
    signup: SignupPolicy = NO_SIGNUP
    age_b2b: AgeVerification = AgeVerification.OPTIONAL
    age_b2c: AgeVerification = AgeVerification.OPTIONAL

    def age_rule(self, channel: Channel) -> AgeVerification:
        return self.age_b2b if channel is Channel.B2B else self.age_b2c


class Submission:
    """Submits requests, and cancels them.

    ``announce_cancel`` is told of each session whose cancellation was requested while it is
    processed, once that is committed. It is a hint for the session's worker: it may get lost, and
    must neither wait nor raise."""

    def __init__(
        self,
        *,
        sessions: SessionRepoPort,
        reads: SessionReadPort,
        queue: TaskQueuePort,
        policy: SubmissionPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        links: LinkRules = PUBLIC_LINKS,
        changes: ChangePublisherPort = NO_CHANGES,
        announce_cancel: Callable[[GenerationSession], None] = lambda _: None,
    ) -> None:
        self.links = links
        """The rules for the links of a request."""
        self._announce_cancel = announce_cancel
        self._sessions = sessions
        self._reads = reads
        self._queue = queue
        self._policy = policy
        self._new_id = new_id
        self._clock = clock
        self._changes = changes
        self._deadline = SharedTimeout(policy.deadline.total_seconds())
        self.is_paused = False
        """Whether an operator has paused the intake: then only replays are answered."""
        self._waiting = 0
        self._gate = QueueGate()
        self._is_probing = False
        # Needs no bound: it grows by one per charged session and is emptied every second.
        self._unconfirmed: dict[UUID, None] = {}
        """The sessions that this process pushed and has not confirmed in the database, in order."""

    async def submit(self, request: TryOnRequest) -> Receipt:
        """Debit one credit, create the session as ``queued`` and push its task.

        Raises, without any effect: ``AgeVerificationRequired`` (also for a replay),
        ``IntakePaused``, ``Overloaded``, and what ``SessionRepoPort.create`` raises. Raises
        ``DatabaseUnavailable`` (without any effect, or recovery undoes it), ``QueueUnavailable``
        (it had no effect, or is undone, now or by recovery) and ``Unconfirmed`` (a repetition will
        tell). A receipt means that the session will reach a final status, and that its idempotency
        key will never be free again.

        A replay pushes nothing: it waits until the first request has, or a worker has the session.
        While the intake is paused, or the queue is full or known to fail, only replays are
        answered.
        """
        session = self._session(request)
        signup_credits = self._policy.signup.credits_of(request.caller)
        receipt: Receipt | None = None
        try:
            with self._deadline.running():
                receipt = await self._create(session, signup_credits)
                if receipt.replayed:
                    return await self._until_confirmed(session, receipt)
                self._gate.pushing()
                await self._queue.push(GenerationTask.of(receipt.session, task_id=self._new_id()))
        except TimeoutError as error:
            if receipt is None:
                raise DatabaseUnavailable("The database took too long") from error
            if receipt.replayed:
                raise Unconfirmed(_NOT_SETTLED) from error
            await self._undo(receipt.session, QueueUnavailable("The queue took too long"))
        except Exception as error:
            if receipt is None or receipt.replayed:
                raise
            if isinstance(error, QueueUnavailable):  # Neither a slow database nor a bug.
                self._gate.failed()
            await self._undo(receipt.session, error)
        else:
            self._gate.pushed()
            self._unconfirmed[receipt.session.id] = None
        return receipt

    async def submit_many(self, requests: Sequence[TryOnRequest]) -> Sequence[Receipt | Exception]:
        """What ``submit`` returns or raises for each of one caller's ``requests``, in their order,
        with one statement and one push for all that are new.

        The others are submitted one by one after the push: repetitions, also of an earlier request
        in ``requests``, a user's first request, and all while only replays are answered. So an
        answer may take twice as long as that of ``submit``.
        """
        outcomes: Sequence[Receipt | Exception | None] = [None] * len(requests)
        if self._refusal() is not None:
            await self._probe_queue()
        if requests and requests[0].caller.shopper is None and self._refusal() is None:
            outcomes = await self._submit_together(requests)
        if None not in outcomes:
            return [outcome for outcome in outcomes if outcome is not None]
        left = [
            self.submit(request)
            for request, outcome in zip(requests, outcomes, strict=True)
            if outcome is None
        ]
        answers = iter(
            [_no_exit(one) for one in await asyncio.gather(*left, return_exceptions=True)]
        )
        return [next(answers) if outcome is None else outcome for outcome in outcomes]

    async def _submit_together(
        self, requests: Sequence[TryOnRequest]
    ) -> Sequence[Receipt | Exception | None]:
        """None for a request that has to be submitted by itself."""
        admitted: list[GenerationSession | Exception] = []
        like: GenerationSession | None = None
        for request in requests:
            try:
                like = self._session(request, like)
                admitted.append(like)
            except AgeVerificationRequired as error:
                admitted.append(error)
        sessions = [one for one in admitted if isinstance(one, GenerationSession)]
        if not sessions:
            return [one for one in admitted if isinstance(one, Exception)]
        signup_credits = self._policy.signup.credits_of(requests[0].caller)
        decided = iter(await self._create_and_push(sessions, signup_credits))
        return [next(decided) if isinstance(one, GenerationSession) else one for one in admitted]

    async def _create_and_push(
        self, sessions: Sequence[GenerationSession], signup_credits: int
    ) -> Sequence[Receipt | Exception | None]:
        outcomes: Sequence[Receipt | Exception | None] | None = None
        created: list[Receipt] = []
        cause: Exception
        try:
            with self._deadline.running():
                outcomes = await self._sessions.create_many(
                    sessions, max_active=self._policy.max_active, signup_credits=signup_credits
                )
                created = [one for one in outcomes if isinstance(one, Receipt)]
                if not created:
                    return outcomes
                self._gate.pushing()
                await self._queue.push_many(
                    [GenerationTask.of(one.session, task_id=self._new_id()) for one in created]
                )
        except TimeoutError:
            cause = QueueUnavailable("The queue took too long")
            if outcomes is None:
                cause = DatabaseUnavailable("The database took too long")
        except Exception as error:  # noqa: BLE001 - answered for each request
            cause = error
            if created and isinstance(error, QueueUnavailable):
                self._gate.failed()
        else:
            self._gate.pushed()
            self._unconfirmed.update((one.session.id, None) for one in created)
            return outcomes
        if outcomes is None:
            return [cause] * len(sessions)
        return await self._undo_many(outcomes, cause)

    async def _undo_many(
        self, outcomes: Sequence[Receipt | Exception | None], cause: Exception
    ) -> Sequence[Receipt | Exception | None]:
        """Like ``_undo``, for each receipt among ``outcomes``."""
        ids = [one.session.id for one in outcomes if isinstance(one, Receipt)]
        undone: Collection[UUID] | None = None
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(self._policy.undo_deadline.total_seconds()):
                undone = await self._sessions.undo_many(ids, NOT_PUSHED)

        def answer(receipt: Receipt) -> Receipt | Exception:
            was_undone = None if undone is None else receipt.session.id in undone
            return _error_of_undo(receipt.session, cause, undone=was_undone) or receipt

        return [answer(one) if isinstance(one, Receipt) else one for one in outcomes]

    async def _create(self, session: GenerationSession, signup_credits: int) -> Receipt:
        if self._refusal() is not None:
            replay = await self._sessions.find_replay(session)
            if replay is not None:
                return replay
            await self._probe_queue()
            if refusal := self._refusal():
                raise refusal
        return await self._sessions.create(
            session, max_active=self._policy.max_active, signup_credits=signup_credits
        )

    async def _probe_queue(self) -> None:
        """While the queue does not answer, measure it again, for one submission at a time: so the
        next one is accepted as soon as the queue is back."""
        if not self._gate.may_answer_again or self._is_probing:
            return
        self._is_probing = True
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self.measure_queue()
        except (QueueUnavailable, TimeoutError):
            return
        finally:
            self._is_probing = False

    def _refusal(self) -> WearonError | None:
        """Why no credit may be taken at the moment."""
        if self.is_paused:
            return IntakePaused(_PAUSED)
        if not self._gate.is_open:
            return QueueUnavailable(UNAVAILABLE_MESSAGE, refused=True)
        if self._waiting >= self._policy.max_waiting:
            return Overloaded(_QUEUE_FULL)
        return None

    async def _until_confirmed(self, session: GenerationSession, receipt: Receipt) -> Receipt:
        """The receipt of a replay, once no undo can take its session away any more. Until then the
        first submitter may still undo it and free the key, so its answer must not be a 202.

        Waits for the caller's deadline at most. Raises ``Unconfirmed`` if the session was undone.
        """
        pause_seconds = _FIRST_LOOK_SECONDS
        while not self._stands(receipt.session):
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LOOK_SECONDS)
            if receipt.session.id in self._unconfirmed:
                continue
            with suppress(DatabaseUnavailable):
                found = await self._sessions.find_replay(session)
                if found is None or found.session.id != receipt.session.id:
                    raise Unconfirmed(_UNDONE)
                receipt = found
        return receipt

    def _stands(self, session: GenerationSession) -> bool:
        """Whether no undo can succeed any more: it needs a session that is queued and not
        confirmed, and its submitter undoes none that it pushed."""
        is_new = session.status is SessionStatus.QUEUED and not session.confirmed
        return not is_new or session.id in self._unconfirmed

    async def _undo(self, session: GenerationSession, cause: Exception) -> None:
        """Fail the session with its refund and raise; return if a worker has claimed it.

        The task may have reached the queue although the push failed here. The first write to the
        session decides: after ours, a claim finds a final session; after a worker's claim, the
        push did succeed.

        If the database does not answer either, recovery settles the session, unless this undo has
        an effect after all. If the queue certainly refused the task, no worker can claim it, so the
        refund is certain: raise. Otherwise a worker may still complete the session, and
        "unavailable" could become false, while "it will reach a final status" is true in any case:
        return. But if it has an idempotency key, the undo may have freed that: raise
        ``Unconfirmed``, so that the caller asks again.
        """
        undone: bool | None = None
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(self._policy.undo_deadline.total_seconds()):
                undone = await self._sessions.fail_queued(session.id, NOT_PUSHED, undo=True)
        if error := _error_of_undo(session, cause, undone=undone):
            raise error

    async def measure_queue(self) -> int:
        """Measure the queue, so that ``submit`` can reject requests while it is full or does not
        answer. Call it about once a second. ``submit`` waits for it only while the queue does not
        answer."""
        try:
            self._waiting = await self._queue.depth()
        except QueueUnavailable:
            self._waiting = 0
            self._gate.measured(answered=False)
            raise
        self._gate.measured(answered=True)
        return self._waiting

    async def confirm_pushed(self) -> int:
        """Record in the database which tasks reached the queue. Call it about once a second.

        Recovery pushes only confirmed sessions again if the queue loses them. It is not part of
        ``submit``: no request waits for it, and a claim confirms most sessions before it runs.
        """
        confirmed = 0
        while batch := list(islice(self._unconfirmed, CONFIRM_BATCH)):
            confirmed += await self._sessions.confirm(batch)
            for session_id in batch:
                self._unconfirmed.pop(session_id, None)
        return confirmed

    async def cancel(
        self, session_id: UUID, owner: Owner, *, shopper_id: str | None = None
    ) -> GenerationSession:
        """Fail a ``queued`` session with its refund. Of a ``processing`` one, record the request:
        its worker stops and fails it, unless its picture is already stored. Repeating it is safe.

        Returns the session as it is then. Raises ``NotFound``, and ``Conflict`` if it is final.
        """
        session = await self._reads.get(session_id, owner, shopper_id=shopper_id)
        cancelled = await self._sessions.cancel(session.id)
        if cancelled is None:
            raise Conflict("The session has ended: it cannot be cancelled any more")
        if cancelled.status.is_final:
            self._changes.publish(cancelled)
        else:
            self._announce_cancel(cancelled)
        return cancelled

    def _session(
        self, request: TryOnRequest, like: GenerationSession | None = None
    ) -> GenerationSession:
        """The session to create; ``like`` is another new one of the same caller, if there is one.
        Raises ``AgeVerificationRequired``."""
        age_rule = self._policy.age_rule(request.caller.owner.channel)
        if like is not None:
            return like.sibling(
                id=self._new_id(),
                request_id=request.request_id,
                input=_with_age(request.input, age_rule),
                idempotency_key=request.stored_key,
                traceparent=request.traceparent,
            )
        return GenerationSession(
            id=self._new_id(),
            owner=request.caller.owner,
            request_id=request.request_id,
            input=_with_age(request.input, age_rule),
            created_at=self._clock(),
            shopper=request.caller.shopper,
            idempotency_key=request.stored_key,
            traceparent=request.traceparent,
        )


def _error_of_undo(
    session: GenerationSession, cause: Exception, *, undone: bool | None
) -> Exception | None:
    """What to raise once an undo has failed the session (``undone``), has found it claimed, or has
    got no answer (None). None to answer the receipt."""
    refused = isinstance(cause, QueueUnavailable) and cause.refused
    if undone is None and session.idempotency_key is not None and not refused:
        error: Exception = Unconfirmed(_NOT_SETTLED)
    elif not (refused if undone is None else undone):
        return None
    elif isinstance(cause, QueueUnavailable):
        error = QueueUnavailable(UNAVAILABLE_MESSAGE, cause=cause.cause)
    else:
        return cause
    error.__cause__ = cause
    return error


def _no_exit(outcome: Receipt | BaseException) -> Receipt | Exception:
    """The outcome of a submission, unless it was cancelled by another one than its caller."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome
    return outcome


def _with_age(asked: GenerationInput, rule: AgeVerification) -> GenerationInput:
    """The input with what ``rule`` records of the age. Raises ``AgeVerificationRequired``."""
    recorded = rule.recorded(asked.age_verified)
    return asked if recorded is asked.age_verified else replace(asked, age_verified=recorded)
