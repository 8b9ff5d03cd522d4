"""A circuit breaker: stops work from beginning while a dependency rejects all of it."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from domain.causes import Cause


class Opening(NamedTuple):
    """What opened a circuit last, and until when nothing begins. After that, a probe may."""

    until: float
    cause: Cause


class Permit:
    """The permission to begin one piece of work. Record how the work ended, and ``close`` it."""

    def __init__(self, circuit: "Circuit", *, is_probe: bool) -> None:
        self._circuit = circuit
        self._is_probe = is_probe

    @property
    def is_valid(self) -> bool:
        """False once the circuit has opened meanwhile: then the work must not begin."""
        return self._is_probe or self._circuit.is_closed

    def record_success(self) -> bool:
        """The work succeeded. Returns whether that closed the circuit: a probe's success does."""
        self._circuit._failing.clear()
        if self._is_probe:
            self._circuit._close()
        return self._is_probe

    def record_rejection(self, cause: Cause) -> float | None:
        """The work was rejected, as any other would be. Returns for how many seconds that opened
        the circuit; None if the circuit was open already."""
        if not self._is_probe and not self._circuit.is_closed:
            return None
        return self._circuit._open(self._circuit._cap_seconds, cause)

    def record_failure(self, key: Hashable, cause: Cause) -> float | None:
        """The work failed for a reason that may be temporary; ``key`` says which work it was.
        Returns what ``record_rejection`` does."""
        circuit = self._circuit
        if circuit.is_closed:
            circuit._failing.add(key)
            if len(circuit._failing) < circuit._failures:
                return None
        elif not self._is_probe:
            return None
        return circuit._open(min(circuit._failure_cap_seconds, circuit._cap_seconds), cause)

    def close(self) -> None:
        """Nothing more begins with this permit. After a probe without a result, another probe may
        begin."""
        if self._is_probe:
            self._circuit._probing = False


class Circuit:
    """``closed -> open -> half-open -> closed | open``; one per process, in memory.

    Closed: any work may begin. The first rejection opens the circuit, and no work may begin for
    ``first_seconds``. So do temporary failures of ``failures`` different pieces of work without a
    success in between. Then it is half-open: one piece of work at a time may begin, as a probe. A
    probe's success closes the circuit. A probe's rejection or failure opens it for twice as long as
    before, up to ``cap_seconds`` or ``failure_cap_seconds``: a rejection waits for an operator, a
    failure ends by itself. ``clock`` returns seconds and never goes back.
    """

    def __init__(
        self,
        *,
        first_seconds: float,
        cap_seconds: float,
        failure_cap_seconds: float = 30.0,
        failures: int = 5,
        clock: Callable[[], float],
    ) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._failure_cap_seconds = failure_cap_seconds
        self._failures = failures
        self._failing: set[Hashable] = set()
        self._clock = clock
        self._openings = 0
        self._open_until = 0.0
        self._cause: Cause | None = None
        self._probing = False

    @property
    def is_closed(self) -> bool:
        return self._openings == 0

    @property
    def opening(self) -> Opening | None:
        """Why the circuit is open or half-open; None while it is closed."""
        return None if self._cause is None else Opening(self._open_until, self._cause)

    def permit(self) -> Permit | None:
        """A permit to begin something now; None if nothing may begin."""
        if self.is_closed:
            return Permit(self, is_probe=False)
        if self._probing or self._clock() < self._open_until:
            return None
        self._probing = True
        return Permit(self, is_probe=True)

    def _open(self, cap_seconds: float, cause: Cause) -> float:
        doubled = self._first_seconds * 2.0 ** min(self._openings, 32)
        seconds = min(cap_seconds, doubled)
        self._failing.clear()
        self._openings += 1
        self._open_until = self._clock() + seconds
        self._cause = cause
        return seconds

    def _close(self) -> None:
        self._openings = 0
        self._cause = None
