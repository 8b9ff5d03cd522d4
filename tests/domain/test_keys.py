"""Operators' use cases for keys: shown once, afterwards known by how they begin."""

from datetime import timedelta
from itertools import count
from uuid import UUID, uuid4

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.auth.memory import InMemoryApiKeyRepo, InMemoryServiceKeyRepo
from adapters.credits.memory import InMemoryCreditRepo
from adapters.stores.memory import InMemoryStoreRepo
from domain.account_ports import ServiceKey
from domain.callers import Caller, Scope
from domain.errors import IdempotencyKeyReused, InvalidInput, NotFound, UnknownStore
from domain.keys import ApiKeyIssuer, ServiceKeyIssuer
from domain.ports import ApiKey
from domain.stores import Stores
from tests.support.clock import START, FakeClock
from tests.support.examples import OPERATOR, STORE

pytestmark = pytest.mark.anyio


class Keys:
    """Issuers whose secrets and ids are counted."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        now, secrets, ids = self.clock.now, count(1), count(1)
        log = InMemoryAuditLog(clock=now)
        accounts = InMemoryCreditRepo(clock=now)
        repo = InMemoryStoreRepo(accounts=accounts, log=log, clock=now)
        self.stores = Stores(stores=repo, clock=now)
        self.repo = InMemoryApiKeyRepo(clock=now, stores=repo, log=log)
        self.issuer = ApiKeyIssuer(
            api_keys=self.repo,
            stores=self.stores,
            new_secret=lambda: f"wk_{next(secrets):032}",
            hash_secret=lambda secret: f"hash of {secret}",
            new_id=lambda: UUID(int=next(ids)),
            clock=now,
        )
        self.services = ServiceKeyIssuer(
            service_keys=InMemoryServiceKeyRepo(clock=now, log=log),
            new_secret=lambda: f"wa_{next(secrets):032}",
            hash_secret=lambda secret: f"hash of {secret}",
            new_id=lambda: UUID(int=next(ids)),
            clock=now,
        )


@pytest.fixture
async def keys() -> Keys:
    """With one store."""
    keys = Keys()
    await keys.stores.ensure(STORE)
    return keys


async def test_issued_key_is_stored_as_its_hash(keys: Keys) -> None:
    """With its owner, label, time and first characters; the secret is only returned, and not shown
    in logs."""
    first = await keys.issuer.issue(STORE, label="till 1")
    keys.clock.advance(timedelta(seconds=1))
    second = await keys.issuer.issue(STORE, label="till 2")

    assert first.secret is not None
    assert first.secret.startswith("wk_000000")
    assert first.key == ApiKey(
        id=UUID(int=1),
        owner=STORE,
        key_sha256=f"hash of {first.secret}",
        label="till 1",
        prefix="wk_000000",
        created_at=START,
    )
    assert first.secret != second.secret
    assert await keys.issuer.all(STORE) == [second.key, first.key]
    assert "secret" not in repr(first)


async def test_key_is_issued_once(keys: Keys) -> None:
    """With the same Idempotency-Key, the second call returns the record without the secret."""
    first = await keys.issuer.issue(STORE, label="till", idempotency_key="k")
    again = await keys.issuer.issue(STORE, label="till", idempotency_key="k")
    with pytest.raises(IdempotencyKeyReused):
        await keys.issuer.issue(STORE, label="another", idempotency_key="k")

    assert (again.key, again.secret) == (first.key, None)
    assert await keys.issuer.all(STORE) == [first.key]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
async def test_invalid_idempotency_keys(keys: Keys, key: str) -> None:
    """``InvalidInput`` names the header."""
    with pytest.raises(InvalidInput, match=r"^Idempotency-Key: "):
        await keys.issuer.issue(STORE, label="till", idempotency_key=key)


@pytest.mark.parametrize("label", ["x" * 201, "a\x00", "two\nlines"])
async def test_invalid_labels(keys: Keys, label: str) -> None:
    """Of both kinds of keys."""
    with pytest.raises(InvalidInput, match=r"^label: "):
        await keys.issuer.issue(STORE, label=label)
    with pytest.raises(InvalidInput, match=r"^label: "):
        await keys.services.issue(label=label, scopes=[Scope.READ], by=OPERATOR)


async def test_key_is_registered_once(keys: Keys) -> None:
    """A valid key stays as it is; a revoked one is registered again."""
    first = [await keys.issuer.register("wk_a", STORE, label="demo") for _ in range(2)]
    (key,) = await keys.issuer.all(STORE)
    await keys.issuer.revoke(key.id, by=OPERATOR)
    again = await keys.issuer.register("wk_a", STORE, label="demo")

    assert (first, again) == ([True, False], True)
    assert await keys.repo.caller_of("hash of wk_a") == Caller(owner=STORE)


async def test_store_has_to_exist(keys: Keys) -> None:
    """No key is made for a mistyped id."""
    unknown = type(STORE)(channel=STORE.channel, id="store-l")

    for call in (
        lambda: keys.issuer.issue(unknown, label=""),
        lambda: keys.issuer.register("wk_a", unknown, label=""),
        lambda: keys.issuer.all(unknown),
    ):
        with pytest.raises(UnknownStore, match="similar: store-1"):
            await call()

    assert await keys.repo.all(None) == []


async def test_revoking_again_changes_nothing(keys: Keys) -> None:
    """The record is the same; an unknown key is ``NotFound``."""
    issued = await keys.issuer.issue(STORE, label="till")

    first = await keys.issuer.revoke(issued.key.id, by=OPERATOR)
    keys.clock.advance(timedelta(seconds=1))
    again = await keys.issuer.revoke(issued.key.id, by=OPERATOR)

    assert first == again
    assert first.revoked_at == START
    with pytest.raises(NotFound):
        await keys.issuer.revoke(uuid4(), by=OPERATOR)


async def test_service_key(keys: Keys) -> None:
    """Stored as its hash, with its scopes; it needs a label and a scope."""
    issued = await keys.services.issue(label="billing", scopes=[Scope.READ] * 2, by=OPERATOR)
    with pytest.raises(InvalidInput, match=r"^scopes: must have at least one scope$"):
        await keys.services.issue(label="billing", scopes=[], by=OPERATOR)
    with pytest.raises(InvalidInput, match=r"^label: must not be empty$"):
        await keys.services.issue(label=" ", scopes=[Scope.READ], by=OPERATOR)

    assert issued.key == ServiceKey(
        id=UUID(int=1),
        key_sha256=f"hash of {issued.secret}",
        label="billing",
        scopes=frozenset({Scope.READ}),
        prefix="wa_000000",
        created_at=START,
    )
    assert await keys.services.all(limit=10) == [issued.key]
    assert "wa_" not in repr(issued.secret and issued.key).replace("prefix='wa_000000'", "")
