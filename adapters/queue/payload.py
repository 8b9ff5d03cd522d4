"""The task's JSON form: the contract with consumers in any language."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.credits import Channel, Owner
from domain.errors import WearonError
from domain.tasks import TASK_PAYLOAD_VERSION, GenerationTask, UnreadableTask
from domain.traces import accepted

MAX_REASON_LENGTH = 500
MAX_DEAD = 10_000
"""The size limit of the dead-letter list."""
MAX_LETTER_BYTES = 65_536
"""The size limit of a dead letter's text. Our longest task is shorter."""


class _Payload(msgspec.Struct, kw_only=True):
    """The fields in the order of the contract's table. Unknown keys are ignored, ``version`` may
    be missing, and the owner key that does not apply is omitted; when reading, it may be null."""

    task_id: UUID
    channel: Channel
    store_id: str | UnsetType | None = UNSET
    user_id: str | UnsetType | None = UNSET
    session_id: UUID
    image_urls: tuple[str, ...]
    prompt: str
    request_id: str
    version: Annotated[int, Meta(ge=1)] = 1
    created_at: Annotated[datetime, Meta(tz=True)]
    traceparent: Any = UNSET

    def trace(self) -> str | None:
        """An invalid one is no reason to reject the task."""
        return accepted(self.traceparent) if isinstance(self.traceparent, str) else None

    def owner_id(self) -> str:
        owner_id = self.store_id if self.channel is Channel.B2B else self.user_id
        if not isinstance(owner_id, str):
            raise msgspec.ValidationError(f"the owner of channel {self.channel} is missing")
        return owner_id


class _Envelope(msgspec.Struct):
    """The fields worth reading from a message that is not a valid task."""

    session_id: Any = None
    version: Any = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Payload)
_envelope_decoder = msgspec.json.Decoder(_Envelope)
_UNREADABLE = (msgspec.MsgspecError, WearonError, UnicodeDecodeError, RecursionError)


def encode(task: GenerationTask) -> bytes:
    """The JSON text of ``task``, in UTF-8."""
    is_store = task.owner.channel is Channel.B2B
    return _encoder.encode(
        _Payload(
            task_id=task.task_id,
            channel=task.owner.channel,
            store_id=task.owner.id if is_store else UNSET,
            user_id=UNSET if is_store else task.owner.id,
            session_id=task.session_id,
            image_urls=task.image_urls,
            prompt=task.prompt,
            request_id=task.request_id,
            version=task.version,
            created_at=task.created_at,
            traceparent=UNSET if task.traceparent is None else task.traceparent,
        )
    )


def decode(message: bytes | str) -> GenerationTask | UnreadableTask:
    """The task in ``message``, or the reason why it breaks the contract. Never raises."""
    try:
        payload = _decoder.decode(message)
        return GenerationTask(
            task_id=payload.task_id,
            owner=Owner(channel=payload.channel, id=payload.owner_id()),
            session_id=payload.session_id,
            image_urls=payload.image_urls,
            prompt=payload.prompt,
            request_id=payload.request_id,
            version=payload.version,
            created_at=payload.created_at,
            traceparent=payload.trace(),
        )
    except _UNREADABLE as error:
        return _unreadable(message, str(error))


def _unreadable(message: bytes | str, problem: str) -> UnreadableTask:
    try:
        envelope = _envelope_decoder.decode(message)
    except _UNREADABLE:
        envelope = _Envelope()
    if isinstance(envelope.version, int) and envelope.version > TASK_PAYLOAD_VERSION:
        problem = f"version {envelope.version} is newer than ours, {TASK_PAYLOAD_VERSION}"
    return UnreadableTask(
        raw=message.encode() if isinstance(message, str) else message,
        reason=problem[:MAX_REASON_LENGTH],
        session_id=_uuid(envelope.session_id),
    )


def _uuid(value: object) -> UUID | None:
    try:
        return msgspec.convert(value, UUID)
    except msgspec.ValidationError:
        return None
