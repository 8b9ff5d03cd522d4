"""The task in the queue. Its JSON form is a contract with consumers in any language."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from domain.credits import Owner
from domain.errors import InvalidTask
from domain.sessions import GenerationSession

TASK_PAYLOAD_VERSION = 1
"""The version that we write, and the highest version that we read."""


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """An invitation to work on a session. Only a claim gives the permission.

    ``created_at`` is always the session's, even if recovery pushes the task again: recovery
    compares it with the age of queued sessions to find lost tasks. ``traceparent`` is the trace of
    the creating request; None if the producer gave none.
    """

    task_id: UUID
    owner: Owner
    session_id: UUID
    image_urls: tuple[str, ...]
    prompt: str
    request_id: str
    created_at: datetime
    traceparent: str | None = None
    version: int = TASK_PAYLOAD_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.version <= TASK_PAYLOAD_VERSION:
            raise InvalidTask(
                f"version {self.version} is not supported by this consumer "
                f"(1 to {TASK_PAYLOAD_VERSION})"
            )
        if not self.image_urls:
            raise InvalidTask("image_urls is empty")

    @classmethod
    def of(cls, session: GenerationSession, *, task_id: UUID) -> "GenerationTask":
        """A new task for ``session``. It is valid, and all fields are set at once: each submission
        makes one, and the constructor takes three times as long."""
        task = object.__new__(cls)
        vars(task).update(
            task_id=task_id,
            owner=session.owner,
            session_id=session.id,
            image_urls=session.input.image_urls,
            prompt=session.input.prompt,
            request_id=session.request_id,
            created_at=session.created_at,
            traceparent=session.trace,
            version=TASK_PAYLOAD_VERSION,
        )
        return task


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableTask:
    """A message in the queue that breaks the contract: its raw text, the reason, and the id of the
    session that it names, if any."""

    raw: bytes
    reason: str
    session_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was moved out of the queue for good: its raw text, the reason, and the id of
    the session that it names, if any.

    Of a huge message only the beginning is kept: ``size`` is the number of bytes it had.
    """

    id: UUID
    raw: bytes
    reason: str
    session_id: UUID | None
    buried_at: datetime
    size: int

    @property
    def is_truncated(self) -> bool:
        return self.size > len(self.raw)
