"""ServiceKeys: a service key has to match exactly, and is no other kind of key."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.auth.api_keys import (
    API_KEY_PREFIX,
    SERVICE_KEY_PREFIX,
    ServiceKeys,
    key_sha256,
    new_service_key,
)
from adapters.auth.memory import InMemoryServiceKeyRepo
from domain.account_ports import ServiceKey
from domain.callers import Scope, Service
from domain.errors import InvalidApiKey
from tests.support.examples import OPERATOR

pytestmark = pytest.mark.anyio


async def add(repo: InMemoryServiceKeyRepo, text: str) -> ServiceKey:
    key = ServiceKey(
        id=uuid4(),
        key_sha256=key_sha256(text),
        label="billing",
        scopes=frozenset({Scope.READ}),
        created_at=datetime.now(UTC),
    )
    await repo.add(key, by=OPERATOR)
    return key


@pytest.fixture
def repo() -> InMemoryServiceKeyRepo:
    def clock() -> datetime:
        return datetime.now(UTC)

    return InMemoryServiceKeyRepo(clock=clock, log=InMemoryAuditLog(clock=clock))


async def test_valid_key(repo: InMemoryServiceKeyRepo) -> None:
    """Stands for its service, with its scopes."""
    text = new_service_key()
    key = await add(repo, text)

    verified = await ServiceKeys(repo)(text)

    assert verified.principal == Service(key_id=key.id, label="billing", scopes=key.scopes)


async def test_invalid_keys(repo: InMemoryServiceKeyRepo) -> None:
    """Truncated, extended, in another case, unknown, revoked; also keys of another form whose hash
    is stored."""
    text = new_service_key()
    key = await add(repo, text)
    as_store_key = text.replace(SERVICE_KEY_PREFIX, API_KEY_PREFIX)
    await add(repo, as_store_key)
    await add(repo, text + "0")
    digits = text.removeprefix(SERVICE_KEY_PREFIX)
    bad = [
        text[:-1],
        text + "0",
        text + "\n",
        SERVICE_KEY_PREFIX + digits.upper() + "A",
        as_store_key,
        new_service_key(),
        SERVICE_KEY_PREFIX,
        "",
        "wa_\ud800",
    ]

    for text_of_another in bad:
        with pytest.raises(InvalidApiKey, match=r"^The service key is not valid$"):
            await ServiceKeys(repo)(text_of_another)
    await repo.revoke(key.id, by=OPERATOR)
    with pytest.raises(InvalidApiKey):
        await ServiceKeys(repo)(text)
