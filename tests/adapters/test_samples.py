"""The sample pictures."""

from io import BytesIO

import pytest
from PIL import Image

from adapters.images.inspection import inspect_picture
from adapters.images.preparation import prepare_picture
from adapters.images.samples import draw_sample
from domain.errors import Refused
from domain.sessions import ErrorCode

NAMES = ["model.png", "outfit.png", "suit.png", "hat.png", "bag.png"]
CARDS = ["slow.png", "busy.png", "moderated.png"]


@pytest.mark.parametrize("name", [*NAMES, *CARDS])
def test_sample_is_a_valid_input(name: str) -> None:
    """A PNG that passes the inspection and has more than a few colours."""
    picture = inspect_picture(draw_sample(name))

    with Image.open(BytesIO(picture.data)) as image:
        colors = image.getcolors(image.width * image.height)
    assert picture.media_type == "image/png"
    assert colors is not None
    assert len(colors) > 10


def test_samples_are_distinct_and_reproducible() -> None:
    """Each has the same bytes every time, and is drawn once."""
    drawn = [draw_sample(name) for name in NAMES]
    again = [draw_sample.__wrapped__(name) for name in NAMES]

    assert drawn == again
    assert len(set(drawn)) == len(NAMES)
    assert all(draw_sample(name) is data for name, data in zip(NAMES, drawn, strict=True))


def test_broken_sample_is_recognised_only_by_decoding() -> None:
    """Its header is valid, so an upload of it is accepted as well."""
    data = draw_sample("broken.png")

    with pytest.raises(Refused) as refusal:
        prepare_picture(data)
    assert inspect_picture(data).media_type == "image/png"
    assert refusal.value.reason == ErrorCode.INVALID_IMAGE


@pytest.mark.parametrize("name", ["gone.png", "shoe.png", "model", "", "../model.png"])
def test_unknown_sample_raises_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        draw_sample(name)
