"""Response bodies of the probes."""

from typing import Literal

from msgspec import Struct

from entrypoints.http.schemas import ErrorBody


class Alive(Struct, frozen=True):
    """The process is alive."""

    status: Literal["ok"]


class AliveEnvelope(Struct, frozen=True, kw_only=True):
    """Response of the liveness probe."""

    data: Alive
    error: None


DependencyState = Literal["ok", "unavailable"]


class ReadyEnvelope(Struct, frozen=True, kw_only=True):
    """Response of the readiness probe: the state of each dependency."""

    data: dict[str, DependencyState]
    error: None


class NotReadyEnvelope(Struct, frozen=True, kw_only=True):
    """Response of a failed readiness probe: the only error that also has data."""

    data: dict[str, DependencyState]
    error: ErrorBody
