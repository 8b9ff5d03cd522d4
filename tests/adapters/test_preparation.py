"""``prepare_picture`` turns untrusted bytes into a plain JPEG, or refuses them with a reason."""

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
"""JFIF header, tables and frame: the segments that every JPEG has."""


def prepared(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(prepare_picture(data)))
    image.load()
    return image


def assert_shows(image: Image.Image, color: Color, at: tuple[int, int] = (5, 5)) -> None:
    """The pixel has this colour, give or take JPEG's error."""
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= 6 for a, b in zip(found, color, strict=True)), found


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_unusable_pictures_are_refused(data: bytes) -> None:
    """As an ``INVALID_IMAGE``, with a printable reason."""
    with pytest.raises(Refused) as refusal:
        prepare_picture(data)

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_unusual_pictures_become_plain_jpegs(data: bytes) -> None:
    """Only the pixels remain: no location, owner, comment or appended data."""
    plain = prepare_picture(data)

    assert set(jpeg_segments(plain)) <= _PLAIN_MARKERS
    assert b"secret" not in plain
    assert plain.endswith(b"\xff\xd9")
    with Image.open(BytesIO(plain)) as image:
        assert (image.format, image.mode, dict(image.getexif())) == ("JPEG", "RGB", {})


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(image_format: str, orientation: int) -> None:
    """All eight EXIF orientations."""
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
def test_longer_side_is_limited(
    image_format: str, size: tuple[int, int], becomes: tuple[int, int]
) -> None:
    """Large pictures keep their aspect ratio, small ones their size."""
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
def test_every_pixel_format_keeps_its_colour(
    image_format: str, mode: str, color: Any, shown: Color
) -> None:
    """Transparent pixels are drawn on white."""
    image = prepared(encoded(image_format, mode=mode, color=color))

    assert_shows(image, shown)


def test_sixteen_bit_colours_are_scaled() -> None:
    """They are not clipped at 255."""
    pixel = (220 * 257).to_bytes(2) + (30 * 257).to_bytes(2) * 2
    pixels = (b"\0" + pixel * 32) * 32
    image = prepared(png(header(32, 32, depth=16), chunk(b"IDAT", compressed(pixels))))

    assert_shows(image, (220, 30, 30))


def compressed(data: bytes) -> bytes:
    squeeze = zlib.compressobj()
    return squeeze.compress(data) + squeeze.flush()


def test_palette_is_resolved() -> None:
    """A PNG of few colours holds palette indexes; one of the entries may be transparent."""
    picture = Image.new("P", (32, 48), 1)
    picture.putpalette([220, 30, 30, 30, 160, 30])
    picture.paste(0, (0, 0, 32, 24))
    file = BytesIO()
    picture.save(file, "PNG", transparency=0)

    image = prepared(file.getvalue())

    assert_shows(image, (255, 255, 255))
    assert_shows(image, (30, 160, 30), at=(5, 40))


def test_colours_are_converted_to_srgb() -> None:
    """By the picture's ICC profile, here one that swaps red and blue."""
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


def test_example_picture_contains_metadata() -> None:
    """Otherwise the test that metadata is removed could not fail."""
    with Image.open(BytesIO(ACCEPTED["a phone's"])) as image:
        exif = image.getexif()

        assert exif.get_ifd(0x8825)[2] == (52.0, 31.0, 12.0)
        assert image.info["comment"] == b"secret comment"
    assert ACCEPTED["a phone's"].count(b"secret") == 5
