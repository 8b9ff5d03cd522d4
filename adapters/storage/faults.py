"""Translation of the storage's errors, and whether the storage can keep a picture now."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from obstore.exceptions import BaseError

from adapters.causes import detail_of, os_detail
from domain.causes import Cause, CauseKind
from domain.errors import StorageUnavailable

_STATUS = re.compile(r"status code: ([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_OS_ERROR = re.compile(r"os error ([0-9]{1,4})|\bcode: ([0-9]{1,4}),")
_TIMED_OUT = re.compile(r"timed ?out", re.IGNORECASE)
_CHECK_SECONDS = 10.0
_LEAST_BYTES = 4_096


@contextmanager
def faults_translated() -> Iterator[None]:
    """Raises ``StorageUnavailable``, with its cause, for every failure of the storage."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise unavailable(_detail(error)) from error


def unavailable(detail: str) -> StorageUnavailable:
    cause = Cause(CauseKind.STORAGE, detail)
    return StorageUnavailable("The picture storage does not answer", cause=cause)


def _detail(error: BaseException) -> str:
    """Of a cloud's error its status and code, of a disk's the system's words. obstore's own text
    has paths and addresses, and the service's has more than is ours to show."""
    if isinstance(error, OSError) and error.errno is not None:
        return detail_of(error)
    text = str(error)
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{status[1]} {code[1]}" if code else status[1]
    if number := _OS_ERROR.search(text):
        return os_detail(int(number[1] or number[2]))
    return "timeout" if _TIMED_OUT.search(text) else "no answer"


class Readiness:
    """Whether the storage can keep a picture. ``probe`` tries to keep as many bytes as it is told,
    and raises ``StorageUnavailable``.

    After a success, the storage counts as ready for ``seconds``, or until it fails in use. After a
    picture was not kept, the next check tries one as large.
    """

    def __init__(self, probe: Callable[[int], Awaitable[None]], *, seconds: float) -> None:
        self._probe = probe
        self._seconds = seconds
        self._ready_until = 0.0
        self._bytes = _LEAST_BYTES
        self._checking = asyncio.Lock()

    async def check(self) -> None:
        """Raises ``StorageUnavailable``. Concurrent checks share one probe's success."""
        if monotonic() < self._ready_until:
            return
        async with self._checking:
            if monotonic() < self._ready_until:
                return
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._probe(self._bytes)
            except TimeoutError as error:
                raise unavailable("timeout") from error
            self._ready_until = monotonic() + self._seconds
            self._bytes = _LEAST_BYTES

    @contextmanager
    def used(self, size: int = 0) -> Iterator[None]:
        """What runs in this block uses the storage, perhaps to keep a picture of this size."""
        try:
            yield
        except StorageUnavailable:
            self._ready_until = 0.0
            self._bytes = max(self._bytes, size)
            raise
