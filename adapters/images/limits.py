"""Bounds of downloading, decoding and generating pictures. They import no library, so that the
settings can take their defaults from here."""

from dataclasses import dataclass

from domain.uploads import UploadPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of one download.

    The response must begin within ``connect_timeout_seconds + grace_seconds`` of the request. After
    that it must end within ``grace_seconds`` or average ``min_bytes_per_second``: a slow-drip
    server cannot tie up a worker for the full timeout.
    """

    total_timeout_seconds: float = 15.0
    connect_timeout_seconds: float = 5.0
    grace_seconds: float = 3.0
    min_bytes_per_second: int = 10_000
    max_bytes: int = UploadPolicy().max_bytes
    max_redirects: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """Bounds of all inputs of one attempt. While any of them downloads, the time counts as part of
    ``seconds``; the time in our own processes does not. ``parallel`` also bounds how many are in
    memory before they are prepared."""

    seconds: float = 30.0
    parallel: int = 4


RESULT_LIMITS = FetchLimits(total_timeout_seconds=30, max_bytes=32_000_000)
"""For the download of a generated picture from its provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """``memory_bytes`` is the address space of each process; ``seconds`` bounds both the CPU time
    and the wall-clock time of each picture; ``max_waiting`` pictures may wait for a process."""

    processes: int = 2
    memory_bytes: int = 1_000_000_000
    seconds: float = 10.0
    max_waiting: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """Bounds of one call that returns a picture. The response begins only once the picture is
    made, so ``answer_seconds``, until its first byte, is nearly as long as ``total_seconds``."""

    connect_seconds: float = 10.0
    answer_seconds: float = 150.0
    total_seconds: float = 170.0
    max_bytes: int = 32_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """How long to wait for a provider's job, and between two polls of it. Pauses grow from
    ``first_pause_seconds`` to ``longest_pause_seconds``; each one is a random part of its length,
    between half of it and all of it."""

    total_seconds: float = 170.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 3.0
