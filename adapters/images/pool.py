"""A pool of processes that decode untrusted pictures, so that no picture can harm the worker.

Why not ``concurrent.futures``: there, one dead process breaks the whole pool, a hanging process
cannot be killed, results are unpickled, and the processes inherit our environment with its secrets.
Here a process receives bytes, returns bytes, and has an empty environment.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager, suppress

from adapters.causes import detail_of
from adapters.images.limits import PoolLimits
from adapters.images.preparation import LENGTH, PREPARED, READY, REFUSED
from adapters.images.turns import Turns
from domain.causes import Cause, CauseKind
from domain.errors import Refused, WorkerExhausted
from domain.picture_ports import Picture
from domain.sessions import ErrorCode

_PROGRAM = (sys.executable, "-I", "-m", "adapters.images.preparation")
_MAX_START_ATTEMPTS = 3
_START_SECONDS = 10.0
_MAX_RESULT_BYTES = 8_000_000


class PicturePool:
    """Prepares pictures, one at a time per process. Processes start when they are needed.

    A process that dies, hangs or exceeds its limits fails only its own picture; the next picture
    gets a new process. The pool cannot tell why a process ran out of a resource, so it blames the
    picture.
    """

    def __init__(self, limits: PoolLimits, *, program: Sequence[str] = _PROGRAM) -> None:
        self._limits = limits
        self._program = program
        self._turns = Turns(limits.processes)
        self._idle: list[Process] = []

    async def prepare(self, data: bytes, owner: Hashable = None) -> Picture:
        """The picture as a plain JPEG (see ``prepare_picture``). Owners take turns, so that one
        with many slow pictures holds up no other for longer than a picture.

        Raises ``Refused`` for an unusable picture, and ``WorkerExhausted`` if no
        process is available.
        """
        if self._turns.waiting >= self._limits.max_waiting:
            raise _no_process()
        async with self._turns.place(owner):
            return await self._prepare(data)

    async def close(self) -> None:
        """Kill the processes. Call it when no picture is being prepared."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _prepare(self, data: bytes) -> Picture:
        process = self._idle_process() or await self._start_with_retries()
        try:
            async with _killed_on_error(process), asyncio.timeout(self._limits.seconds):
                kind, result = await _exchange(process, data)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError.
            raise _invalid_image("A picture cannot be decoded") from error
        self._idle.append(process)
        if kind == REFUSED:
            raise _invalid_image(result.decode())
        return Picture(data=result, media_type="image/jpeg")

    def _idle_process(self) -> Process | None:
        """Drops processes that died while idle."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return None

    async def _start_with_retries(self) -> Process:
        """A signal to the worker's process group, such as SIGTERM, can kill a process between its
        fork and the moment at which it ignores signals. The next process does not get the signal.
        """
        for attempts_left in reversed(range(_MAX_START_ATTEMPTS)):
            try:
                return await self._start()
            except EOFError as error:
                if not attempts_left:
                    raise _no_process() from error
            except OSError as error:
                raise _no_process(detail_of(error)) from error
        raise _no_process()

    async def _start(self) -> Process:
        limits = (str(self._limits.memory_bytes), str(self._limits.seconds))
        process = await asyncio.create_subprocess_exec(
            *self._program,
            *limits,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
            start_new_session=True,
        )
        async with _killed_on_error(process), asyncio.timeout(_START_SECONDS):
            await _pipes(process)[1].readexactly(len(READY))
        return process


async def _exchange(process: Process, data: bytes) -> tuple[bytes, bytes]:
    """Send a picture; returns the kind of the result and the result. Raises ``OSError`` or
    ``EOFError`` if there is no valid result."""
    writer, reader = _pipes(process)
    writer.writelines((LENGTH.pack(len(data)), data))
    await writer.drain()
    kind = await reader.readexactly(1)
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if kind not in {PREPARED, REFUSED} or length > _MAX_RESULT_BYTES:
        raise EOFError("not a result")
    return kind, await reader.readexactly(length)


def _pipes(process: Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("A process was started without pipes")
    return process.stdin, process.stdout


@asynccontextmanager
async def _killed_on_error(process: Process) -> AsyncIterator[None]:
    """Also on cancellation: otherwise the next picture would get the unread result."""
    try:
        yield
    except BaseException:
        await _kill(process)
        raise


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    # Not ``wait``, which would leave a pipe with unread data open.
    await process.communicate()


def _invalid_image(message: str) -> Refused:
    return Refused(message, code=ErrorCode.INVALID_IMAGE)


def _no_process(detail: str = "no process") -> WorkerExhausted:
    cause = Cause(CauseKind.DECODING, detail)
    return WorkerExhausted("Pictures cannot be prepared at the moment", cause=cause)
