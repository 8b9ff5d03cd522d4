"""The pool on real processes: a picture may ruin its own process and nothing else."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from adapters.images.limits import PoolLimits
from adapters.images.pool import PicturePool
from domain.errors import Refused, TryAgain
from domain.ports import Picture
from domain.sessions import ErrorCode
from tests.adapters.hostile import ACCEPTED, REFUSED, black
from tests.support.images import encoded

pytestmark = pytest.mark.anyio

GOOD = encoded("PNG", color="teal")

_BEHAVIOUR = """
    import os, signal, time
    from adapters.images.preparation import serve

    def prepare(data):
        if data == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hang":
            time.sleep(1_000)
        if data == b"stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if data == b"eat":
            eaten = []
            while True:
                eaten.append(bytearray(1_000_000))
        if data == b"crash":
            raise KeyError
        if data == b"ask":
            return repr((os.getpid(), dict(os.environ))).encode()
        if data == b"write":
            os.write(os.memfd_create("file"), b"x")
        if data == b"babble":
            os.write(1, bytes(10_000_000))
        if data == b"lie":
            os.write(1, b"p" + bytes([255] * 4))
        {spin}
        return data[::-1]

    {begin}
    serve(prepare)
"""
"""A process that does what the picture says, or gives it back turned round."""

NewPool = Callable[..., PicturePool]


@pytest.fixture
async def new_pool() -> AsyncIterator[NewPool]:
    """Makes pools of processes that do as they are told, and closes them."""
    made: list[PicturePool] = []

    def make(limits: PoolLimits, *, spin: str = "", begin: str = "") -> PicturePool:
        code = textwrap.dedent(_BEHAVIOUR).format(spin=spin, begin=begin)
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
    """The process that the next picture goes to."""
    return int(eval((await pool.prepare(b"ask")).data)[0])  # noqa: S307 - our own test's words


async def test_a_picture_is_prepared(real_pool: PicturePool) -> None:
    """What comes out is a JPEG, whatever went in."""
    picture = await real_pool.prepare(GOOD)

    assert picture.media_type == "image/jpeg"
    assert Image.open(BytesIO(picture.data)).format == "JPEG"


async def test_hostile_pictures_disturb_nobody(real_pool: PicturePool) -> None:
    """All at once, among good ones: each is refused as an invalid image, and the good ones are
    prepared."""
    hostile = [real_pool.prepare(data) for data in REFUSED.values()]
    good = [real_pool.prepare(data) for data in [*ACCEPTED.values(), GOOD]]

    refused = await asyncio.gather(*hostile, return_exceptions=True)
    prepared = await asyncio.gather(*good)

    for name, refusal in zip(REFUSED, refused, strict=True):
        assert isinstance(refusal, Refused), name
        assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert all(picture.media_type == "image/jpeg" for picture in prepared)


@pytest.mark.parametrize("deed", ["die", "hang", "stop", "eat", "crash", "write", "lie"])
async def test_a_lost_process_takes_only_its_own_picture(new_pool: NewPool, deed: str) -> None:
    """Killed, hanging, frozen, eating memory, failing or lying: its picture is an invalid image,
    the one beside it is prepared, and a new process takes the place of the lost one."""
    pool = new_pool(PoolLimits(processes=2, memory_bytes=300_000_000, seconds=1))
    before = await pid_of(pool)

    refusal, neighbour = await asyncio.gather(
        refusal_of(pool, deed.encode()), pool.prepare(b"beside")
    )

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert neighbour == Picture(data=b"ediseb", media_type="image/jpeg")
    assert not _is_alive(before)
    after = await asyncio.gather(pool.prepare(b"one"), pool.prepare(b"two"))
    assert [picture.data for picture in after] == [b"eno", b"owt"]


async def test_computing_is_limited_by_the_kernel(new_pool: NewPool) -> None:
    """Each picture may compute for ``seconds``, those before it do not count; and then the
    process ends of itself, also if nobody watches the clock."""
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


async def test_the_next_answer_is_the_next_picture_s(new_pool: NewPool) -> None:
    """What a process says too much is not taken for the answer of another picture."""
    pool = new_pool(PoolLimits(processes=1))

    await refusal_of(pool, b"babble")

    assert (await pool.prepare(b"next")).data == b"txen"


async def test_a_process_that_died_idle_costs_nothing(new_pool: NewPool) -> None:
    """A process that was killed while it waited fails no picture."""
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(10):
        await pool._idle[0].wait()

    assert await pid_of(pool) != before


async def test_processes_are_bounded_and_used_again(new_pool: NewPool) -> None:
    """However many pictures come at once, ``processes`` work on them, and go on to the next."""
    pool = new_pool(PoolLimits(processes=2), spin="time.sleep(0.05)")

    pids = await asyncio.gather(*(pid_of(pool) for _ in range(10)))

    assert len(set(pids)) == 2


async def test_the_queue_is_bounded(new_pool: NewPool) -> None:
    """Beyond ``max_waiting`` a picture is turned away as a passing fault, and keeps no place."""
    pool = new_pool(PoolLimits(processes=1, max_waiting=1), spin="time.sleep(0.05)")

    first, second, third = await asyncio.gather(
        pool.prepare(b"1"), pool.prepare(b"2"), pool.prepare(b"3"), return_exceptions=True
    )

    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert isinstance(third, TryAgain)
    assert (await pool.prepare(b"4")).data == b"4"


async def test_nothing_of_ours_is_within_reach(
    new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a picture takes over finds no secret in its environment."""
    monkeypatch.setenv("WEARON_JWT_SECRET", "secret")
    pool = new_pool(PoolLimits(processes=1))

    assert b"secret" not in (await pool.prepare(b"ask")).data


async def test_a_cancelled_picture_leaves_no_answer_behind(new_pool: NewPool) -> None:
    """Work that was given up ends with its process; the place is free at once."""
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)
    given_up = asyncio.create_task(pool.prepare(b"hang"))
    await asyncio.sleep(0)

    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)

    assert given_up.cancelled()
    assert not _is_alive(before)
    assert (await pool.prepare(b"next")).data == b"txen"


@pytest.mark.parametrize("begin", ["raise SystemExit", "import os; os.kill(os.getpid(), 9)"])
async def test_no_process_is_a_passing_fault(new_pool: NewPool, begin: str) -> None:
    """Where processes do not start it is not the picture's fault."""
    pool = new_pool(PoolLimits(processes=1), begin=begin)

    for _ in range(2):
        with pytest.raises(TryAgain):
            await pool.prepare(GOOD)


async def test_no_program_is_a_passing_fault() -> None:
    """Nor where there is nothing to start."""
    with pytest.raises(TryAgain):
        await PicturePool(PoolLimits(), program=("/nowhere",)).prepare(GOOD)


async def test_a_signal_to_all_leaves_the_work_alone(new_pool: NewPool) -> None:
    """SIGTERM and SIGINT to the whole group are the worker's to answer, which finishes first."""
    pool = new_pool(PoolLimits(processes=1))
    before = await pid_of(pool)

    os.kill(before, signal.SIGTERM)
    os.kill(before, signal.SIGINT)

    assert await pid_of(pool) == before


async def test_closing_ends_the_processes(new_pool: NewPool) -> None:
    """Nothing is left behind, and closing twice does no harm."""
    pool = new_pool(PoolLimits(processes=2))
    pids = [await pid_of(pool), await pid_of(pool)]

    await pool.close()
    await pool.close()

    assert not any(_is_alive(pid) for pid in pids)


async def test_processes_end_with_the_worker() -> None:
    """A worker that is killed closes nothing; its processes notice the end of their input."""
    code = textwrap.dedent(f"""
        import asyncio
        from adapters.images.pool import PicturePool
        from adapters.images.limits import PoolLimits

        async def main():
            pool = PicturePool(PoolLimits(processes=1))
            await pool.prepare({black(32, 32)!r})
            print(pool._idle[0].pid, flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())

    worker.kill()
    await worker.communicate()

    async with asyncio.timeout(10):
        while _is_alive(pid):  # noqa: ASYNC110 - nothing tells of the end of another's process
            await asyncio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
