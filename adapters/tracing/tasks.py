"""Spans of the queue: one where tasks are sent, one where a task is worked on.

Both belong to the trace that the task names, so recovery's second push and another worker's second
attempt do too.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from opentelemetry.trace import SpanKind

from adapters.queue.payload import encode
from adapters.queue.redis import TASKS_KEY, RedisTaskQueue
from adapters.tracing import names
from adapters.tracing.spans import Spans, child_of, context_of
from domain.generation import Generation, Outcome
from domain.slots import FREE_SLOT, Slot
from domain.tasks import GenerationTask


class _Messages(list[bytes]):
    """Tasks as text, with what their spans say of them."""

    def __init__(self, tasks: Sequence[GenerationTask]) -> None:
        super().__init__(encode(task) for task in tasks)
        self.tasks = tasks


def traced_queue(spans: Spans) -> type[RedisTaskQueue]:
    """A queue with a span for each push."""

    class TracedTaskQueue(RedisTaskQueue):
        async def push(self, task: GenerationTask) -> None:
            await self._push(_Messages((task,)))

        async def push_many(self, tasks: Sequence[GenerationTask]) -> None:
            if tasks:
                await self._push(_Messages(tasks))

        async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
            with _sending(spans, tasks):
                await super().push_next(tasks)

        async def _run_push(self, calls: Sequence[Sequence[bytes]]) -> Sequence[None]:
            tasks = [task for call in calls if isinstance(call, _Messages) for task in call.tasks]
            with _sending(spans, tasks):
                return await super()._run_push(calls)

    return TracedTaskQueue


def _sending(spans: Spans, tasks: Sequence[GenerationTask]) -> "AbstractContextManager[object]":
    callers = [context_of(task.traceparent) for task in tasks if task.traceparent]
    return spans.shared(
        f"send {TASKS_KEY}", SpanKind.PRODUCER, _attributes("send", tasks), callers=callers
    )


def traced_generation(spans: Spans) -> type[Generation]:
    """A ``Generation`` with a span for each run. Its parent is the request of the task."""

    class TracedGeneration(Generation):
        async def run(self, task: GenerationTask, slot: Slot = FREE_SLOT) -> Outcome:
            with spans.span(
                f"process {TASKS_KEY}",
                SpanKind.CONSUMER,
                _attributes("process", (task,)),
                parent=child_of(task.traceparent),
            ) as span:
                outcome = await super().run(task, slot)
                span.set_attribute(names.OUTCOME, outcome)
            return outcome

    return TracedGeneration


def _attributes(operation: str, tasks: Sequence[GenerationTask]) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        names.MESSAGING_SYSTEM: names.REDIS,
        names.MESSAGING_DESTINATION_NAME: TASKS_KEY,
        names.MESSAGING_OPERATION_NAME: operation,
        names.MESSAGING_OPERATION_TYPE: operation,
    }
    if len(tasks) == 1:
        attributes |= _of_task(tasks)
    else:
        attributes[names.MESSAGING_BATCH_MESSAGE_COUNT] = len(tasks)
    return attributes


def _of_task(tasks: Iterable[GenerationTask]) -> dict[str, str]:
    (task,) = tasks
    return {
        names.MESSAGING_MESSAGE_ID: str(task.task_id),
        names.SESSION_ID: str(task.session_id),
        names.REQUEST_ID: task.request_id,
    }
