"""Recovery at its interval: beside a worker's slots, or in a process of its own."""

from random import Random

import structlog

from config.metrics import count_recovered
from domain.errors import Unavailable
from domain.recovery import Recovery
from entrypoints.worker.stop import Stop

log = structlog.get_logger(__name__)


class RecoveryLoop:
    """Runs recovery about every ``interval_seconds``, until a stop."""

    def __init__(
        self, recovery: Recovery, *, interval_seconds: float, random: Random, stop: Stop
    ) -> None:
        self._recovery = recovery
        self._interval_seconds = interval_seconds
        self._random = random
        self._stop = stop

    async def run(self) -> bool:
        """Until the stop. Several processes do not keep step, because intervals differ a little."""
        while not self._stop.has_begun:
            await self.run_once()
            await self._stop.pause(self._interval_seconds * self._random.uniform(0.8, 1.2))
        return True

    async def run_once(self) -> bool:
        """Returns whether recovery did everything that was due."""
        try:
            with self._stop.interruptible():
                await self._recovery.run_once()
        except Unavailable as error:
            log.warning("recovery_postponed", cause=str(error.cause), reason=str(error))
            return False
        except Exception:
            log.exception("recovery_crashed")
            return False
        finally:
            self._report()
            for blocked in self._recovery.take_blocked():
                log.error(
                    "session_blocked",
                    session_id=blocked.id,
                    owner=blocked.owner,
                    problem=blocked.problem,
                )
        return True

    def _report(self) -> None:
        """Also of a run that failed midway."""
        report = self._recovery.take_report()
        if report.total:
            count_recovered(report)
            log.info("recovered", **report.counts())
