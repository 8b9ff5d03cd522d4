"""Test cards are recognised in what a generator gets, and make the local generator fail or wait."""

import asyncio
from io import BytesIO
from uuid import UUID

import pytest
from PIL import Image

from adapters.images import local
from adapters.images.cards import Card, find_card
from adapters.images.local import LocalPictureGenerator
from adapters.images.preparation import prepare_picture
from adapters.images.samples import draw_sample
from domain.errors import ProviderUnavailable, Refused
from domain.picture_ports import Picture, PictureRequest
from domain.sessions import ErrorCode
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import TRACEPARENT
from tests.support.images import encoded, no_job

JPEG = "image/jpeg"
NOT_CARDS = ("model.png", "outfit.png", "suit.png", "hat.png", "bag.png")


def prepared(data: bytes) -> Picture:
    return Picture(data=prepare_picture(data), media_type=JPEG)


def asked(*names: str, instead_of: str | None = None) -> PictureRequest:
    """A request for samples, as a worker makes it."""
    pictures = tuple(prepared(draw_sample(name)) for name in names)
    return PictureRequest(
        session_id=UUID(int=1),
        prompt="try on",
        images=pictures,
        traceparent=TRACEPARENT,
        instead_of=instead_of,
    )


def smaller_jpeg(data: bytes) -> bytes:
    file = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.resize((240, 320)).convert("RGB").save(file, "JPEG", quality=60)
    return file.getvalue()


@pytest.mark.parametrize("card", Card)
def test_card_is_recognised_however_it_was_stored(card: Card) -> None:
    """As a worker prepares it, behind another picture, and after it was made smaller and saved as a
    poor JPEG."""
    data = draw_sample(f"{card}.png")

    found = [
        find_card([prepared(data)]),
        find_card([prepared(encoded()), prepared(data)]),
        find_card([prepared(smaller_jpeg(data))]),
    ]

    assert found == [card, card, card]


@pytest.mark.parametrize("name", NOT_CARDS)
def test_other_sample_is_no_card(name: str) -> None:
    assert find_card([prepared(draw_sample(name))]) is None


def test_undecodable_picture_is_no_card() -> None:
    """Drawing it says what is wrong."""
    assert find_card([Picture(data=b"no picture", media_type=JPEG)]) is None


@pytest.mark.anyio
async def test_moderated_card_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        await LocalPictureGenerator(plays_cards=True).generate(asked("moderated.png"), no_job)

    assert refusal.value.reason == ErrorCode.MODERATION_BLOCKED


@pytest.mark.anyio
async def test_busy_card_works_at_the_third_attempt() -> None:
    """The recorded jobs count the faults: each attempt may be another process."""
    recorded: list[str] = []

    async def record(job: str) -> None:
        recorded.append(job)

    for number in range(2):
        with pytest.raises(ProviderUnavailable):
            await LocalPictureGenerator(plays_cards=True).generate(
                asked("busy.png", instead_of=recorded[-1] if recorded else None), record
            )
        assert len(recorded) == number + 1
    made = await LocalPictureGenerator(plays_cards=True).generate(
        asked("busy.png", instead_of=recorded[-1]), record
    )

    assert made.picture.media_type == JPEG
    assert len(recorded) == 2
    assert all(job.startswith("local") for job in recorded)


def test_slow_card_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only waiting moves."""

    async def at_once(function: object, *args: object) -> object:
        assert callable(function)
        return function(*args)

    async def seconds() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await LocalPictureGenerator(plays_cards=True).generate(asked("slow.png"), no_job)
        return loop.time() - began

    monkeypatch.setattr(asyncio, "to_thread", at_once)  # a thread has no virtual time
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(seconds()) == pytest.approx(local.SLOW_SECONDS)


@pytest.mark.anyio
async def test_cards_are_ordinary_pictures_unless_played() -> None:
    made = await LocalPictureGenerator().generate(asked("moderated.png"), no_job)

    assert made.picture.media_type == JPEG
