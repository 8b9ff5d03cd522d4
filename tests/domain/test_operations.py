"""Operators' use cases for dead letters."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from adapters.queue.memory import InMemoryTaskQueue
from domain.errors import Conflict, DatabaseUnavailable, NotFound
from domain.operations import DeadLetters
from domain.sessions import GenerationSession
from domain.tasks import DeadLetter, UnreadableTask
from tests.support.clock import START
from tests.support.examples import FAILURE, STORED_PICTURE, a_session

pytestmark = pytest.mark.anyio


class Letters:
    """A queue with one dead letter, and its session, if it has one."""

    def __init__(self) -> None:
        self.queue = InMemoryTaskQueue(clock=lambda: START)
        self.session: GenerationSession | Exception = NotFound("No such generation")
        self.use_case = DeadLetters(letters=self.queue, read_session=self._read_session)

    async def bury(self, session_id: UUID | None) -> DeadLetter:
        message = UnreadableTask(raw=b"{", reason="", session_id=session_id)
        await self.queue.bury(message, reason="version 9 is newer")
        (letter,) = await self.queue.dead(limit=1)
        return letter

    async def _read_session(self, session_id: UUID) -> GenerationSession:
        if isinstance(self.session, Exception):
            raise self.session
        assert self.session.id == session_id
        return self.session


@pytest.fixture
def letters() -> Letters:
    return Letters()


async def test_letter_is_requeued(letters: Letters) -> None:
    """Without a session; then there is no such letter."""
    letters.session = AssertionError("no session was named")
    letter = await letters.bury(None)

    assert await letters.use_case.get(letter.id) == letter
    await letters.use_case.requeue(letter.id)

    assert list(letters.queue.messages) == [b"{"]
    with pytest.raises(NotFound):
        await letters.use_case.get(letter.id)


@pytest.mark.parametrize("claimed", [False, True])
async def test_letter_of_an_open_session_is_requeued(letters: Letters, *, claimed: bool) -> None:
    """Queued or processing: it still has to end."""
    session = a_session()
    letters.session = session.claimed(now=START, lease=timedelta(1)) if claimed else session
    letter = await letters.bury(session.id)

    await letters.use_case.requeue(letter.id)

    assert list(letters.queue.messages) == [b"{"]


async def test_letter_of_an_unknown_session_is_requeued(letters: Letters) -> None:
    """It may be another database's; a worker will report it."""
    letter = await letters.bury(uuid4())

    await letters.use_case.requeue(letter.id)

    assert list(letters.queue.messages) == [b"{"]


@pytest.mark.parametrize("status", ["failed", "completed"])
async def test_letter_of_a_final_session_is_not_requeued(letters: Letters, status: str) -> None:
    """``Conflict``, and the letter stays."""
    session = a_session().claimed(now=START, lease=timedelta(1))
    letters.session = (
        session.failed(FAILURE, now=START)
        if status == "failed"
        else session.completed(STORED_PICTURE, now=START)
    )
    letter = await letters.bury(session.id)

    with pytest.raises(Conflict, match=f"is already {status}"):
        await letters.use_case.requeue(letter.id)

    assert list(letters.queue.messages) == []
    assert await letters.queue.count() == 1


async def test_letter_is_not_requeued_without_the_database(letters: Letters) -> None:
    """Its session's status is unknown then."""
    letters.session = DatabaseUnavailable("away")
    letter = await letters.bury(uuid4())

    with pytest.raises(DatabaseUnavailable):
        await letters.use_case.requeue(letter.id)

    assert await letters.queue.count() == 1


async def test_letter_is_discarded(letters: Letters) -> None:
    """Whatever its session's status."""
    letter = await letters.bury(uuid4())

    await letters.use_case.discard(letter.id)

    assert await letters.queue.count() == 0
    assert list(letters.queue.messages) == []


@pytest.mark.parametrize("method", ["get", "requeue", "discard"])
async def test_unknown_letter(letters: Letters, method: str) -> None:
    """``NotFound`` from every method."""
    await letters.bury(None)

    with pytest.raises(NotFound, match=r"^No such dead letter"):
        await getattr(letters.use_case, method)(uuid4())

    assert await letters.queue.count() == 1


async def test_letter_that_is_discarded_meanwhile() -> None:
    """``NotFound``: another operator was faster."""
    letters = Letters()

    async def discard_meanwhile(_: UUID) -> GenerationSession:
        await letters.queue.discard(letter.id)
        return a_session()

    use_case = DeadLetters(letters=letters.queue, read_session=discard_meanwhile)
    letter = await letters.bury(uuid4())

    with pytest.raises(NotFound):
        await use_case.requeue(letter.id)

    assert list(letters.queue.messages) == []
