"""The processes that decode strangers' pictures, so that no picture can harm the worker.

Not those of ``concurrent.futures``: there one that dies takes everybody's work with it, one that
hangs cannot be ended, what they answer is unpickled, and they know our environment with all its
secrets. These get bytes, give bytes, and know nothing.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from adapters.images.limits import PoolLimits
from adapters.images.preparation import LENGTH, PREPARED, READY, REFUSED
from domain.errors import Refused, TryAgain
from domain.ports import Picture
from domain.sessions import ErrorCode

_PROGRAM = (sys.executable, "-I", "-m", "adapters.images.preparation")
_START_TRIES = 3
_START_SECONDS = 10.0
_MAX_ANSWER_BYTES = 8_000_000


class PicturePool:
    """Prepares pictures, one at a time in each process. Processes start when they are needed.

    One that dies, hangs or takes too much ends with its own picture, and the next picture gets a
    new one. Where a process is short of something is the picture's fault, as far as we can know.
    """

    def __init__(self, limits: PoolLimits, *, program: Sequence[str] = _PROGRAM) -> None:
        self._limits = limits
        self._program = program
        self._free = asyncio.Semaphore(limits.processes)
        self._idle: list[Process] = []
        self._waiting = 0

    async def prepare(self, data: bytes) -> Picture:
        """A still JPEG as ``prepare_picture`` makes it.

        Raises ``Refused`` for what cannot be used, ``TryAgain`` when there is no process.
        """
        if self._waiting >= self._limits.max_waiting:
            raise _try_again()
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._prepare(data)
        finally:
            self._free.release()

    async def close(self) -> None:
        """End the processes; to be called when no picture is being prepared."""
        while self._idle:
            await _end(self._idle.pop())

    async def _prepare(self, data: bytes) -> Picture:
        process = self._rested() or await self._started()
        try:
            async with _ended_on_error(process), asyncio.timeout(self._limits.seconds):
                kind, answer = await _ask(process, data)
        except (OSError, EOFError) as error:  # A timeout is an OSError.
            raise _refused("A picture cannot be decoded") from error
        self._idle.append(process)
        if kind == REFUSED:
            raise _refused(answer.decode())
        return Picture(data=answer, media_type="image/jpeg")

    def _rested(self) -> Process | None:
        """A process that waits for work; those that died meanwhile are forgotten."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return None

    async def _started(self) -> Process:
        """A signal to the worker's group, such as the one to stop, may end a process that has only
        just been forked and cannot ignore it yet: the next one gets none."""
        for tries_left in reversed(range(_START_TRIES)):
            try:
                return await self._start()
            except EOFError as error:
                if not tries_left:
                    raise _try_again() from error
            except OSError as error:
                raise _try_again() from error
        raise _try_again()

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
        async with _ended_on_error(process), asyncio.timeout(_START_SECONDS):
            await _pipes(process)[1].readexactly(len(READY))
        return process


async def _ask(process: Process, data: bytes) -> tuple[bytes, bytes]:
    """What sort of answer it is, and the answer. Raises ``OSError`` or ``EOFError`` without one."""
    writer, reader = _pipes(process)
    writer.writelines((LENGTH.pack(len(data)), data))
    await writer.drain()
    kind = await reader.readexactly(1)
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if kind not in {PREPARED, REFUSED} or length > _MAX_ANSWER_BYTES:
        raise EOFError("not an answer")
    return kind, await reader.readexactly(length)


def _pipes(process: Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("A process was started without pipes")
    return process.stdin, process.stdout


@asynccontextmanager
async def _ended_on_error(process: Process) -> AsyncIterator[None]:
    """Also when cancelled: nobody would take its answer, and the next picture would get it."""
    try:
        yield
    except BaseException:
        await _end(process)
        raise


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    # Not ``wait``, which leaves a pipe open that is full of what nobody reads.
    await process.communicate()


def _refused(message: str) -> Refused:
    return Refused(message, code=ErrorCode.INVALID_IMAGE)


def _try_again() -> TryAgain:
    return TryAgain("Pictures cannot be prepared at the moment")
