"""The delivery of webhooks beside a worker's slots, and what of it is logged."""

import msgspec
import structlog

from config.metrics import WEBHOOKS
from domain.dispatch import Dispatcher, DispatchEvents
from domain.endpoints import DeliveryStatus, DisabledReason, Endpoint
from domain.errors import Unavailable
from domain.views import SessionView
from entrypoints.http.schemas import Session
from entrypoints.worker.stop import Stop

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""Between two looks for due deliveries: doubled while nothing is due."""

_encode = msgspec.json.Encoder().encode


def session_data(view: SessionView) -> bytes:
    """The session as its owner gets it from the API."""
    return _encode(Session.of(view))


class DispatchLog(DispatchEvents):
    """Never logs a URL's query or a secret."""

    def endpoint_disabled(self, endpoint: Endpoint, reason: DisabledReason) -> None:
        log.warning("webhook_disabled", reason=reason, **_names(endpoint))

    def endpoint_enabled(self, endpoint: Endpoint) -> None:
        log.info("webhook_enabled", **_names(endpoint))

    def turn_failed(self, endpoint: Endpoint, error: Exception) -> None:
        if isinstance(error, Unavailable):
            log.warning("webhooks_postponed", cause=str(error.cause), **_names(endpoint))
        else:
            log.error("webhook_turn_crashed", exc_info=error, **_names(endpoint))

    def attempt_recorded(self, status: DeliveryStatus) -> None:
        WEBHOOKS.inc(status.value)


def _names(endpoint: Endpoint) -> dict[str, str]:
    return {"endpoint_id": str(endpoint.id), "owner": str(endpoint.owner)}


class DispatchLoop:
    """Delivers what is due until a stop, then waits for the deliveries in flight."""

    def __init__(self, dispatcher: Dispatcher, *, stop: Stop) -> None:
        self._dispatcher = dispatcher
        self._stop = stop

    async def run(self) -> bool:
        with self._stop.interruptible():
            pause = LONGEST_PAUSE_SECONDS
            while not self._stop.has_begun:
                found = await self._begin()
                pause = FIRST_PAUSE_SECONDS if found else min(2 * pause, LONGEST_PAUSE_SECONDS)
                await self._dispatcher.pause(pause)
            await self._dispatcher.finish()
        return True

    async def run_once(self) -> bool:
        """Deliver what is due, once. Returns whether the database answered."""
        with self._stop.interruptible():
            try:
                await self._dispatcher.run_once()
            except Unavailable as error:
                log.warning("webhooks_postponed", cause=str(error.cause), reason=str(error))
                return False
        return True

    async def _begin(self) -> int:
        try:
            return await self._dispatcher.begin()
        except Unavailable as error:
            log.warning("webhooks_postponed", cause=str(error.cause), reason=str(error))
        except Exception:
            log.exception("webhooks_crashed")
        await self._stop.pause(LONGEST_PAUSE_SECONDS)
        return 0
