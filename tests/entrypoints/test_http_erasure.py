"""DELETE /generations/{id}/picture, and what all other calls show of an erased session."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.callers import Caller, Shopper
from domain.credits import Owner
from domain.errors import StorageUnavailable
from domain.picture_ports import Picture
from domain.plans import TokenBudget
from domain.sessions import GenerationSession
from tests.support.examples import HAT, LEASE, OTHER, STORE, USER
from tests.support.http import GENERATIONS, Answer, Api

pytestmark = pytest.mark.anyio

JPEG = Picture(data=b"a picture", media_type="image/jpeg")


@pytest.fixture
def api() -> Api:
    return Api()


async def completed(api: Api, owner: Owner = USER, **changes: Any) -> GenerationSession:
    """A session with a picture in the storage from which the API serves."""
    session_id = (await api.service.submitted(owner, accessories=(HAT,), **changes)).session.id
    session = await api.service.claimed(session_id)
    picture = await api.storage.save(session.object_prefix, JPEG)
    assert await api.service.repo.complete(session.id, attempt=1, picture=picture)
    return await api.service.session(session.id)


async def erase(api: Api, session_id: object, owner: Owner | None = USER) -> Answer:
    path = f"{GENERATIONS}/{session_id}/picture"
    return await api.call("DELETE", path, owner=owner, content_type=None)


@pytest.mark.parametrize("owner", [USER, STORE], ids=str)
async def test_session_is_erased(api: Api, owner: Owner) -> None:
    """200 with the session: its picture has expired, its links and prompt are null, all else is as
    before. A repetition and every read say the same."""
    session = await completed(api, owner)
    before = (await api.get(f"{GENERATIONS}/{session.id}", owner=owner)).data

    answer = await erase(api, session.id, owner)
    again = await erase(api, session.id, owner)

    assert (answer.status, again.status) == (200, 200)
    erased = answer.data
    assert erased["erased_at"].endswith("Z")
    assert erased == before | {
        "model_image_url": None,
        "outfit_image_url": None,
        "accessories": [],
        "prompt": None,
        "generated_image_url": None,
        "image_expired": True,
        "erased_at": erased["erased_at"],
    }
    (listed,) = (await api.get(GENERATIONS, owner=owner)).data["items"]
    read = (await api.get(f"{GENERATIONS}/{session.id}", owner=owner)).data
    assert again.data == listed == read == erased


async def test_old_link_to_an_erased_picture_is_dead(api: Api) -> None:
    """At once, although its signature is still valid."""
    session = await completed(api)
    link = (await api.get(f"{GENERATIONS}/{session.id}")).data["generated_image_url"]
    target = link.removeprefix("http://127.0.0.1:8000")
    before = await api.get(target, owner=None)

    await erase(api, session.id)

    assert before.status == 200
    assert (await api.get(target, owner=None)).error == (404, "NOT_FOUND")


async def test_failed_session_is_erased(api: Api) -> None:
    """It never had a picture, so none has expired."""
    session_id = (await api.service.submitted()).session.id
    await api.cancel(session_id)

    answer = await erase(api, session_id)

    assert (answer.status, answer.data["image_expired"]) == (200, False)
    assert answer.data["model_image_url"] is None
    assert answer.data["error_code"] == "CANCELLED"


async def test_unfinished_session_is_a_conflict(api: Api) -> None:
    """409 while it is queued or worked on."""
    session_id = (await api.service.submitted()).session.id
    queued = await erase(api, session_id)
    await api.service.repo.claim(session_id, lease=LEASE)

    assert queued.error == (await erase(api, session_id)).error == (409, "CONFLICT")


async def test_other_sessions_do_not_exist(api: Api) -> None:
    """Another owner's, an unknown one and a malformed id are answered alike."""
    session = await completed(api)

    answers = [
        await erase(api, session.id, OTHER),
        await erase(api, uuid4(), OTHER),
        await erase(api, "x", OTHER),
    ]

    assert {answer.error for answer in answers} == {(404, "NOT_FOUND")}
    assert len({answer.body for answer in answers}) == 1
    assert (await erase(api, session.id, owner=None)).status == 401
    assert await api.service.session(session.id) == session


async def test_storage_that_is_away_is_503(api: Api) -> None:
    """With Retry-After; nothing claims to be erased."""
    session = await completed(api)
    api.storage.faults.away.add("delete")

    answer = await erase(api, session.id)

    assert answer.error == (503, StorageUnavailable.code)
    assert "retry-after" in answer.headers
    assert (await api.get(f"{GENERATIONS}/{session.id}")).data["erased_at"] is None


async def test_replay_of_an_erased_session(api: Api) -> None:
    """202 with that session, whatever the body says; nothing is charged."""
    session = await completed(api, idempotency_key="k")
    await erase(api, session.id)
    body = {"model_image_url": "https://pictures.example/another.jpg"}

    answer = await api.submit(body=body, headers=[("idempotency-key", "k")])

    assert (answer.status, answer.data["session_id"]) == (202, str(session.id))
    assert answer.headers["idempotency-replayed"] == "true"
    assert len(await api.service.sessions()) == 1


async def test_shopper_erases_own_sessions_from_the_shop(
    monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """And still sees them. Another shopper's does not exist."""
    origin = "https://shop.example"
    ann, bob = [a_shopper(api, shopper_id, origin) for shopper_id in ("ann", "bob")]
    mine = await completed(api, STORE, caller=ann)
    other = await completed(api, STORE, caller=bob)
    key = await api.token(STORE)

    async def caller_of(_: str) -> Caller:
        return ann

    monkeypatch.setattr(api.keys, "caller_of", caller_of)
    headers = [("authorization", f"Bearer {key}"), ("origin", origin)]

    async def erase_as_ann(session_id: object) -> Answer:
        path = f"{GENERATIONS}/{session_id}/picture"
        return await api.call("DELETE", path, owner=None, content_type=None, headers=headers)

    answers = [await erase_as_ann(mine.id), await erase_as_ann(mine.id)]
    refused = await erase_as_ann(other.id)

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[1].data["erased_at"] is not None
    assert refused.error == (404, "NOT_FOUND")
    assert await api.service.session(other.id) == other


def a_shopper(api: Api, shopper_id: str, origin: str) -> Caller:
    """With a client token for that origin."""
    shopper = Shopper(id=shopper_id, token_id=uuid4())
    expires_at = api.service.clock.now() + timedelta(minutes=9)
    api.service.repo.budgets[shopper.token_id] = TokenBudget(
        store_id=STORE.id, shopper_id=shopper_id, pictures=3, expires_at=expires_at
    )
    return Caller(owner=STORE, shopper=shopper, origins=frozenset({origin}))
