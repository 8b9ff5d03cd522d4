"""``prepare_picture`` makes a plain JPEG of whatever strangers send, or says why not."""

import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageCms

from adapters.images.preparation import MAX_SIDE, prepare_picture
from domain.errors import Refused
from domain.sessions import ErrorCode
from tests.adapters.hostile import (
    ACCEPTED,
    REFUSED,
    chunk,
    header,
    jpeg_segments,
    oriented,
    png,
)
from tests.support.images import encoded

Color = tuple[int, ...]

_PLAIN_MARKERS = {0xE0, 0xDB, 0xC0, 0xC4}
"""JFIF, tables and frame: what a JPEG cannot be without."""


def prepared(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(prepare_picture(data)))
    image.load()
    return image


def assert_shows(image: Image.Image, color: Color, at: tuple[int, int] = (5, 5)) -> None:
    """The pixel has this colour, or one that JPEG made of it."""
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= 6 for a, b in zip(found, color, strict=True)), found


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused(data: bytes) -> None:
    """As an invalid image, in words that tell nothing of us."""
    with pytest.raises(Refused) as refusal:
        prepare_picture(data)

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_odd_pictures_come_out_plain(data: bytes) -> None:
    """Nothing comes out but the pixels: no place, no owner, no comment, no passenger."""
    plain = prepare_picture(data)

    assert set(jpeg_segments(plain)) <= _PLAIN_MARKERS
    assert b"secret" not in plain
    assert plain.endswith(b"\xff\xd9")
    with Image.open(BytesIO(plain)) as image:
        assert (image.format, image.mode, dict(image.getexif())) == ("JPEG", "RGB", {})


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(image_format: str, orientation: int) -> None:
    """All eight ways in which a camera may store a picture."""
    image = prepared(oriented(image_format, orientation))

    assert image.size == (40, 20)
    assert_shows(image, (254, 0, 0), at=(4, 4))
    for corner in ((36, 4), (4, 16), (36, 16)):
        assert_shows(image, (0, 0, 254), at=corner)


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        ((16, 16), (16, 16)),
        ((1_024, 1_024), (1_024, 1_024)),
        ((1_025, 800), (1_024, 799)),
        ((4_000, 3_000), (1_024, 768)),
        ((3_000, 4_000), (768, 1_024)),
        ((2_048, 32), (1_024, 16)),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_the_longer_side_is_bounded(
    image_format: str, size: tuple[int, int], becomes: tuple[int, int]
) -> None:
    """Large pictures keep their shape, small ones their size."""
    image = prepared(encoded(image_format, size=size))

    assert image.size == becomes
    assert max(image.size) <= MAX_SIDE


@pytest.mark.parametrize(
    ("image_format", "mode", "color", "shown"),
    [
        pytest.param("PNG", "RGB", (220, 30, 30), (220, 30, 30), id="rgb"),
        pytest.param("PNG", "RGBA", (220, 30, 30, 255), (220, 30, 30), id="opaque"),
        pytest.param("PNG", "RGBA", (220, 30, 30, 0), (255, 255, 255), id="transparent"),
        pytest.param("PNG", "RGBA", (0, 0, 0, 128), (127, 127, 127), id="half transparent"),
        pytest.param("WEBP", "RGBA", (220, 30, 30, 0), (255, 255, 255), id="transparent webp"),
        pytest.param("WEBP", "RGB", (220, 30, 30), (220, 30, 30), id="webp"),
        pytest.param("PNG", "1", 1, (255, 255, 255), id="one bit"),
        pytest.param("PNG", "L", 90, (90, 90, 90), id="grey"),
        pytest.param("PNG", "LA", (90, 255), (90, 90, 90), id="grey with alpha"),
        pytest.param("PNG", "LA", (90, 0), (255, 255, 255), id="transparent grey"),
        pytest.param("PNG", "I;16", 90 * 257, (90, 90, 90), id="16 bits of grey"),
        pytest.param("JPEG", "L", 90, (90, 90, 90), id="grey jpeg"),
        pytest.param("JPEG", "CMYK", (0, 200, 200, 0), (255, 55, 55), id="cmyk"),
    ],
)
def test_all_kinds_of_pixels_show_their_colour(
    image_format: str, mode: str, color: Any, shown: Color
) -> None:
    """On white where they are transparent."""
    image = prepared(encoded(image_format, mode=mode, color=color))

    assert_shows(image, shown)


def test_sixteen_bits_of_colour_are_scaled() -> None:
    """Not cut off."""
    pixel = (220 * 257).to_bytes(2) + (30 * 257).to_bytes(2) * 2
    pixels = (b"\0" + pixel * 32) * 32
    image = prepared(png(header(32, 32, depth=16), chunk(b"IDAT", compressed(pixels))))

    assert_shows(image, (220, 30, 30))


def compressed(data: bytes) -> bytes:
    squeeze = zlib.compressobj()
    return squeeze.compress(data) + squeeze.flush()


def test_a_palette_is_looked_up() -> None:
    """A PNG of few colours holds numbers, not colours; one of them may be transparent."""
    picture = Image.new("P", (32, 48), 1)
    picture.putpalette([220, 30, 30, 30, 160, 30])
    picture.paste(0, (0, 0, 32, 24))
    file = BytesIO()
    picture.save(file, "PNG", transparency=0)

    image = prepared(file.getvalue())

    assert_shows(image, (255, 255, 255))
    assert_shows(image, (30, 160, 30), at=(5, 40))


def test_colours_become_srgb() -> None:
    """The numbers change as their profile says: here one that has red and blue the other way."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    color = (200, 100, 50)

    assert_shows(prepared(encoded("PNG", color=color, icc_profile=srgb)), color)
    assert_shows(prepared(encoded("PNG", color=color, icc_profile=swapped)), color[::-1])
    assert_shows(prepared(encoded("JPEG", color=color, icc_profile=swapped)), color[::-1])
    assert_shows(
        prepared(encoded("PNG", mode="RGBA", color=(*color, 255), icc_profile=swapped)),
        color[::-1],
    )


def test_camera_details_are_in_the_example() -> None:
    """The picture whose secrets must not come out does hold them, a place among them."""
    with Image.open(BytesIO(ACCEPTED["a phone's"])) as image:
        exif = image.getexif()

        assert exif.get_ifd(0x8825)[2] == (52.0, 31.0, 12.0)
        assert image.info["comment"] == b"secret comment"
    assert ACCEPTED["a phone's"].count(b"secret") == 5
