"""Operators' use cases for accounts: grants, adjustments, plans and suspensions."""

from uuid import uuid4

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.credits.memory import InMemoryCreditRepo
from adapters.stores.memory import InMemoryStoreRepo
from domain.accounts import CreditGrants, Owners, owner_named
from domain.credits import MAX_GRANT, Channel, Owner
from domain.errors import Conflict, Forbidden, InvalidInput, UnknownStore
from domain.operators import Operator
from domain.plans import Plan
from domain.stores import Stores
from tests.support.clock import FakeClock
from tests.support.examples import OPERATOR, STORE, USER

pytestmark = pytest.mark.anyio

NO_STORE = Owner(channel=Channel.B2B, id="store-2")
NO_USER = Owner(channel=Channel.B2C, id="me")


@pytest.fixture
def accounts() -> InMemoryCreditRepo:
    return InMemoryCreditRepo(clock=FakeClock().now)


@pytest.fixture
async def owners(accounts: InMemoryCreditRepo) -> Owners:
    """Of the stores, there is one."""
    clock = FakeClock().now
    repo = InMemoryStoreRepo(accounts=accounts, log=InMemoryAuditLog(clock=clock), clock=clock)
    stores = Stores(stores=repo, clock=clock)
    await stores.ensure(STORE)
    return Owners(accounts=accounts, credit_repo=accounts, stores=stores)


@pytest.fixture
def grants(accounts: InMemoryCreditRepo, owners: Owners) -> CreditGrants:
    return CreditGrants(accounts=accounts, owners=owners)


@pytest.mark.parametrize("amount", [1, MAX_GRANT])
@pytest.mark.parametrize("owner", [STORE, USER])
async def test_grant(
    grants: CreditGrants, accounts: InMemoryCreditRepo, owner: Owner, amount: int
) -> None:
    """Returns the new account, and the ledger has the note. A user needs no account before."""
    booked = await grants.grant(owner, amount, note=" an order ")

    assert booked.account == accounts.balance_of(owner)
    assert booked.account.balance == amount
    assert [(entry.amount, entry.note) for entry in accounts.entries] == [(amount, "an order")]


@pytest.mark.parametrize("amount", [0, -1, MAX_GRANT + 1])
async def test_invalid_amounts(
    grants: CreditGrants, accounts: InMemoryCreditRepo, amount: int
) -> None:
    """``InvalidInput``, and no ledger entry."""
    with pytest.raises(InvalidInput, match=rf"^amount: must be 1 to {MAX_GRANT}$"):
        await grants.grant(STORE, amount, note="")
    with pytest.raises(InvalidInput, match=r"^amount: "):
        await grants.adjust(STORE, amount, reference=None, by=OPERATOR)

    assert accounts.entries == []


@pytest.mark.parametrize("reference", ["", " ", "a b", "x" * 256, "ü", "a\n"])
async def test_invalid_references(grants: CreditGrants, reference: str) -> None:
    """Only visible ASCII, as in an Idempotency-Key, and never an empty one that means nothing."""
    with pytest.raises(InvalidInput, match=r"^reference: must be 1 to 255 visible ASCII"):
        await grants.grant(STORE, 1, note="", reference=reference)
    with pytest.raises(InvalidInput, match=r"^reference: "):
        await grants.adjust(STORE, 1, reference=reference, by=OPERATOR)


@pytest.mark.parametrize("note", ["x" * 501, "a\x00b", "\u202eevil", "two\nlines", "\ud800"])
async def test_invalid_notes(grants: CreditGrants, note: str) -> None:
    """A note is one printable line of bounded length."""
    with pytest.raises(InvalidInput, match=r"^note: "):
        await grants.grant(STORE, 1, note=note)


async def test_adjustment_needs_a_reason(
    grants: CreditGrants, accounts: InMemoryCreditRepo
) -> None:
    """It becomes the note of the entry."""
    await grants.grant(STORE, 5, note="")

    with pytest.raises(InvalidInput, match=r"^reason: is required$"):
        await grants.adjust(STORE, 2, reference=None, by=Operator(actor="cli:alice"))
    booked = await grants.adjust(STORE, 2, reference=None, by=OPERATOR)

    assert (booked.entry.amount, booked.entry.note) == (-2, OPERATOR.reason)
    assert accounts.balance_of(STORE).balance == 3


async def test_adjustment_takes_all_or_nothing(
    grants: CreditGrants, accounts: InMemoryCreditRepo
) -> None:
    """``Conflict`` says what is left."""
    await grants.grant(STORE, 5, note="")

    with pytest.raises(Conflict, match=r"^Only 5 credit\(s\) are left; nothing was taken$"):
        await grants.adjust(STORE, 6, reference=None, by=OPERATOR)

    assert accounts.balance_of(STORE).balance == 5


@pytest.mark.parametrize(("owner", "error"), [(NO_STORE, UnknownStore), (NO_USER, InvalidInput)])
async def test_unknown_owners(
    grants: CreditGrants,
    owners: Owners,
    accounts: InMemoryCreditRepo,
    owner: Owner,
    error: type[Exception],
) -> None:
    """No call creates an account for a mistyped id: of a store without a row, of a user whose id is
    no UUID."""
    calls = (
        lambda: grants.grant(owner, 1, note=""),
        lambda: grants.adjust(owner, 1, reference=None, by=OPERATOR),
        lambda: grants.top_up(owner, 1, note=""),
        lambda: owners.account(owner),
        lambda: owners.set_plan(owner, Plan.SCALE, by=OPERATOR),
        lambda: owners.suspend(owner, by=OPERATOR),
        lambda: owners.resume(owner, by=OPERATOR),
    )

    for call in calls:
        with pytest.raises(error):
            await call()

    assert owner not in accounts._accounts


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


async def test_suspended_account(owners: Owners) -> None:
    """``require_active`` raises until the owner is resumed."""
    suspended = await owners.suspend(USER, by=OPERATOR)
    resumed = await owners.resume(USER, by=OPERATOR)

    resumed.require_active()
    with pytest.raises(Forbidden, match=r"^The account is suspended$"):
        suspended.require_active()


def test_owner_named() -> None:
    """A user's UUID may be written in several ways, and is one user."""
    assert owner_named(Channel.B2B, "Store-1") == Owner(channel=Channel.B2B, id="Store-1")
    assert owner_named(Channel.B2C, USER.id.upper().replace("-", "")) == USER
    with pytest.raises(InvalidInput, match=r"^owner_id: must be a UUID$"):
        owner_named(Channel.B2C, "me")


@pytest.mark.parametrize(
    "values", [{"actor": ""}, {"actor": "x" * 201}, {"actor": "a", "reason": "x" * 501},
               {"actor": "a", "reason": " "}, {"actor": "a\x1b[1m"}],
)  # fmt: skip
def test_invalid_operators(values: dict[str, str]) -> None:
    """Both texts are bounded and printable."""
    with pytest.raises(InvalidInput, match=r"^(actor|reason): "):
        Operator(**values)
