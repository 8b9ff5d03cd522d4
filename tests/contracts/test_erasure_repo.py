"""ErasureRepoPort: final sessions lose their personal data, and nothing else."""

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.errors import IllegalTransition
from domain.ports import Position
from domain.sessions import GenerationInput, GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAULT, MANY, OTHER, STORE, USER, a_session, picture_of
from tests.support.filling import filled

pytestmark = pytest.mark.anyio

INPUT = filled(GenerationInput)
LINK = "https://elsewhere.example/picture.png"
KEPT = {"age_verified"}
"""The fields of an input that are no personal data."""


async def completed(backend: Backend, **changes: Any) -> GenerationSession:
    """A session with everything that erasure takes: links, prompt, job, an external link, faults.
    Its first attempt failed."""
    session_id = (await backend.created(STORE, input=INPUT, **changes)).session.id
    await backend.claim(session_id)
    await backend.attempts.release(session_id, attempt=1, delay=timedelta(0), fault=FAULT)
    await backend.claim(session_id)
    assert await backend.attempts.record_job(session_id, attempt=2, job="job-1")
    picture = picture_of(session_id, STORE)
    assert await backend.attempts.complete(session_id, attempt=2, picture=picture)
    await backend.external_write(session_id, generated_image_url=LINK)
    return await backend.get(session_id)


async def erased(backend: Backend, **changes: Any) -> GenerationSession:
    session = await completed(backend, **changes)
    assert await backend.erasure.erase([session.id]) == 1
    return await backend.get(session.id)


async def test_links_prompt_job_and_faults_go(backend: Backend) -> None:
    """Every field of the input that is personal data. A new field is, unless KEPT has it."""
    session = await erased(backend)

    left = {
        field.name
        for field in fields(GenerationInput)
        if getattr(session.input, field.name) == getattr(INPUT, field.name)
    }
    assert left == KEPT
    assert not any(session.input.image_urls)
    assert (session.input.prompt, session.input.accessories) == ("", ())
    assert (session.generated_image_url, session.provider_job) == (None, None)
    assert await backend.reads.attempt_faults(session.id) == []


async def test_all_else_stays(backend: Backend) -> None:
    """Who paid, when, how it ended, where its picture was, and that the age was verified."""
    before = await completed(backend)
    ledger = await backend.ledger(STORE)
    account = await backend.credits.account(STORE)

    await backend.erasure.erase([before.id])

    after = await backend.get(before.id)
    assert after.erased_at is not None
    assert replace(
        after,
        input=before.input,
        provider_job=before.provider_job,
        generated_image_url=before.generated_image_url,
        erased_at=None,
    ) == before  # fmt: skip
    assert await backend.ledger(STORE) == ledger
    assert await backend.credits.account(STORE) == account


async def test_books_balance_after_an_erasure(backend: Backend) -> None:
    """Also for a picture of which only an external consumer's link was known."""
    external = await backend.set_externally("completed", STORE)
    await backend.external_write(external, generated_image_url=LINK)
    failed = await backend.finished(SessionStatus.FAILED)

    assert await backend.erasure.erase([external, failed.id]) == 2

    assert await backend.credits.audit(limit=9) == []
    assert await backend.money_of(failed.id) == ["debit", "refund"]


async def test_unfinished_and_unknown_sessions_are_left_alone(backend: Backend) -> None:
    """They are named without an error, and are not counted."""
    ids = await backend.in_every_status()
    before = {name: await backend.get(session_id) for name, session_id in ids.items()}

    count = await backend.erasure.erase([*ids.values(), UUID(int=0)])

    after = {name: await backend.get(session_id) for name, session_id in ids.items()}
    changed = {name for name in ids if after[name] != before[name]}
    assert changed == {"completed", "completed externally", "failed"}
    assert count == 3
    assert await backend.erasure.erase([]) == 0


async def test_repetition_changes_nothing(backend: Backend) -> None:
    """Neither with nor without the shoppers: the time of the erasure is the first one's."""
    session = await erased(backend)

    counts = [
        await backend.erasure.erase([session.id], with_shopper=with_shopper)
        for with_shopper in (False, True)
    ]

    assert counts == [0, 0]
    assert await backend.get(session.id) == session


async def test_replay_of_an_erased_session_is_that_session(backend: Backend) -> None:
    """Whatever it asks for: what was asked for is gone. Nothing is charged, and the key is taken
    for ever."""
    session = await erased(backend, idempotency_key="k")
    ledger = await backend.ledger(STORE)
    other = a_session(owner=STORE, idempotency_key="k", prompt="another")

    created = await backend.sessions.create(other, max_active=MANY)
    found = await backend.sessions.find_replay(other)

    assert found is not None
    assert (created.session, found.session) == (session, session)
    assert created.replayed
    assert await backend.ledger(STORE) == ledger


@pytest.mark.parametrize("name", ["model_image_url", "prompt"])
async def test_erased_data_cannot_be_restored(backend: Backend, name: str) -> None:
    """Not the input, and not a link that an external consumer writes late."""
    session = await erased(backend)

    with pytest.raises(IllegalTransition):
        await backend.external_write_input(session.id, name, getattr(INPUT, name))
    with pytest.raises(IllegalTransition):
        await backend.external_write(session.id, generated_image_url=LINK)

    assert await backend.get(session.id) == session


async def test_pictures_of_erased_sessions_are_deleted_once_more(backend: Backend) -> None:
    """By recovery, at the end of their lifetime: an attempt that had lost its lease may have saved
    one after the erasure."""
    session = await erased(backend)
    await backend.advance(timedelta(days=31))
    age = timedelta(days=30)

    claimed = await backend.recovery.claim_expired_images(
        older_than=age, again_after=timedelta(minutes=5), limit=9
    )
    marked = await backend.recovery.mark_images_deleted([session.id])

    assert [found.id for found in claimed] == [session.id]
    assert marked == 1
    assert (await backend.get(session.id)).image_expired


async def test_sessions_of_an_owner_come_in_pages(backend: Backend) -> None:
    """Newest first, in every status, each once; those of others do not come."""
    ids = [await backend.queued(USER) for _ in range(5)]
    await backend.queued(OTHER)

    pages: list[list[UUID]] = []
    after: Position | None = None
    while True:
        page = await backend.erasure.sessions_of(USER, shopper=None, limit=2, after=after)
        pages.append([session.id for session in page])
        if not page:
            break
        assert page == [await backend.get(session.id) for session in page]
        after = Position(created_at=page[-1].created_at, id=page[-1].id)

    assert [*map(len, pages)] == [2, 2, 1, 0]
    newest = await backend.reads.history(USER, status=None, limit=9, after=None)
    assert [id_ for page in pages for id_ in page] == [session.id for session in newest]
    assert {session.id for session in newest} == set(ids)
