"""Mutants of the guards of webhooks: of the outbox, of its dispatchers and of their signatures."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from adapters.sessions import memory
from adapters.sessions.memory import InMemorySessionRepo
from adapters.webhooks.memory import InMemoryWebhookRepo
from domain import dispatch
from domain.dispatch import Dispatcher
from domain.endpoints import DeliveryStatus, Endpoint, Secrets, WebhookEvent
from domain.sessions import GenerationSession
from domain.webhook_ports import Due, Outcome, Turn, TurnResult
from tests.simulation.replacing import Mutant, instead


def any_turn_may_be_recorded() -> AbstractContextManager[None]:
    """No number of the turn in what ends it: one whose lease has ended changes a newer one."""
    settle = InMemoryWebhookRepo.settle

    async def unfenced(self: Any, result: TurnResult) -> bool:
        number = self._endpoints[result.endpoint_id].number
        return await settle(self, replace(result, number=number))

    return instead((InMemoryWebhookRepo, "settle", unfenced))


def messages_count_as_delivered_before_they_are_sent() -> AbstractContextManager[None]:
    """A process that dies between claim and send loses what it claimed."""
    claim = InMemoryWebhookRepo.claim

    async def marking(self: Any, **options: Any) -> list[Turn]:
        turns = await claim(self, **options)
        for turn in turns:
            for due in turn.due:
                self._finish(self._deliveries[due.id], DeliveryStatus.DELIVERED)
        return turns

    return instead((InMemoryWebhookRepo, "claim", marking))


def any_response_is_a_success() -> AbstractContextManager[None]:
    """What an endpoint answers with an error counts as delivered."""
    has_response = property(lambda self: self.attempt.status is not None)
    return instead((dispatch._Sent, "succeeded", has_response))


def _free_unless(ignored: str) -> AbstractContextManager[None]:
    """Endpoints are free whatever this field says."""
    is_free = InMemoryWebhookRepo._is_free

    def free(self: Any, row: Any) -> bool:
        is_leased = ignored == "leased_until"
        unleased = replace(row, leased_until=None) if is_leased else row
        endpoint = row.endpoint if is_leased else replace(row.endpoint, **{ignored: None})
        return is_free(self, replace(unleased, endpoint=endpoint))

    return instead((InMemoryWebhookRepo, "_is_free", free))


def leases_of_turns_are_ignored() -> AbstractContextManager[None]:
    """Two processes have turns at an endpoint at once."""
    return _free_unless("leased_until")


def pauses_are_ignored() -> AbstractContextManager[None]:
    """An endpoint that is dead, or asked for a pause, gets messages as if it were healthy."""
    return _free_unless("paused_until")


def disabled_endpoints_get_messages() -> AbstractContextManager[None]:
    """Also those that are gone, or whose owner disabled them."""
    return _free_unless("disabled_reason")


def leases_of_turns_never_end() -> AbstractContextManager[None]:
    """A process that dies keeps its endpoint."""

    def is_free(self: Any, row: Any) -> bool:
        found: bool = before(self, row)
        return found and row.leased_until is None

    before = InMemoryWebhookRepo._is_free
    return instead((InMemoryWebhookRepo, "_is_free", is_free))


def circuits_never_open() -> AbstractContextManager[None]:
    """An endpoint that fails is not paused."""
    return instead((Dispatcher, "_pause", lambda *_, **__: None))


def a_dead_endpoint_gets_its_whole_window() -> AbstractContextManager[None]:
    """More than one delivery is sent when a pause ends."""
    turn = InMemoryWebhookRepo._turn

    def whole(self: Any, row: Any, due: Any, window: int, lease: timedelta) -> Turn:
        paused_until = row.endpoint.paused_until
        row.endpoint, row.window = replace(row.endpoint, paused_until=None), max(2, row.window)
        begun = turn(self, row, due, window, lease)
        row.endpoint = replace(row.endpoint, paused_until=paused_until)
        return replace(begun, endpoint=row.endpoint)

    return instead((InMemoryWebhookRepo, "_turn", whole))


def retry_after_is_ignored() -> AbstractContextManager[None]:
    """An endpoint that asks for time gets none."""
    send = Dispatcher._send

    async def hasty(self: Any, *args: Any) -> Any:
        sent = await send(self, *args)
        return sent if isinstance(sent, Outcome) else replace(sent, retry_after=timedelta(0))

    return instead((Dispatcher, "_send", hasty))


def windows_are_not_bounded() -> AbstractContextManager[None]:
    """An endpoint that answers gets ever more messages at once. The window is bounded twice: by
    what a turn writes, and by what the next one asks for."""
    room = Dispatcher._room

    def wide(self: Dispatcher) -> tuple[int, int]:
        return room(self)[0], 1_000

    return instead((dispatch, "MAX_WINDOW", 1_000), (Dispatcher, "_room", wide))


def any_owner_is_told() -> AbstractContextManager[None]:
    """Deliveries are written for all endpoints, and say what they are told to say."""

    def tell(self: Any, _: Any, event: WebhookEvent, session_id: UUID | None) -> None:
        for row in self._endpoints.values():
            self._add(self._new_id(), row.endpoint.id, event, session_id)

    body = dispatch.Payloads.body

    async def of_anybody(
        self: Any, due: Due, endpoint: Endpoint, sessions: dict[UUID, GenerationSession]
    ) -> bytes | None:
        session = None if due.session_id is None else sessions.get(due.session_id)
        owner = endpoint.owner if session is None else session.owner
        return await body(self, due, replace(endpoint, owner=owner), sessions)

    return instead((InMemoryWebhookRepo, "_tell", tell), (dispatch.Payloads, "body", of_anybody))


def deliveries_are_written_for_any_owner() -> AbstractContextManager[None]:
    """The dispatcher finds that the session is another owner's, and gives the delivery up."""

    def tell(self: Any, _: Any, event: WebhookEvent, session_id: UUID | None) -> None:
        for row in self._endpoints.values():
            self._add(self._new_id(), row.endpoint.id, event, session_id)

    return instead((InMemoryWebhookRepo, "_tell", tell))


def external_ends_are_not_told() -> AbstractContextManager[None]:
    """Only our own writers tell of the end of a session."""
    overwrite = InMemorySessionRepo.overwrite

    def silently(self: Any, session_id: UUID, **changes: Any) -> None:
        ended, self.ended = self.ended, lambda _: None
        try:
            overwrite(self, session_id, **changes)
        finally:
            self.ended = ended

    return instead((InMemorySessionRepo, "overwrite", silently))


def undone_submissions_are_told() -> AbstractContextManager[None]:
    """An owner whose caller was told that there is no session hears of its end."""
    return instead((memory, "was_undone", lambda _: False))


def what_recovery_fails_is_not_told() -> AbstractContextManager[None]:
    """A session that was never confirmed, and perhaps accepted, ends without a word."""
    put = InMemorySessionRepo._put

    def hushed(self: Any, row: Any, session: GenerationSession) -> None:
        push_again_at, row.push_again_at = row.push_again_at, None
        put(self, row, session)
        row.push_again_at = push_again_at

    return instead((InMemorySessionRepo, "_put", hushed))


def low_credits_are_told_at_each_debit() -> AbstractContextManager[None]:
    """And not only when the balance falls below the threshold."""
    changed = InMemoryWebhookRepo.balance_changed

    def each(self: Any, owner: Any, *, before: int, after: int) -> None:
        threshold = self._thresholds.get(owner, 0)
        changed(self, owner, before=max(before, threshold) if after < before else 0, after=after)

    return instead((InMemoryWebhookRepo, "balance_changed", each))


def what_waits_at_a_disabled_endpoint_is_given_up() -> AbstractContextManager[None]:
    """Its deliveries are dropped when their time is over."""
    outcome = Dispatcher._outcome

    def spent(self: Any, sent: Any, *, keep: bool) -> Outcome:  # noqa: ARG001 - the guard
        return outcome(self, sent, keep=False)

    return instead((Dispatcher, "_outcome", spent))


def a_delivery_has_one_try() -> AbstractContextManager[None]:
    """It is given up at its first failure."""
    outcome = Dispatcher._outcome

    def only(self: Any, sent: Any, *, keep: bool) -> Outcome:
        found: Outcome = outcome(self, sent, keep=keep)
        is_pending = found.status is DeliveryStatus.PENDING
        return replace(found, status=DeliveryStatus.FAILED) if is_pending else found

    return instead((Dispatcher, "_outcome", only))


def a_rotation_drops_the_secret_before() -> AbstractContextManager[None]:
    """Receivers that have no new secret yet cannot verify."""
    return instead((Secrets, "at", lambda self, _: (self.current,)))


def the_secret_before_signs_forever() -> AbstractContextManager[None]:
    """A secret that leaked signs after its rotation."""

    def both(self: Secrets, _: datetime) -> tuple[str, ...]:
        return (self.current, self.previous) if self.previous else (self.current,)

    return instead((Secrets, "at", both))


def the_new_secret_does_not_sign() -> AbstractContextManager[None]:
    """Receivers with the new secret cannot verify before the one before has ended."""
    at = Secrets.at
    return instead((Secrets, "at", lambda self, now: at(self, now)[-1:]))


def each_try_has_its_own_id() -> AbstractContextManager[None]:
    """Receivers cannot tell that a message comes once more."""
    send = Dispatcher._send

    async def renamed(self: Any, turn: Turn, due: Due, *rest: Any) -> Any:
        other = UUID(int=due.id.int ^ due.failed_attempts)
        sent = await send(self, turn, replace(due, id=other), *rest)
        return replace(sent, due=due) if isinstance(sent, dispatch._Sent) else sent

    return instead((Dispatcher, "_send", renamed))


WEBHOOK_MUTANTS: Sequence[Mutant] = (
    any_turn_may_be_recorded,
    messages_count_as_delivered_before_they_are_sent,
    any_response_is_a_success,
    leases_of_turns_are_ignored,
    leases_of_turns_never_end,
    pauses_are_ignored,
    disabled_endpoints_get_messages,
    circuits_never_open,
    a_dead_endpoint_gets_its_whole_window,
    retry_after_is_ignored,
    windows_are_not_bounded,
    any_owner_is_told,
    deliveries_are_written_for_any_owner,
    external_ends_are_not_told,
    undone_submissions_are_told,
    what_recovery_fails_is_not_told,
    low_credits_are_told_at_each_debit,
    what_waits_at_a_disabled_endpoint_is_given_up,
    a_delivery_has_one_try,
    a_rotation_drops_the_secret_before,
    the_secret_before_signs_forever,
    the_new_secret_does_not_sign,
    each_try_has_its_own_id,
)
