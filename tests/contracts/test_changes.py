"""ChangePublisherPort and ChangeFeedPort: what is published reaches those who listen."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

import pytest

from config.services import Changes
from domain.changes import Change
from domain.credits import Owner
from tests.support.examples import STORE, USER, a_session

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10


async def begun(listening: AsyncGenerator[Sequence[Change], None]) -> None:
    """Until it listens: the first item is empty."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert list(await anext(listening)) == []


async def heard(
    listening: AsyncGenerator[Sequence[Change], None], count: int
) -> list[tuple[UUID, Owner]]:
    """The next ``count`` changes."""
    found: list[tuple[UUID, Owner]] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(found) < count:
            found += [(change.session_id, change.owner) for change in await anext(listening)]
    return found


async def test_published_changes_are_heard_by_every_listener(
    changes: tuple[Changes, Changes],
) -> None:
    """The first item is empty. From then on, all that any process publishes, with its owner."""
    one, other = changes
    first, second = one.listen(), other.listen()
    await begun(first)
    await begun(second)
    sessions = [a_session(owner=owner) for owner in (USER, STORE, USER)]

    for session in sessions:
        one.publish(session)

    expected = [(session.id, session.owner) for session in sessions]
    assert sorted(await heard(first, 3), key=str) == sorted(expected, key=str)
    assert sorted(await heard(second, 3), key=str) == sorted(expected, key=str)
    await first.aclose()
    await second.aclose()


async def test_changes_before_the_first_item_are_not_heard(
    changes: tuple[Changes, Changes],
) -> None:
    one, other = changes
    early, late = a_session(), a_session()
    before = one.listen()
    await begun(before)
    other.publish(early)
    assert await heard(before, 1) == [(early.id, early.owner)]

    listening = one.listen()
    await begun(listening)
    other.publish(late)

    assert await heard(listening, 1) == [(late.id, late.owner)]
    await before.aclose()
    await listening.aclose()


async def test_publishing_without_a_listener_raises_nothing(
    changes: tuple[Changes, Changes],
) -> None:
    one, other = changes
    listening = one.listen()
    await begun(listening)
    await listening.aclose()
    other.publish(a_session())

    again, session = one.listen(), a_session()
    await begun(again)
    other.publish(session)

    while (session.id, session.owner) not in await heard(again, 1):
        pass  # The earlier one may be late.
    await again.aclose()
