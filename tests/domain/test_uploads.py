"""Uploads: folders, offers, quotas, and the order of an upload's checks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from adapters.client_tokens.memory import InMemoryClientTokenRepo
from adapters.credits.memory import InMemoryCreditRepo
from adapters.storage.memory import InMemoryPictureStorage
from domain.callers import Caller, Shopper
from domain.client_tokens import ClientToken
from domain.credits import CreditAccount, Owner
from domain.errors import (
    BodyTooSlow,
    Conflict,
    Forbidden,
    InsufficientCredits,
    InvalidInput,
    LinkInUse,
    NotFound,
    Overloaded,
    Refused,
    StorageUnavailable,
    TooManyUploads,
    Unauthenticated,
    UploadTooLarge,
)
from domain.signup import NO_SIGNUP, CallerAccounts, SignupPolicy
from domain.uploads import (
    ReceivedUpload,
    ReceivingLimits,
    UploadPolicy,
    UploadReceiver,
    Uploads,
    is_upload,
    is_upload_of,
    shopper_folder,
    upload_folder,
)
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import (
    MANY,
    NO_TOKENS,
    OPERATOR,
    ORIGINS,
    OTHER,
    STORE,
    USER,
    a_token,
)
from tests.support.service import Service

pytestmark = pytest.mark.anyio

ID = UUID("01a20f3c-9fdc-756e-a2e8-4b6c69b0c376")
NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
FOLDER = upload_folder(STORE, NOON.date())
KEY = f"{FOLDER}/{ID}.jpg"
JPEG = b"a jpeg"


@pytest.fixture
def storage() -> InMemoryPictureStorage:
    return Service().storage


class Rich(InMemoryCreditRepo):
    """Everyone has one credit."""

    async def account(self, owner: Owner) -> CreditAccount:
        return CreditAccount(owner=owner, balance=1)


def rich() -> InMemoryCreditRepo:
    return Rich(clock=lambda: NOON)


def uploads(
    storage: InMemoryPictureStorage,
    *,
    max_per_day: int = 2,
    now: datetime = NOON,
    accounts: InMemoryCreditRepo | None = None,
    tokens: InMemoryClientTokenRepo = NO_TOKENS,
    policy_of_signup: SignupPolicy = NO_SIGNUP,
) -> Uploads:
    policy = UploadPolicy(
        max_per_day=max_per_day,
        max_per_shopper=1,
        max_bytes=1_234,
        send_within=timedelta(minutes=5),
    )
    return Uploads(
        storage=storage,
        accounts=CallerAccounts(accounts=accounts or rich(), policy=policy_of_signup),
        tokens=tokens,
        policy=policy,
        new_id=lambda: ID,
        clock=lambda: now,
    )


@pytest.mark.parametrize("owner", [STORE, USER], ids=str)
def test_folder_names_the_owner_and_the_day(owner: Owner) -> None:
    """So an upload's key tells whose it is and how old."""
    folder = upload_folder(owner, date(2026, 1, 2))

    assert folder == f"uploads/2026-01-02/{owner.channel}/{owner.id}"
    assert is_upload_of(owner, f"{folder}/{ID}.jpg")
    assert not is_upload_of(OTHER, f"{folder}/{ID}.jpg")
    assert is_upload(f"{folder}/{ID}.jpg")


def test_shopper_has_a_folder_within_its_store_s() -> None:
    """Its uploads are the store's, in the key's form, and the folder does not show the id."""
    folder = shopper_folder(FOLDER, "anna")

    assert folder.startswith(f"{FOLDER}/shopper-")
    assert "anna" not in folder
    assert folder != shopper_folder(FOLDER, "ben")
    assert is_upload(f"{folder}/{ID}.jpg")
    assert is_upload_of(STORE, f"{folder}/{ID}.jpg")
    assert not is_upload_of(OTHER, f"{folder}/{ID}.jpg")
    assert not is_upload(f"{folder}/{folder.rpartition('/')[2]}/{ID}.jpg")
    assert not is_upload(f"{FOLDER}/anna/{ID}.jpg")


async def test_shopper_s_offer(storage: InMemoryPictureStorage) -> None:
    """In its folder; its quota is its own, within the store's."""
    tokens = InMemoryClientTokenRepo(clock=lambda: NOON, origins_of=lambda _: ORIGINS, budgets={})
    anna, ben, carl = [
        a_token(shopper_id=name, created_at=NOON) for name in ("anna", "ben", "carl")
    ]
    for token in (anna, ben, carl):
        await tokens.add(token, max_live=MANY)
    of_store = uploads(storage, tokens=tokens)

    async def offer(token: ClientToken) -> str:
        shopper = Shopper(id=token.shopper_id, token_id=token.id)
        caller = Caller(owner=STORE, shopper=shopper)
        return (await of_store.offer(caller, "image/jpeg")).links.image_url

    async def store(token: ClientToken) -> None:
        folder = shopper_folder(FOLDER, token.shopper_id)
        await storage.keep_upload(f"{folder}/{ID}.jpg", b"picture")

    assert f"{shopper_folder(FOLDER, 'anna')}/{ID}.jpg" in await offer(anna)
    await store(anna)
    with pytest.raises(TooManyUploads, match="limit of 1 uploads"):
        await offer(anna)
    await offer(ben)
    await store(ben)
    with pytest.raises(TooManyUploads, match="limit of 2 uploads"):
        await offer(carl)
    with pytest.raises(TooManyUploads, match="limit of 2 uploads"):
        await of_store.offer(Caller(owner=STORE), "image/jpeg")


async def test_unknown_token_gets_no_offer(storage: InMemoryPictureStorage) -> None:
    """It was purged since the caller was cached."""
    with pytest.raises(Unauthenticated):
        await uploads(storage).offer(
            Caller(owner=STORE, shopper=Shopper(id="anna", token_id=ID)), "image/jpeg"
        )


async def test_new_user_may_upload(storage: InMemoryPictureStorage) -> None:
    """A user counts as holding the sign-up credits until its first debit; anonymous ones, and
    those who come after the day's cap, hold none."""
    accounts = InMemoryCreditRepo(clock=lambda: NOON)
    generous = SignupPolicy(credits=2, per_day=1)
    known, anonymous = Caller(owner=USER), Caller(owner=USER, is_anonymous=True)
    of_users = uploads(storage, accounts=accounts, policy_of_signup=generous)

    await of_users.offer(known, "image/jpeg")
    with pytest.raises(InsufficientCredits):
        await of_users.offer(anonymous, "image/jpeg")
    assert accounts.count_signup(per_day=1)
    with pytest.raises(InsufficientCredits):
        await of_users.offer(known, "image/jpeg")

    assert (await accounts.account(USER)).balance == 0


async def test_offer(storage: InMemoryPictureStorage) -> None:
    """Links of a new object in the owner's folder of today, with expiry and size limit."""
    offer = await uploads(storage, now=NOON.replace(microsecond=999_999)).offer(
        Caller(owner=STORE), "image/webp"
    )

    key = f"uploads/2026-11-24/b2b/{STORE.id}/{ID}.webp"
    assert f"/{key}?" in offer.links.upload_url
    assert offer.links.image_url == storage.url(key)
    assert (offer.expires_at, offer.max_bytes) == (NOON + timedelta(minutes=5), 1_234)


async def test_quota_is_per_owner_and_day(storage: InMemoryPictureStorage) -> None:
    """``TooManyUploads`` with the seconds until the next day (UTC). Other owners and days have
    quotas of their own."""
    for number in range(2):
        await storage.keep_upload(f"{FOLDER}/{number}.jpg", b"")

    with pytest.raises(TooManyUploads, match="limit of 2 uploads") as rejection:
        await uploads(storage).offer(Caller(owner=STORE), "image/jpeg")

    assert rejection.value.retry_after_seconds == 12 * 3_600 - 30
    await uploads(storage).offer(Caller(owner=USER), "image/jpeg")
    await uploads(storage, max_per_day=3).offer(Caller(owner=STORE), "image/jpeg")
    await uploads(storage, now=NOON + timedelta(hours=12)).offer(Caller(owner=STORE), "image/jpeg")


async def test_offer_needs_credits(storage: InMemoryPictureStorage) -> None:
    """A picture that could not be used is not stored."""
    accounts = InMemoryCreditRepo(clock=lambda: NOON)
    await accounts.grant(USER, 1, note="test")

    with pytest.raises(InsufficientCredits):
        await uploads(storage, accounts=accounts).offer(Caller(owner=STORE), "image/jpeg")

    await uploads(storage, accounts=accounts).offer(Caller(owner=USER), "image/jpeg")


async def test_suspended_owner_gets_no_offer(storage: InMemoryPictureStorage) -> None:
    """``Forbidden``, also with credits, until it is resumed."""
    accounts = InMemoryCreditRepo(clock=lambda: NOON)
    await accounts.grant(USER, 1, note="test")
    await accounts.suspend(USER, by=OPERATOR)

    with pytest.raises(Forbidden, match="suspended"):
        await uploads(storage, accounts=accounts).offer(Caller(owner=USER), "image/jpeg")
    await accounts.resume(USER, by=OPERATOR)

    await uploads(storage, accounts=accounts).offer(Caller(owner=USER), "image/jpeg")


class Sink(InMemoryPictureStorage):
    """A storage without signatures: ``valid`` says whether a link is one."""

    def __init__(self, *, valid: bool = True) -> None:
        super().__init__(signer=Service().storage._signer)
        self.valid = valid

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:  # noqa: ARG002
        assert (expires, signature) == (9, "s")
        if not self.valid:
            raise NotFound("No such picture")

    @property
    def kept(self) -> dict[str, bytes]:
        return {key: stored.picture.data for key, stored in self._stored.items()}


Body = Callable[[], AsyncIterator[bytes]]


class Checks:
    """Records the checks of an upload; ``quota`` and ``head`` fail with their error."""

    def __init__(self, sink: Sink, limits: ReceivingLimits | None = None) -> None:
        self.calls: list[str] = []
        self.quota: Exception | None = None
        self.head: Exception | str = "image/jpeg"
        self.heads: list[tuple[bytes, bool]] = []
        self.receiver = UploadReceiver(
            sink=sink,
            check_quota=self._check_quota,
            inspect=self._inspect,
            limits=limits or ReceivingLimits(),
        )

    async def receive(
        self, body: Body | None = None, *, key: str = KEY, address: str = "192.0.2.1"
    ) -> ReceivedUpload:
        return await self.receiver.receive(
            key, expires=9, signature="s", address=address, body=body or self._body
        )

    async def _check_quota(self, folder: str) -> None:
        self.calls.append(f"quota of {folder}")
        if self.quota is not None:
            raise self.quota

    async def _body(self) -> AsyncIterator[bytes]:
        self.calls.append("body")
        yield JPEG

    def _inspect(self, head: bytes, *, is_whole: bool) -> str:
        self.calls.append("inspect")
        self.heads.append((head, is_whole))
        if isinstance(self.head, Exception):
            raise self.head
        return self.head


def pieces(*given: bytes | Exception) -> Body:
    async def body() -> AsyncIterator[bytes]:
        for piece in given:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return body


class Held:
    """A body that arrives when ``go_on`` is set."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> AsyncIterator[bytes]:
        self.started.set()
        await self.go_on.wait()
        yield JPEG


async def test_received_picture_is_kept() -> None:
    """After the link, the quota and the first bytes have been checked, in this order."""
    checks = Checks(sink := Sink())

    upload = await checks.receive()

    assert upload == ReceivedUpload(media_type="image/jpeg", size=len(JPEG))
    assert checks.calls == [f"quota of {FOLDER}", "body", "inspect"]
    assert sink.kept == {KEY: JPEG}


async def test_only_the_first_bytes_are_looked_at() -> None:
    """Once, however they arrive; the rest is passed on as it comes."""
    checks = Checks(sink := Sink(), ReceivingLimits(head_bytes=4))

    upload = await checks.receive(pieces(b"ab", b"cdef", b"", b"ghi", b"j"))

    assert checks.heads == [(b"abcd", False)]
    assert (sink.kept, upload.size) == ({KEY: b"abcdefghij"}, 10)


async def test_a_short_picture_is_looked_at_as_a_whole() -> None:
    """Also if it is empty."""
    checks = Checks(Sink(), ReceivingLimits(head_bytes=4))

    await checks.receive(pieces(b"ab", b"c"))
    await checks.receive(pieces(), key=f"{FOLDER}/2.jpg")

    assert checks.heads == [(b"abc", True), (b"", True)]


async def test_invalid_link_is_rejected_first() -> None:
    """The body of an unknown caller is not read."""
    checks = Checks(sink := Sink(valid=False))

    with pytest.raises(NotFound):
        await checks.receive()

    assert (checks.calls, sink.kept) == ([], {})


async def test_used_up_quota_is_rejected_before_the_body() -> None:
    """The link was issued while there was quota left."""
    checks = Checks(sink := Sink())
    checks.quota = TooManyUploads("enough", retry_after_seconds=1)

    with pytest.raises(TooManyUploads):
        await checks.receive()

    assert (checks.calls, sink.kept) == ([f"quota of {FOLDER}"], {})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Refused("A picture is damaged"), "body: A picture is damaged"),
        ("image/png", "body: is image/png, not image/jpeg as announced"),
    ],
    ids=["damaged", "another type"],
)
async def test_refused_upload_uses_up_its_link(found: Exception | str, message: str) -> None:
    """``InvalidInput`` with the reason; nothing is kept. The next try is a ``Conflict`` whose body
    is not read, so a link is good for one refusal. It counts for the quota."""
    checks = Checks(sink := Sink())
    checks.head = found

    with pytest.raises(InvalidInput) as rejection:
        await checks.receive()
    checks.calls.clear()
    checks.head = "image/jpeg"
    with pytest.raises(Conflict):
        await checks.receive()

    assert str(rejection.value) == message
    assert (sink.kept, checks.calls) == ({KEY: b""}, [f"quota of {FOLDER}"])
    assert await sink.count_uploads(FOLDER, limit=10) == 1


async def test_too_large_upload_uses_up_its_link() -> None:
    """It is noticed only while the body arrives."""
    checks = Checks(sink := Sink(), ReceivingLimits(head_bytes=1))

    with pytest.raises(UploadTooLarge):
        await checks.receive(pieces(JPEG, UploadTooLarge("too large")))

    assert sink.kept == {KEY: b""}


async def test_upload_that_did_not_arrive_may_be_repeated() -> None:
    """A connection broke: nothing is kept, and the link stays valid."""
    checks = Checks(sink := Sink(), ReceivingLimits(head_bytes=1))

    with pytest.raises(ConnectionError):
        await checks.receive(pieces(JPEG, ConnectionError("gone")))

    assert sink.kept == {}
    await checks.receive()


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": VirtualTimeLoop})], ids=["virtual"]
)
async def test_slow_body_is_given_up() -> None:
    """Unless it averages the lowest rate, beyond a grace. The link stays valid."""
    limits = ReceivingLimits(grace_seconds=10, min_bytes_per_second=100)
    checks = Checks(sink := Sink(), limits)

    async def at(bytes_per_second: int) -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(bytes_per_second)
            await asyncio.sleep(1)

    with pytest.raises(BodyTooSlow):
        await checks.receive(lambda: at(50))
    gave_up_at = loop_time()

    assert gave_up_at == pytest.approx(20, abs=1)
    assert sink.kept == {}
    assert (await checks.receive(lambda: at(110))).size == 11_000


async def test_second_upload_to_a_link_conflicts() -> None:
    """The first picture stays. A repetition of the same bytes succeeds: the first answer was
    lost."""
    checks = Checks(sink := Sink())
    await checks.receive()

    with pytest.raises(Conflict):
        await checks.receive(pieces(b"another"))

    assert (await checks.receive()).size == len(JPEG)
    assert sink.kept == {KEY: JPEG}


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (ReceivingLimits(in_progress=1), Overloaded),
        (ReceivingLimits(per_owner=1), TooManyUploads),
        (ReceivingLimits(per_address=1), TooManyUploads),
    ],
)
@pytest.mark.parametrize("outcome", ["kept", "failed", "cancelled"])
async def test_uploads_in_progress_are_bounded(
    limits: ReceivingLimits, error: type[Exception], outcome: str
) -> None:
    """In total, of one owner, and from one address; before the body is read, until one of them has
    ended."""
    checks = Checks(Sink(), limits)
    held, second = Held(), f"{FOLDER}/2.jpg"
    checks.head = Refused("damaged") if outcome == "failed" else "image/jpeg"

    first = asyncio.create_task(checks.receive(held))
    await held.started.wait()
    with pytest.raises(error):
        await checks.receive(key=second)
    calls = list(checks.calls)
    first.cancel() if outcome == "cancelled" else held.go_on.set()
    await asyncio.gather(first, return_exceptions=True)
    checks.head = "image/jpeg"

    assert calls == [f"quota of {FOLDER}"]
    await checks.receive(key=second)
    assert (checks.receiver._links, checks.receiver._folders) == (set(), {})
    assert checks.receiver._addresses == {}


async def test_many_bodies_on_one_link_block_no_other() -> None:
    """A link receives one body at a time; others conflict and may be repeated."""
    checks = Checks(Sink(), ReceivingLimits(in_progress=32, per_owner=2))
    held = Held()
    first = asyncio.create_task(checks.receive(held))
    await held.started.wait()

    for _ in range(31):
        with pytest.raises(LinkInUse):
            await checks.receive(held)

    await checks.receive(key=f"{FOLDER}/2.jpg")
    held.go_on.set()
    await first


async def test_owner_and_address_are_counted_each() -> None:
    """Another owner from another address is not held up."""
    checks = Checks(Sink(), ReceivingLimits(per_owner=1, per_address=1))
    held = Held()
    first = asyncio.create_task(checks.receive(held))
    await held.started.wait()
    theirs = f"{upload_folder(OTHER, NOON.date())}/2.jpg"

    with pytest.raises(TooManyUploads):
        await checks.receive(key=theirs)
    await checks.receive(key=theirs, address="192.0.2.2")
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first


async def test_shoppers_of_a_store_are_counted_each_and_together() -> None:
    """One shopper's slow uploads hold up neither another one nor the store; all shoppers of a store
    have a limit of their own."""
    checks = Checks(Sink(), ReceivingLimits(per_owner=1, per_shopper=1, per_store_of_shoppers=2))
    held = Held()
    anna, ben, carl = (shopper_folder(FOLDER, name) for name in ("anna", "ben", "carl"))
    first = [asyncio.create_task(checks.receive(held, key=f"{anna}/1.jpg"))]
    await held.started.wait()

    with pytest.raises(TooManyUploads):
        await checks.receive(key=f"{anna}/2.jpg")
    await checks.receive(key=f"{ben}/1.jpg")
    await checks.receive(key=f"{FOLDER}/1.jpg")
    held.started.clear()
    first.append(asyncio.create_task(checks.receive(held, key=f"{ben}/2.jpg")))
    await held.started.wait()
    with pytest.raises(TooManyUploads):
        await checks.receive(key=f"{carl}/1.jpg")
    await checks.receive(key=f"{FOLDER}/2.jpg")
    held.go_on.set()
    await asyncio.gather(*first)

    await checks.receive(key=f"{carl}/1.jpg")
    assert checks.receiver._folders == {}


async def test_refusal_is_answered_although_the_storage_fails() -> None:
    """The link then stays valid."""

    class Away(Sink):
        async def keep_upload(self, object_key: str, data: bytes) -> bool:  # noqa: ARG002
            raise StorageUnavailable("The picture storage does not answer")

    checks = Checks(Away())
    checks.head = Refused("damaged")

    with pytest.raises(InvalidInput):
        await checks.receive()
