"""The sample pictures."""

from io import BytesIO

import pytest
from PIL import Image

from adapters.images.inspection import inspect_picture
from adapters.images.samples import draw_sample

NAMES = ["model.png", "outfit.png", "hat.png", "bag.png"]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", ["shoe.png", "model", "", "../model.png"])
def test_unknown_sample_raises_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        draw_sample(name)
