"""Operators' use cases: grants, API keys and dead letters."""

from datetime import timedelta
from itertools import count
from uuid import UUID, uuid4

import pytest

from adapters.auth.memory import InMemoryApiKeyRepo
from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.memory import InMemoryTaskQueue
from domain.callers import Caller
from domain.credits import MAX_GRANT
from domain.errors import Conflict, DatabaseUnavailable, InvalidInput, NotFound
from domain.operations import ApiKeyIssuer, CreditGrants, DeadLetters
from domain.ports import ApiKey
from domain.sessions import GenerationSession
from domain.tasks import DeadLetter, UnreadableTask
from tests.support.clock import START, FakeClock
from tests.support.examples import FAILURE, OTHER, STORE, STORED_PICTURE, a_session

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def accounts(clock: FakeClock) -> InMemoryCreditRepo:
    return InMemoryCreditRepo(clock=clock.now)


@pytest.fixture
def grants(accounts: InMemoryCreditRepo) -> CreditGrants:
    return CreditGrants(accounts=accounts)


@pytest.mark.parametrize("amount", [1, MAX_GRANT])
async def test_grant(grants: CreditGrants, accounts: InMemoryCreditRepo, amount: int) -> None:
    """Returns the new account, and the ledger has the note."""
    account = await grants.grant(STORE, amount, note="an order")

    assert account == accounts.balance_of(STORE)
    assert account.balance == amount
    assert [(entry.amount, entry.note) for entry in accounts.entries] == [(amount, "an order")]


@pytest.mark.parametrize("amount", [0, -1, MAX_GRANT + 1])
async def test_grant_of_an_invalid_amount(
    grants: CreditGrants, accounts: InMemoryCreditRepo, amount: int
) -> None:
    """``InvalidInput``, and no ledger entry."""
    with pytest.raises(InvalidInput, match=f"^amount: must be 1 to {MAX_GRANT}$"):
        await grants.grant(STORE, amount, note="")

    assert accounts.entries == []


async def test_top_up_needs_an_empty_account(
    grants: CreditGrants, accounts: InMemoryCreditRepo
) -> None:
    """Repeating it grants nothing until all credits are spent."""
    first = [await grants.top_up(STORE, 2, note="demo") for _ in range(2)]
    accounts.debit(STORE, 1, uuid4())
    second = await grants.top_up(STORE, 2, note="demo")
    accounts.debit(STORE, 1, uuid4())
    third = await grants.top_up(STORE, 2, note="demo")

    assert (first, second, third) == ([True, False], False, True)
    assert accounts.balance_of(STORE).balance == 2


@pytest.fixture
def keys(clock: FakeClock) -> InMemoryApiKeyRepo:
    return InMemoryApiKeyRepo(clock=clock.now)


@pytest.fixture
def issuer(keys: InMemoryApiKeyRepo, clock: FakeClock) -> ApiKeyIssuer:
    secrets, ids = count(1), count(1)
    return ApiKeyIssuer(
        api_keys=keys,
        new_secret=lambda: f"wk_{next(secrets)}",
        hash_secret=lambda secret: f"hash of {secret}",
        new_id=lambda: UUID(int=next(ids)),
        clock=clock.now,
    )


async def test_issued_key_is_stored_as_its_hash(
    issuer: ApiKeyIssuer, keys: InMemoryApiKeyRepo, clock: FakeClock
) -> None:
    """With its owner, label and time; the secret is only returned, and not shown in logs."""
    first = await issuer.issue(STORE, label="till 1")
    clock.advance(timedelta(seconds=1))
    second = await issuer.issue(STORE, label="till 2")

    assert first.key == ApiKey(
        id=UUID(int=1),
        owner=STORE,
        key_sha256="hash of wk_1",
        label="till 1",
        created_at=START,
    )
    assert (first.secret, second.secret) == ("wk_1", "wk_2")
    assert await keys.all(STORE) == [second.key, first.key]
    assert "secret" not in repr(first)


async def test_key_is_registered_once(issuer: ApiKeyIssuer, keys: InMemoryApiKeyRepo) -> None:
    """A valid key stays its owner's; a revoked one is registered again."""
    first = [await issuer.register("wk_a", owner, label="demo") for owner in (STORE, OTHER)]
    (key,) = await keys.all(None)
    await keys.revoke(key.id)
    again = await issuer.register("wk_a", STORE, label="demo")

    assert (first, again) == ([True, False], True)
    assert key.owner == STORE
    assert await keys.caller_of("hash of wk_a") == Caller(owner=STORE)


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
