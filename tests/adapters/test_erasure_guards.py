"""The database allows one exception from what a session keeps, and no more than that: a final
session is erased as a whole, once, and for good."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.columns import ERASED
from domain.callers import Shopper
from domain.plans import TokenBudget
from domain.sessions import Accessory
from tests.adapters.console import SET, Console
from tests.support.examples import FAILURE, STORE

pytestmark = pytest.mark.anyio

OPEN = ("queued", "processing")
FINAL = ("completed", "failed")

LOST = {column.name: f"{column.name} = {column.erased}" for column in ERASED}
ERASED_VALUES = ", ".join(["erased_at = now()", *LOST.values()])
ERASE = SET.format(ERASED_VALUES)
LEFT = {
    column.name: "'[{}]'" if column.type == "jsonb" else "'https://x.example/'" for column in ERASED
}
"""A value that an erasure must not leave behind, or give back."""


def erase_and(change: str) -> str:
    return ERASE.replace("SET ", f"SET {change}, ")


ATTACKS: dict[str, tuple[tuple[str, ...], str]] = {
    "unfinished session erased": (OPEN, ERASE),
    "session erased and ended at once": (OPEN, erase_and("status = 'failed'")),
    "erasure undone": (("erased",), SET.format("erased_at = NULL")),
    "erased again": (("erased",), SET.format("erased_at = now() + interval '1 s'")),
    "picture of an erased session changed": (
        ("erased",),
        SET.format("object_key = 'generated/' || user_id || '/' || id || '.jpg'"),
    ),
    "picture forgotten": (("completed",), erase_and("object_key = NULL, media_type = NULL")),
    "age forgotten": (("completed of age",), erase_and("age_verified = NULL")),
    "payer changed": (FINAL, erase_and("user_id = 'another'")),
    "request id changed": (FINAL, erase_and("request_id = ''")),
    "key given back": (FINAL, erase_and("idempotency_key = NULL")),
    **{
        f"erased with its {name}": (FINAL, ERASE.replace(LOST[name], f"{name} = {value}"))
        for name, value in LEFT.items()
    },
    **{
        f"{name} given back": (("erased",), SET.format(f"{name} = {value}"))
        for name, value in LEFT.items()
        if name != "provider_job"
    },
}
"""By name, the states of a session and a statement that has to fail in each."""


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    await console.empty()
    yield console
    await database.close()


@pytest.mark.parametrize(
    ("attack", "state"),
    [(name, state) for name, (states, _) in ATTACKS.items() for state in states],
)
async def test_attack_is_refused(console: Console, attack: str, state: str) -> None:
    """By a guard that sees the row before and after, and nothing changes."""
    _, sql = ATTACKS[attack]
    session_id = await console.in_state(state)
    before = await console.everything()

    with pytest.raises(asyncpg.RestrictViolationError):
        await console.run(sql, session_id)

    assert await console.everything() == before


OF_INPUT = ["model_image_url", "outfit_image_url", "accessories", "prompt"]


async def ended_with_all_inputs(console: Console) -> UUID:
    accessory = Accessory(type="hat", url="https://x.example/hat.jpg")
    outfit = "https://x.example/coat.jpg"
    receipt = await console.created(outfit_image_url=outfit, accessories=(accessory,))
    await console.sessions.fail_queued(receipt.session.id, FAILURE)
    return receipt.session.id


@pytest.mark.parametrize("name", OF_INPUT)
async def test_erasure_leaves_no_input_as_it_was(console: Console, name: str) -> None:
    session_id = await ended_with_all_inputs(console)

    with pytest.raises(asyncpg.RestrictViolationError):
        await console.run(ERASE.replace(f", {LOST[name]}", ""), session_id)
    await console.run(ERASE, session_id)


@pytest.mark.parametrize("name", OF_INPUT)
async def test_no_input_is_lost_without_an_erasure(console: Console, name: str) -> None:
    session_id = await ended_with_all_inputs(console)

    with pytest.raises(asyncpg.RestrictViolationError):
        await console.run(SET.format(LOST[name]), session_id)


@pytest.mark.parametrize("state", FINAL)
async def test_final_session_can_be_erased(console: Console, state: str) -> None:
    """The statement that the attacks are variations of."""
    session_id = await console.in_state(state)

    await console.run(ERASE, session_id)

    assert (await console.get(session_id)).erased_at is not None


@pytest.mark.parametrize(
    "change",
    [
        "shopper_id = NULL",
        "shopper_id = 'bob'",
        ERASED_VALUES + ", shopper_id = 'bob'",
        ERASED_VALUES + ", client_token_id = NULL",
    ],
)
async def test_shopper_only_goes_with_an_erasure(console: Console, change: str) -> None:
    """And is never replaced."""
    shopper = Shopper(id="ann", token_id=uuid4())
    expires_at = datetime.now(UTC) + timedelta(minutes=9)
    await console.add_token(
        shopper.token_id,
        TokenBudget(store_id=STORE.id, shopper_id="ann", pictures=1, expires_at=expires_at),
    )
    session_id = (await console.created(STORE, shopper=shopper)).session.id
    await console.sessions.fail_queued(session_id, FAILURE)

    with pytest.raises(asyncpg.RestrictViolationError):
        await console.run(SET.format(change), session_id)
    await console.run(SET.format(f"{ERASED_VALUES}, shopper_id = NULL"), session_id)

    assert (await console.get(session_id)).shopper is None
