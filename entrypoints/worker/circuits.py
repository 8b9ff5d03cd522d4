"""The circuits of one worker: the provider's, which is probed with a task, and the storage's, which
is probed without one. A budget that is spent counts as an open circuit of the provider's."""

import asyncio
from contextlib import closing

import structlog

from config.metrics import CIRCUIT_OPENINGS
from domain.budget import Budget
from domain.causes import Cause
from domain.circuit import Circuit, Opening, Permit
from domain.errors import StorageUnavailable
from domain.generation import Generation

log = structlog.get_logger(__name__)


class WorkerCircuits:
    """``first_seconds`` and the caps say for how long nothing is begun. ``budget`` is the day's, if
    there is one."""

    def __init__(
        self,
        *,
        first_seconds: float,
        cap_seconds: float,
        storage_cap_seconds: float,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget
        self._budget_logged: Cause | None = None
        self._provider = Circuit(
            first_seconds=first_seconds, cap_seconds=cap_seconds, clock=_loop_time
        )
        self._storage = Circuit(
            first_seconds=first_seconds, cap_seconds=storage_cap_seconds, clock=_loop_time
        )

    @property
    def opening(self) -> Opening | None:
        """Why this worker takes no task: the circuit that stays open for longest. None if all are
        closed. The time is the event loop's."""
        all_openings = (self._storage.opening, self._provider.opening, self._opening_of_budget())
        openings = [each for each in all_openings if each is not None]
        return max(openings, key=lambda opening: opening.until, default=None)

    def permit(self) -> Permit | None:
        """The permission to begin work with the provider."""
        return None if self.budget_is_spent else self._provider.permit()

    @property
    def budget_is_spent(self) -> bool:
        """Whether nothing more may be begun until the day ends. That is logged once a day."""
        if self._budget is None or (wait := self._budget.wait) is None:
            return False
        if self._budget_logged != (cause := self._budget.cause):
            self._budget_logged = cause
            log.error("budget_spent", cause=str(cause), seconds=round(wait.total_seconds()))
        return True

    def _opening_of_budget(self) -> Opening | None:
        if self._budget is None or (wait := self._budget.wait) is None:
            return None
        return Opening(_loop_time() + wait.total_seconds(), self._budget.cause)

    async def can_store(self, generation: Generation) -> bool:
        """Whether a picture could be stored: if not, nothing is taken or paid for."""
        permit = self._storage.permit()
        if permit is None:
            return False
        with closing(permit):
            try:
                await generation.check_storage()
            except StorageUnavailable as error:
                record_rejection(permit, error.cause)
                return False
            if permit.record_success():
                log.info("circuit_closed")
        return True

    def storage_failed(self, cause: Cause) -> None:
        """Open the storage's circuit, although its last check succeeded."""
        permit = self._storage.permit()
        if permit is not None:
            record_rejection(permit, cause)
            permit.close()


def record_rejection(permit: Permit, cause: Cause) -> None:
    """Record the rejection, and log why this worker takes no tasks, once for each opening."""
    log_opening(permit.record_rejection(cause), cause)


def log_opening(seconds: float | None, cause: Cause) -> None:
    """Log that a circuit opened, if it did."""
    if seconds is not None:
        CIRCUIT_OPENINGS.inc(cause.kind.value)
        log.error("circuit_opened", cause=str(cause), seconds=seconds)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
