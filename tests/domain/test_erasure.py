"""Erasing one session, or all that is stored of an owner: complete, repeatable, and true."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.erasure.memory import InMemoryErasureRepo
from adapters.images.inputs import upload_key
from domain.callers import Caller, Shopper
from domain.credits import Channel, LedgerKind, Owner
from domain.erasure import BATCH, Erasure, ErasureReport
from domain.errors import (
    Conflict,
    DatabaseUnavailable,
    IllegalTransition,
    NotFound,
    StorageUnavailable,
)
from domain.plans import TokenBudget
from domain.sessions import GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from domain.uploads import shopper_folder, upload_folder
from tests.support.examples import FAULT, LEASE, OTHER, STORE, USER, a_request
from tests.support.service import INPUTS, Service
from tests.support.webhooks import added

pytestmark = pytest.mark.anyio

NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
PICTURE = b"a picture of a person"


class FlakyErasureRepo(InMemoryErasureRepo):
    """Rejects the change of a session in ``unsound``."""

    unsound: frozenset[UUID] = frozenset()
    is_away = False

    async def erase(self, session_ids: Any, *, with_shopper: bool = False) -> int:
        if self.is_away:
            raise DatabaseUnavailable("away")
        if self.unsound & set(session_ids):
            raise IllegalTransition("a row that breaks a rule")
        return await super().erase(session_ids, with_shopper=with_shopper)


class Eraser:
    """A service whose owners' data are erased."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.repo = FlakyErasureRepo(service.repo)
        self.recorded = 0
        self.erasure = Erasure(
            repo=self.repo,
            sessions=service.repo,
            reads=service.repo,
            letters=service.queue,
            storage=service.storage,
            uploads=service.storage,
            webhooks=service.webhooks,
            upload_key=lambda url: upload_key(url, service.storage),
        )

    async def owner(self, owner: Owner = USER) -> ErasureReport:
        return await self.erasure.erase_owner(owner, record=self._record)

    async def _record(self) -> None:
        self.recorded += 1

    async def uploaded(self, owner: Owner = USER, *, shopper: str | None = None) -> str:
        """The link of a picture that ``owner``, or one of its shoppers, stored with us."""
        folder = upload_folder(owner, self.service.clock.now().date())
        if shopper is not None:
            folder = shopper_folder(folder, shopper)
        key = f"{folder}/{uuid4()}.jpg"
        assert await self.service.storage.keep_upload(key, PICTURE)
        link = self.service.storage.url(key)
        self.service.fetcher.pictures[link] = next(iter(INPUTS.values()))
        return link

    async def completed(self, owner: Owner = USER, **changes: Any) -> GenerationSession:
        """A session that a worker completed with a stored picture."""
        session_id = (await self.service.submitted(owner, **changes)).session.id
        await self.service.work()
        session = await self.service.session(session_id)
        assert session.status is SessionStatus.COMPLETED
        return session

    async def is_stored(self, link: str) -> bool:
        """Whether an upload is still there."""
        key = upload_key(link, self.service.storage)
        assert key is not None
        folder = key.rpartition("/")[0]
        return await self.service.storage.count_uploads(folder, limit=9) > 0

    async def has_picture(self, session: GenerationSession) -> bool:
        return await self.service.storage.find(session.object_prefix) is not None


@pytest.fixture
def eraser(service: Service) -> Eraser:
    return Eraser(service)


async def test_session_loses_picture_uploads_links_and_prompt(eraser: Eraser) -> None:
    """At once; what it cost and when it ended stay."""
    link = await eraser.uploaded(STORE)
    session = await eraser.completed(STORE, model_image_url=link, prompt="wear it")

    erased = await eraser.erasure.erase_session(session.id, Caller(owner=STORE))

    assert erased == await eraser.service.session(session.id)
    assert (erased.erased_at is not None, erased.image_expired) == (True, True)
    assert (erased.input.model_image_url, erased.input.prompt) == ("", "")
    assert not await eraser.has_picture(session)
    assert not await eraser.is_stored(link)
    assert erased.completed_at == session.completed_at
    assert eraser.service.money_of(session.id) == [LedgerKind.DEBIT]
    assert await eraser.service.accounts.audit(limit=9) == []


async def test_uploads_of_others_stay(eraser: Eraser) -> None:
    """A session's link may lead to another owner's upload, as its owner would have found out by
    its failure."""
    links = [await eraser.uploaded(owner) for owner in (OTHER, NAMESAKE)]
    session = await eraser.completed(model_image_url=links[0], outfit_image_url=links[1])

    await eraser.erasure.erase_session(session.id, Caller(owner=USER))

    assert [await eraser.is_stored(link) for link in links] == [True, True]


async def test_unfinished_session_is_not_erased(eraser: Eraser) -> None:
    """Neither queued nor being worked on: its pictures are needed still."""
    link = await eraser.uploaded()
    session_id = (await eraser.service.submitted(model_image_url=link)).session.id

    with pytest.raises(Conflict):
        await eraser.erasure.erase_session(session_id, Caller(owner=USER))
    await eraser.service.claimed(session_id)
    with pytest.raises(Conflict):
        await eraser.erasure.erase_session(session_id, Caller(owner=USER))

    assert await eraser.is_stored(link)
    assert (await eraser.service.session(session_id)).erased_at is None


@pytest.mark.parametrize("owner", [OTHER, NAMESAKE], ids=str)
async def test_others_cannot_erase_a_session(eraser: Eraser, owner: Owner) -> None:
    """They are told that there is none."""
    session = await eraser.completed()

    with pytest.raises(NotFound):
        await eraser.erasure.erase_session(session.id, Caller(owner=owner))

    assert await eraser.has_picture(session)


@pytest.mark.parametrize("method", ["delete", "delete_uploads"])
async def test_nothing_counts_as_erased_without_the_storage(eraser: Eraser, method: str) -> None:
    """The session stays as it was, and a repetition erases it."""
    link = await eraser.uploaded()
    session = await eraser.completed(model_image_url=link)
    eraser.service.storage.faults.away.add(method)

    with pytest.raises(StorageUnavailable):
        await eraser.erasure.erase_session(session.id, Caller(owner=USER))
    assert await eraser.service.session(session.id) == session

    eraser.service.storage.faults.clear()
    assert (
        await eraser.erasure.erase_session(session.id, Caller(owner=USER))
    ).erased_at is not None


async def test_crash_between_storage_and_database_is_repaired_by_a_repetition(
    eraser: Eraser,
) -> None:
    """The picture is gone, and the links are still there to delete the uploads again."""
    session = await eraser.completed(model_image_url=await eraser.uploaded())
    eraser.repo.is_away = True
    with pytest.raises(DatabaseUnavailable):
        await eraser.erasure.erase_session(session.id, Caller(owner=USER))
    assert await eraser.service.session(session.id) == session

    eraser.repo.is_away = False
    erased = await eraser.erasure.erase_session(session.id, Caller(owner=USER))

    assert erased.erased_at is not None
    assert not await eraser.has_picture(session)


async def test_repetition_returns_the_erased_session(eraser: Eraser) -> None:
    """Also while the storage is away: there is nothing left to delete."""
    session = await eraser.completed()
    first = await eraser.erasure.erase_session(session.id, Caller(owner=USER))
    eraser.service.storage.faults.away |= {"delete", "delete_uploads"}

    assert await eraser.erasure.erase_session(session.id, Caller(owner=USER)) == first


async def test_picture_saved_after_the_erasure_is_deleted_by_recovery(eraser: Eraser) -> None:
    """By an attempt that had lost its lease, at the end of the pictures' lifetime."""
    session = await eraser.completed()
    await eraser.erasure.erase_session(session.id, Caller(owner=USER))
    await eraser.service.storage.save(session.object_prefix, next(iter(INPUTS.values())))
    eraser.service.clock.advance(timedelta(days=31))

    report = await eraser.service.recover()

    assert report.pictures_deleted == 1
    assert not await eraser.has_picture(session)


async def test_replay_of_an_erased_session_returns_it(eraser: Eraser) -> None:
    """Not 422, although the request does not say the same, and no second session."""
    session = await eraser.completed(idempotency_key="k", outfit_image_url=None)
    await eraser.erasure.erase_session(session.id, Caller(owner=USER))

    receipt = await eraser.service.submission.submit(a_request(idempotency_key="k"))

    assert (receipt.replayed, receipt.session.id) == (True, session.id)
    assert len(await eraser.service.sessions()) == 1
    assert eraser.service.waiting() == []


def a_shopper(eraser: Eraser, shopper_id: str) -> Shopper:
    """With a client token."""
    shopper = Shopper(id=shopper_id, token_id=uuid4())
    eraser.service.repo.budgets[shopper.token_id] = TokenBudget(
        store_id=STORE.id,
        shopper_id=shopper.id,
        pictures=3,
        expires_at=eraser.service.clock.now() + timedelta(minutes=9),
    )
    return shopper


async def test_shopper_deletes_its_own_uploads(eraser: Eraser) -> None:
    """With the session that used them; those of other shoppers stay."""
    ann = Caller(owner=STORE, shopper=a_shopper(eraser, "ann"))
    mine = await eraser.uploaded(STORE, shopper="ann")
    others = await eraser.uploaded(STORE, shopper="bob")
    session = await eraser.completed(STORE, caller=ann, model_image_url=mine)

    await eraser.erasure.erase_session(session.id, ann)

    assert (await eraser.is_stored(mine), await eraser.is_stored(others)) == (False, True)


async def test_uploads_of_an_erased_shopper_go(eraser: Eraser) -> None:
    """All of them, used or not. The store and its other shoppers keep theirs."""
    a_shopper(eraser, "ann")
    mine = await eraser.uploaded(STORE, shopper="ann")
    others = [await eraser.uploaded(STORE, shopper="bob"), await eraser.uploaded(STORE)]

    report = await eraser.erasure.erase_owner(STORE, shopper="ann", record=eraser._record)

    assert (report.shoppers, report.uploads) == (1, 1)
    assert not await eraser.is_stored(mine)
    assert [await eraser.is_stored(link) for link in others] == [True, True]


async def test_shopper_deletes_no_upload_of_the_store(eraser: Eraser) -> None:
    """An outfit that the store uploaded is worn by other shoppers as well."""
    outfit, ann = await eraser.uploaded(STORE), a_shopper(eraser, "ann")
    caller = Caller(owner=STORE, shopper=ann)
    session = await eraser.completed(STORE, caller=caller, outfit_image_url=outfit)

    erased = await eraser.erasure.erase_session(session.id, caller)

    assert erased.erased_at is not None
    assert await eraser.is_stored(outfit)


async def test_client_tokens_go_before_the_sessions(eraser: Eraser) -> None:
    """So that a shopper's browser makes no new ones meanwhile."""
    ann = a_shopper(eraser, "ann")
    session = await eraser.completed(STORE, caller=Caller(owner=STORE, shopper=ann))
    eraser.service.storage.faults.away.add("delete")

    with pytest.raises(StorageUnavailable):
        await eraser.owner(STORE)

    assert ann.token_id not in eraser.service.repo.budgets
    assert await eraser.service.session(session.id) == session
    eraser.service.storage.faults.clear()
    assert (await eraser.owner(STORE)).erased == 1
    assert (await eraser.service.session(session.id)).shopper is None


async def test_shoppers_erase_their_own_sessions_only(eraser: Eraser) -> None:
    """With any of their client tokens. Sessions of other shoppers and of the store itself do not
    exist for them; the session stays theirs."""
    ann, bob = a_shopper(eraser, "ann"), a_shopper(eraser, "bob")
    mine = await eraser.completed(STORE, caller=Caller(owner=STORE, shopper=ann))
    others = [
        await eraser.completed(STORE, caller=Caller(owner=STORE, shopper=bob)),
        await eraser.completed(STORE),
    ]
    another_token = replace(ann, token_id=UUID(int=3))

    for other in others:
        with pytest.raises(NotFound):
            await eraser.erasure.erase_session(other.id, Caller(owner=STORE, shopper=ann))
    erased = await eraser.erasure.erase_session(mine.id, Caller(owner=STORE, shopper=another_token))

    assert (erased.erased_at is not None, erased.shopper) == (True, ann)
    assert [await eraser.has_picture(other) for other in others] == [True, True]


async def test_owner_loses_everything_and_keeps_the_books(eraser: Eraser) -> None:
    """Pictures, uploads used and unused, links, prompts. Others lose nothing."""
    unused = await eraser.uploaded()
    sessions = [await eraser.completed() for _ in range(3)]
    other = await eraser.completed(OTHER)
    balance = eraser.service.balance()

    report = await eraser.owner()

    assert report == ErasureReport(erased=3, uploads=1)
    assert report.is_complete
    for session in sessions:
        assert (await eraser.service.session(session.id)).erased_at is not None
        assert not await eraser.has_picture(session)
    assert not await eraser.is_stored(unused)
    assert await eraser.service.session(other.id) == other
    assert eraser.service.balance() == balance
    assert await eraser.service.accounts.audit(limit=9) == []


async def test_queued_sessions_are_cancelled_and_erased(eraser: Eraser) -> None:
    """With their refund. No worker makes a picture for the task that is left in the queue."""
    session_id = (await eraser.service.submitted()).session.id

    report = await eraser.owner()

    session = await eraser.service.session(session_id)
    assert report == ErasureReport(erased=1, cancelled=1)
    assert session.failure is not None
    assert (session.status, session.failure.code) == (SessionStatus.FAILED, "CANCELLED")
    assert eraser.service.money_of(session_id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    assert await eraser.service.work() == "skipped"


async def test_sessions_in_progress_are_reported(eraser: Eraser) -> None:
    """They go on, and a repetition erases them once they have ended."""
    session_id = (await eraser.service.submitted()).session.id
    await eraser.service.claimed(session_id)

    first = await eraser.owner()
    await eraser.service.repo.release(session_id, attempt=1, delay=LEASE, fault=FAULT)
    second = await eraser.owner()

    assert (first, first.is_complete) == (ErasureReport(unfinished=1), False)
    assert second == ErasureReport(erased=1, cancelled=1)


async def test_repetition_goes_on_where_a_run_stopped(eraser: Eraser) -> None:
    """More sessions than a batch has, and one picture that the storage does not delete: those
    before it and beside it are erased."""
    for _ in range(BATCH + 2):
        await eraser.completed()
    oldest = (await eraser.service.sessions())[-1]
    eraser.service.storage.faults.away.add(f"delete {oldest.object_prefix}")
    with pytest.raises(StorageUnavailable):
        await eraser.owner()
    erased = [s for s in await eraser.service.sessions() if s.erased_at is not None]
    eraser.service.storage.faults.clear()

    report = await eraser.owner()

    assert (len(erased), report) == (BATCH + 1, ErasureReport(erased=1))


async def test_one_rejected_session_keeps_no_other(eraser: Eraser) -> None:
    """It is reported by its id."""
    sessions = [await eraser.completed() for _ in range(3)]
    eraser.repo.unsound = frozenset({sessions[1].id})

    report = await eraser.owner()

    assert report == ErasureReport(erased=2, rejected=(sessions[1].id,))
    assert not report.is_complete


async def test_dead_letters_of_erased_sessions_are_discarded(eraser: Eraser) -> None:
    """They are tasks with links and prompt. Those of others stay."""
    mine, others = await eraser.completed(), await eraser.completed(OTHER)
    for session in (mine, others):
        task = GenerationTask.of(session, task_id=session.id)
        await eraser.service.queue.bury(task, reason="test")

    report = await eraser.owner()

    assert report.dead_letters == 1
    (left,) = await eraser.service.queue.dead(limit=9)
    assert left.session_id == others.id


async def test_erasure_is_recorded_before_anything_is_erased(eraser: Eraser) -> None:
    """Without the entry in the audit log nothing happens."""
    session = await eraser.completed()

    async def refuse() -> None:
        raise DatabaseUnavailable("away")

    with pytest.raises(DatabaseUnavailable):
        await eraser.erasure.erase_owner(USER, record=refuse)
    assert await eraser.service.session(session.id) == session

    await eraser.owner()
    assert eraser.recorded == 1


async def test_owners_webhooks_are_erased_first(eraser: Eraser) -> None:
    """Endpoints, secrets and deliveries: no one is told of what is erased. Others keep theirs."""
    hooks = eraser.service.webhooks
    endpoint, other = await added(hooks, USER), await added(hooks, STORE)
    await eraser.service.submitted()
    await hooks.add_test(uuid4(), endpoint.id, USER)

    report = await eraser.owner(USER)

    assert (report.webhooks, report.cancelled) == (2, 1)
    assert await hooks.all(USER) == []
    assert await hooks.all(STORE) == [other]
    assert hooks._deliveries == {}


async def test_erasing_a_shopper_leaves_the_stores_webhooks(eraser: Eraser) -> None:
    endpoint = await added(eraser.service.webhooks, STORE)

    await eraser.erasure.erase_owner(STORE, shopper="shopper-1", record=eraser._record)

    assert await eraser.service.webhooks.all(STORE) == [endpoint]
