"""The local generator shows what went in: every picture, upright, and nothing else of it."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adapters.images.local import HEIGHT, WIDTH, LocalPictureGenerator, draw_sheet
from domain.errors import Refused
from domain.ports import Picture, PictureRequest
from domain.sessions import DEFAULT_PROMPT, ErrorCode
from tests.support.images import encoded, no_job

Color = tuple[int, int, int]

COLORS: list[Color] = [
    (220, 30, 30),
    (30, 160, 30),
    (40, 40, 220),
    (230, 200, 30),
    (30, 190, 200),
    (200, 40, 200),
    (250, 130, 20),
    (110, 60, 20),
    (110, 20, 120),
    (20, 90, 80),
]
"""As many as a request can have pictures, and none like the sheet's own."""

PAPER = (251, 250, 247)
MIDDLE, MIDDLE_AREA = (300, 200, 400, 400), 20_000
"""A part of the sheet that the only picture of a request covers."""


def a_request(images: Sequence[bytes], prompt: str = DEFAULT_PROMPT) -> PictureRequest:
    return PictureRequest(
        session_id=UUID(int=1),
        prompt=prompt,
        images=tuple(Picture(data=data, media_type="image/png") for data in images),
    )


def drawn(*images: bytes) -> Image.Image:
    sheet = Image.open(BytesIO(draw_sheet(a_request(images))))
    sheet.load()
    return sheet


def area_of(sheet: Image.Image, color: Color) -> int:
    """How many pixels have this colour, or one that JPEG made of it."""
    return sum(
        count
        for count, found in sheet.getcolors(WIDTH * HEIGHT) or []
        if isinstance(found, tuple)
        and all(abs(a - b) <= 8 for a, b in zip(found, color, strict=True))
    )


@pytest.mark.parametrize("count", range(1, len(COLORS) + 1))
def test_every_picture_is_on_the_sheet(count: int) -> None:
    """On a portrait of 3:4; the model's picture is the largest, the others are alike."""
    colors = COLORS[:count]

    sheet = drawn(*(encoded(color=color) for color in colors))

    model, *others = [area_of(sheet, color) for color in colors]
    assert (sheet.format, sheet.size) == ("JPEG", (768, 1024))
    assert model > 100_000
    assert all(5_000 < area < model for area in others)
    assert not others or min(others) > 0.95 * max(others)
    assert all(area_of(sheet, color) == 0 for color in COLORS[count:])


@pytest.mark.anyio
async def test_the_same_request_gives_the_same_bytes() -> None:
    """And says truly what they are; another prompt or picture gives others."""
    generator = LocalPictureGenerator()
    red, green = encoded(color=COLORS[0]), encoded(color=COLORS[1])

    first, second, other_prompt, other_picture = [
        (await generator.generate(request, no_job)).picture
        for request in (
            a_request([red, green]),
            a_request([red, green]),
            a_request([red, green], "In the rain"),
            a_request([green, red]),
        )
    ]

    assert first == second
    assert first.media_type == "image/jpeg"
    assert len({first.data, other_prompt.data, other_picture.data}) == 3


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(image_format: str) -> None:
    """A phone stores a portrait lying down and says so in its EXIF orientation."""
    top, bottom = COLORS[0], COLORS[2]
    lying = Image.new("RGB", (640, 400), top)
    lying.paste(bottom, (320, 0, 640, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    file = BytesIO()
    lying.save(file, image_format, exif=exif)

    sheet = drawn(file.getvalue())

    upper, lower = sheet.crop((0, 0, WIDTH, 440)), sheet.crop((0, 460, WIDTH, HEIGHT))
    assert area_of(upper, top) > 200_000
    assert area_of(lower, bottom) > 200_000
    assert area_of(upper, bottom) == area_of(lower, top) == 0


@pytest.mark.parametrize(
    ("image_format", "mode", "color", "shown"),
    [
        pytest.param("PNG", "RGBA", (220, 30, 30, 255), (220, 30, 30), id="opaque"),
        pytest.param("PNG", "RGBA", (220, 30, 30, 0), PAPER, id="transparent"),
        pytest.param("WEBP", "RGBA", (220, 30, 30, 255), (220, 30, 30), id="webp"),
        pytest.param("PNG", "L", 90, (90, 90, 90), id="grey"),
        pytest.param("PNG", "LA", (90, 255), (90, 90, 90), id="grey with alpha"),
        pytest.param("PNG", "I;16", 90 * 257, (90, 90, 90), id="16 bits"),
        pytest.param("PNG", "1", 1, (255, 255, 255), id="one bit"),
        pytest.param("JPEG", "L", 90, (90, 90, 90), id="grey jpeg"),
        pytest.param("JPEG", "CMYK", (0, 200, 200, 0), (255, 55, 55), id="cmyk"),
    ],
)
def test_all_kinds_of_pixels_show_their_colour(
    image_format: str, mode: str, color: Any, shown: Color
) -> None:
    """What the fetcher lets through is drawn as a viewer would draw it."""
    sheet = drawn(encoded(image_format, mode=mode, color=color))

    assert area_of(sheet.crop(MIDDLE), shown) == MIDDLE_AREA


def test_a_palette_is_looked_up() -> None:
    """A PNG of few colours holds numbers, not colours; one of them may be transparent."""
    picture = Image.new("P", (32, 48), 1)
    picture.putpalette([*COLORS[0], *COLORS[1]])
    picture.paste(0, (0, 0, 32, 24))
    file = BytesIO()
    picture.save(file, "PNG", transparency=0)

    sheet = drawn(file.getvalue())

    assert area_of(sheet, COLORS[1]) > 100_000
    assert area_of(sheet.crop(MIDDLE), PAPER) == MIDDLE_AREA


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_off_picture_is_refused(image_format: str) -> None:
    """Its header was right, so only decoding shows it; the caller learns that it is damaged."""
    file = BytesIO()
    Image.effect_noise((200, 200), 60).convert("RGB").save(file, image_format)
    data = file.getvalue()

    with pytest.raises(Refused) as refusal:
        draw_sheet(a_request([encoded(), data[: len(data) // 2]]))

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE


def test_nothing_but_pixels_reaches_the_sheet() -> None:
    """Where and with what a picture was taken, and by whom, stays behind."""
    secret = "51.5007 N, 0.1246 W"
    exif, text = Image.Exif(), PngInfo()
    exif[0x010E] = secret
    text.add_text("Comment", secret)
    images = [
        encoded("JPEG", exif=exif, comment=secret.encode(), icc_profile=b"profile"),
        encoded("PNG", exif=exif, pnginfo=text),
        encoded("WEBP", exif=exif, xmp=secret.encode()),
    ]
    assert all(secret.encode() in image for image in images)

    sheet = drawn(*images)

    assert secret.encode() not in draw_sheet(a_request(images))
    assert set(sheet.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert not sheet.getexif()


@pytest.mark.parametrize("prompt", ["", "👒 Hut\n\n\tim Regen \x00", "w" * 4_000, "雨" * 4_000])
def test_any_prompt_can_be_written(prompt: str) -> None:
    """A long one is cut, and what the font does not have does no harm."""
    assert draw_sheet(a_request([encoded()], prompt))
