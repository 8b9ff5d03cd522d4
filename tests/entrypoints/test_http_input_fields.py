"""Every field of a session's input travels from the request to the database and back.

The fields are discovered: a new one makes these tests fail until the HTTP schema has it.
"""

from dataclasses import fields
from typing import Any

import msgspec
import pytest

from domain.sessions import GenerationInput
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import STORE
from tests.support.filling import filled
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

INPUT = filled(GenerationInput)
BODY = msgspec.json.decode(msgspec.json.encode(INPUT))


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.mark.parametrize("chunks", [1, 2], ids=["fast path", "framework"])
async def test_request_fills_every_field_of_the_input(chunks: int) -> None:
    """The session's input equals the body. A body in pieces leaves the fast path."""
    api = Api()
    await api.service.accounts.grant(STORE, 1, note="test")
    body = msgspec.json.encode(BODY)

    answer = await api.submit(owner=STORE, body=body if chunks == 1 else [body[:9], body[9:]])

    assert answer.status == 202
    (session,) = await api.service.sessions()
    assert session.input == INPUT


@pytest.mark.parametrize("name", [field.name for field in fields(GenerationInput)])
async def test_response_shows_every_field_of_the_input(name: str) -> None:
    """Alone and in a list, as the request had it."""
    api = Api()
    session = (await api.service.submitted(STORE, input=INPUT)).session

    shown = (await api.get(f"{GENERATIONS}/{session.id}", owner=STORE)).data
    (listed,) = (await api.get(GENERATIONS, owner=STORE)).data["items"]

    assert (shown[name], listed[name]) == (BODY[name], BODY[name])
