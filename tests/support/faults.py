"""The one way to make an adapter fail: ``over_network`` puts a network between an adapter and its
users. Here a test says what goes wrong (``Faults``); in the simulation, chance or a plan does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.auth.memory import InMemoryApiKeyRepo
from adapters.client_tokens.memory import InMemoryClientTokenRepo
from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_rows import Row
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from adapters.stores.memory import InMemoryStoreRepo
from domain.errors import (
    DatabaseUnavailable,
    IllegalTransition,
    QueueUnavailable,
    StorageUnavailable,
)
from domain.ports import CountEnded, count_nothing
from domain.tasks import GenerationTask, UnreadableTask

T = TypeVar("T")

Call = Callable[[str, partial[Awaitable[Any]]], Awaitable[Any]]
"""Makes one call: its method's name, and what has the effect and returns the reply."""


def over_network(adapter: T, call: Call) -> T:
    """``adapter`` as its users see it over a network: ``call`` makes each asynchronous call. All
    else is the adapter's own."""
    return cast("T", _Remote(adapter, call))


class _Remote:
    _adapter: object
    _call: Call

    def __init__(self, adapter: object, call: Call) -> None:
        vars(self).update(_adapter=adapter, _call=call)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._adapter, name)
        if not iscoroutinefunction(attribute):
            return attribute
        return lambda *args, **kwargs: self._call(name, partial(attribute, *args, **kwargs))

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._adapter, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._adapter, name)


class Faults:
    """What goes wrong, by the name of the method (``delete``), or by that and its first argument
    (``delete generated/1``).

    A call in ``away`` fails before it has an effect. One in ``deaf`` has its effect, and its reply
    is lost: the caller cannot tell the two apart, unless ``refused`` is another error. One in
    ``broken`` fails with an unexpected error. One in ``slow`` has its effect at once, and its
    reply comes this many seconds later. Every call lets other tasks run first, as on a network.
    """

    def __init__(
        self, lost: Callable[[str], Exception], refused: Callable[[str], Exception] | None = None
    ) -> None:
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.broken: set[str] = set()
        self.slow: dict[str, float] = {}
        self.calls: list[str] = []
        """The methods that were called, in order."""
        self._lost = lost
        self._refused = refused or lost

    async def call(self, method: str, effect: partial[Awaitable[T]]) -> T:
        """One call over the network."""
        names = {method, *(f"{method} {argument}" for argument in effect.args[:1])}
        self.calls.append(method)
        await asyncio.sleep(0)
        if names & self.away:
            raise self._refused(f"{method}: refused")
        if names & self.broken:
            raise RuntimeError(f"{method}: a bug")
        reply = await effect()
        if late := names & self.slow.keys():
            await asyncio.sleep(max(self.slow[name] for name in late))
        if names & self.deaf:
            raise self._lost(f"{method}: no reply")
        return reply

    def clear(self) -> None:
        """Everything works again."""
        for faults in (self.away, self.deaf, self.broken, self.slow):
            faults.clear()


class HasFaults(Protocol):
    """An adapter whose network is told by a test what goes wrong."""

    faults: Faults


F = TypeVar("F", bound=HasFaults)


def flaky(adapter: F) -> F:
    """``adapter`` over a network with its ``faults``."""
    return over_network(adapter, adapter.faults.call)


class FlakySessionRepo(InMemorySessionRepo):
    """Rejects every refund of a session in ``unsound``."""

    def __init__(
        self,
        *,
        accounts: InMemoryCreditRepo,
        clock: Callable[[], datetime],
        count_ended: CountEnded = count_nothing,
    ) -> None:
        super().__init__(accounts=accounts, clock=clock, count_ended=count_ended)
        self.faults = Faults(DatabaseUnavailable)
        self.unsound: set[UUID] = set()

    def _refund(self, row: Row) -> None:
        if row.session.id in self.unsound:
            raise IllegalTransition("its account is full")
        super()._refund(row)


class FlakyApiKeyRepo(InMemoryApiKeyRepo):
    def __init__(
        self, *, clock: Callable[[], datetime], stores: InMemoryStoreRepo, log: InMemoryAuditLog
    ) -> None:
        super().__init__(clock=clock, stores=stores, log=log)
        self.faults = Faults(DatabaseUnavailable)


class FlakyClientTokenRepo(InMemoryClientTokenRepo):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.faults = Faults(DatabaseUnavailable)


class FlakyPictureStorage(InMemoryPictureStorage):
    def __init__(self, *, signer: UrlSigner) -> None:
        super().__init__(signer=signer)
        self.faults = Faults(StorageUnavailable)


class FlakyTaskQueue(InMemoryTaskQueue):
    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        super().__init__(clock=clock)
        self.faults = Faults(QueueUnavailable, partial(QueueUnavailable, refused=True))
        self.pushed_next: list[int] = []
        """The size of each batch that was pushed before all others."""

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        await super().push_next(tasks)
        self.pushed_next.append(len(tasks))

    @property
    def buried(self) -> list[UnreadableTask]:
        """The dead-letter list, oldest first, as the messages that went into it."""
        return [
            UnreadableTask(raw=letter.raw, reason=letter.reason, session_id=letter.session_id)
            for letter in self.letters
        ]
