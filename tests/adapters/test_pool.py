"""The pool with real processes: a picture can break its own process and nothing else."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from io import BytesIO

import pytest
from PIL import Image

from adapters.images.limits import PoolLimits
from adapters.images.pool import PicturePool
from domain.errors import Refused, WorkerExhausted
from domain.picture_ports import Picture
from domain.sessions import ErrorCode
from tests.adapters.hostile import ACCEPTED, REFUSED, black
from tests.support.images import encoded
from tests.support.processes import children, is_alive

pytestmark = pytest.mark.anyio

GOOD = encoded("PNG", color="teal")

_PROGRAM = """
    import os, signal, time
    from adapters.images.preparation import serve

    def prepare(data):
        if data == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hang":
            time.sleep(1_000)
        if data == b"stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if data == b"allocate":
            blocks = []
            while True:
                blocks.append(bytearray(1_000_000))
        if data == b"crash":
            raise KeyError
        if data == b"describe":
            return repr((os.getpid(), dict(os.environ))).encode()
        if data == b"write":
            os.write(os.memfd_create("file"), b"x")
        if data == b"flood":
            os.write(1, bytes(10_000_000))
        if data == b"lie":
            os.write(1, b"p" + bytes([255] * 4))
        {spin}
        return data[::-1]

    {begin}
    serve(prepare)
"""
"""A process that does what the picture says, or returns it reversed."""

NewPool = Callable[..., PicturePool]


@pytest.fixture
async def new_pool() -> AsyncIterator[NewPool]:
    """Makes pools of such processes; closes them."""
    made: list[PicturePool] = []

    def make(limits: PoolLimits, *, spin: str = "", begin: str = "") -> PicturePool:
        code = textwrap.dedent(_PROGRAM).format(spin=spin, begin=begin)
        made.append(PicturePool(limits, program=(sys.executable, "-I", "-c", code)))
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


@pytest.fixture
async def real_pool() -> AsyncIterator[PicturePool]:
    pool = PicturePool(PoolLimits(processes=2))
    yield pool
    await pool.close()


async def refusal_of(pool: PicturePool, data: bytes) -> Refused:
    with pytest.raises(Refused) as refusal:
        await pool.prepare(data)
    return refusal.value


async def pid_of(pool: PicturePool) -> int:
    """The process that prepares the next picture."""
    return int(eval((await pool.prepare(b"describe")).data)[0])  # noqa: S307 - written above


async def test_picture_becomes_a_jpeg(real_pool: PicturePool) -> None:
    picture = await real_pool.prepare(GOOD)

    assert picture.media_type == "image/jpeg"
    assert Image.open(BytesIO(picture.data)).format == "JPEG"


async def test_hostile_pictures_do_not_disturb_others(real_pool: PicturePool) -> None:
    """All at once, among valid pictures: each is refused as an ``INVALID_IMAGE``, and the valid
    pictures are prepared."""
    hostile = [real_pool.prepare(data) for data in REFUSED.values()]
    good = [real_pool.prepare(data) for data in [*ACCEPTED.values(), GOOD]]

    refused = await asyncio.gather(*hostile, return_exceptions=True)
    prepared = await asyncio.gather(*good)

    for name, refusal in zip(REFUSED, refused, strict=True):
        assert isinstance(refusal, Refused), name
        assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert all(picture.media_type == "image/jpeg" for picture in prepared)


@pytest.mark.parametrize("deed", ["die", "hang", "stop", "allocate", "crash", "write", "lie"])
async def test_lost_process_fails_only_its_own_picture(new_pool: NewPool, deed: str) -> None:
    """Its picture is an ``INVALID_IMAGE``, the picture beside it is prepared, and a new process
    replaces it."""
    pool = new_pool(PoolLimits(processes=2, memory_bytes=300_000_000, seconds=1))
    before = await pid_of(pool)

    refusal, neighbour = await asyncio.gather(
        refusal_of(pool, deed.encode()), pool.prepare(b"beside")
    )

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert neighbour == Picture(data=b"ediseb", media_type="image/jpeg")
    assert not is_alive(before)
    after = await asyncio.gather(pool.prepare(b"one"), pool.prepare(b"two"))
    assert [picture.data for picture in after] == [b"eno", b"owt"]


async def test_cpu_time_is_limited_by_the_kernel(new_pool: NewPool) -> None:
    """Each picture gets ``seconds`` of CPU time of its own, and is then killed by the kernel, even
    before the pool's own timeout."""
    pool = new_pool(
        PoolLimits(processes=1, seconds=60),
        spin="end = time.process_time() + (0.7 if data == b'some' else 1_000 * (data == b'much'))\n"
        "    while time.process_time() < end: pass",
        begin="import sys; sys.argv[2] = '1'",
    )
    before = await pid_of(pool)

    for _ in range(3):
        assert (await pool.prepare(b"some")).data == b"emos"
    assert await pid_of(pool) == before
    async with asyncio.timeout(30):
        refusal = await refusal_of(pool, b"much")

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert await pid_of(pool) != before


async def test_memory_is_limited_by_the_kernel() -> None:
    """A picture that needs more than ``memory_bytes`` is refused, and the next one is prepared."""
    pool = PicturePool(PoolLimits(processes=1, memory_bytes=100_000_000))
    roomy = PicturePool(PoolLimits(processes=1))
    large = encoded("WEBP", size=(5_000, 4_000))

    refusal = await refusal_of(pool, large)
    prepared = await roomy.prepare(large)
    small = await pool.prepare(GOOD)
    await pool.close()
    await roomy.close()

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert prepared.media_type == small.media_type == "image/jpeg"


async def test_excess_output_is_not_the_next_result(new_pool: NewPool) -> None:
    """Output that a process writes without being asked is never the result of another picture."""
    pool = new_pool(PoolLimits(processes=1))

    await refusal_of(pool, b"flood")

    assert (await pool.prepare(b"next")).data == b"txen"


async def test_process_that_died_idle_fails_no_picture(new_pool: NewPool) -> None:
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(10):
        await pool._idle[0].wait()

    assert await pid_of(pool) != before


async def test_processes_are_limited_and_reused(new_pool: NewPool) -> None:
    """Any number of concurrent pictures is prepared by ``processes`` processes."""
    pool = new_pool(PoolLimits(processes=2), spin="time.sleep(0.05)")

    pids = await asyncio.gather(*(pid_of(pool) for _ in range(10)))

    assert len(set(pids)) == 2


async def test_waiting_pictures_are_limited(new_pool: NewPool) -> None:
    """A picture beyond ``max_waiting`` is rejected with a transient error, and takes no place."""
    pool = new_pool(PoolLimits(processes=1, max_waiting=1), spin="time.sleep(0.05)")

    first, second, third = await asyncio.gather(
        pool.prepare(b"1"), pool.prepare(b"2"), pool.prepare(b"3"), return_exceptions=True
    )

    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert isinstance(third, WorkerExhausted)
    assert (await pool.prepare(b"4")).data == b"4"


async def test_processes_do_not_inherit_the_environment(
    new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that takes over its process finds no secrets there."""
    monkeypatch.setenv("WEARON_JWT_SECRET", "secret")
    pool = new_pool(PoolLimits(processes=1))

    assert b"secret" not in (await pool.prepare(b"describe")).data


async def test_cancelled_picture_leaves_no_result_behind(new_pool: NewPool) -> None:
    """Its process is killed, and its place is free at once."""
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)
    cancelled = asyncio.create_task(pool.prepare(b"hang"))
    await asyncio.sleep(0)

    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)

    assert cancelled.cancelled()
    assert not is_alive(before)
    assert (await pool.prepare(b"next")).data == b"txen"


@pytest.mark.parametrize("begin", ["raise SystemExit", "import os; os.kill(os.getpid(), 9)"])
async def test_failed_start_is_a_transient_error(new_pool: NewPool, begin: str) -> None:
    """It is not the picture's fault."""
    pool = new_pool(PoolLimits(processes=1), begin=begin)

    for _ in range(2):
        with pytest.raises(WorkerExhausted):
            await pool.prepare(GOOD)


async def test_missing_program_is_a_transient_error() -> None:
    with pytest.raises(WorkerExhausted):
        await PicturePool(PoolLimits(), program=("/nowhere",)).prepare(GOOD)


async def test_processes_ignore_sigterm_and_sigint(new_pool: NewPool) -> None:
    """A signal to the process group is for the worker, which drains its tasks first."""
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)

    os.kill(before, signal.SIGTERM)
    os.kill(before, signal.SIGINT)

    assert await pid_of(pool) == before


async def test_close_kills_the_processes(new_pool: NewPool) -> None:
    """Closing twice does no harm."""
    pool = new_pool(PoolLimits(processes=2))
    pids = [await pid_of(pool), await pid_of(pool)]

    await pool.close()
    await pool.close()

    assert not any(is_alive(pid) for pid in pids)


async def test_processes_end_with_the_worker() -> None:
    """A killed worker cannot close its pool; the processes exit at the end of their input."""
    code = textwrap.dedent(f"""
        import asyncio
        from adapters.images.pool import PicturePool
        from adapters.images.limits import PoolLimits

        async def main():
            pool = PicturePool(PoolLimits(processes=1))
            await pool.prepare({black(32, 32)!r})
            print("prepared", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    await worker.stdout.readline()
    (pid,) = children(worker.pid)

    worker.kill()
    await worker.communicate()

    async with asyncio.timeout(10):
        while is_alive(pid):  # noqa: ASYNC110 - nothing reports the end of a grandchild
            await asyncio.sleep(0.01)
