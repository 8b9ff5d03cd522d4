"""The local generator's sheet shows every input picture upright, without its metadata."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adapters.images.local import HEIGHT, WIDTH, LocalPictureGenerator, draw_sheet
from domain.errors import Refused
from domain.picture_ports import Picture, PictureRequest
from domain.sessions import DEFAULT_PROMPT, ErrorCode, Usage
from tests.support.examples import TRACEPARENT
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
"""One per picture that a request can have; none is a colour of the sheet itself."""

PAPER = (251, 250, 247)
MIDDLE, MIDDLE_AREA = (300, 200, 400, 400), 20_000
"""A part of the sheet that is covered by the picture of a request with one picture."""


def a_request(images: Sequence[bytes], prompt: str = DEFAULT_PROMPT) -> PictureRequest:
    return PictureRequest(
        session_id=UUID(int=1),
        prompt=prompt,
        traceparent=TRACEPARENT,
        images=tuple(Picture(data=data, media_type="image/png") for data in images),
    )


def drawn(*images: bytes) -> Image.Image:
    sheet = Image.open(BytesIO(draw_sheet(a_request(images))))
    sheet.load()
    return sheet


def area_of(sheet: Image.Image, color: Color) -> int:
    """The number of pixels of this colour, give or take JPEG's error."""
    return sum(
        count
        for count, found in sheet.getcolors(WIDTH * HEIGHT) or []
        if isinstance(found, tuple)
        and all(abs(a - b) <= 8 for a, b in zip(found, color, strict=True))
    )


@pytest.mark.parametrize("count", range(1, len(COLORS) + 1))
def test_every_picture_is_on_the_sheet(count: int) -> None:
    """A portrait of 3:4 on which the model's picture is the largest and the others are equal."""
    colors = COLORS[:count]

    sheet = drawn(*(encoded(color=color) for color in colors))

    model, *others = [area_of(sheet, color) for color in colors]
    assert (sheet.format, sheet.size) == ("JPEG", (768, 1024))
    assert model > 100_000
    assert all(5_000 < area < model for area in others)
    assert not others or min(others) > 0.95 * max(others)
    assert all(area_of(sheet, color) == 0 for color in COLORS[count:])


@pytest.mark.anyio
async def test_usage_is_the_provider() -> None:
    """Its pictures cost nothing that could be estimated."""
    generated = await LocalPictureGenerator().generate(a_request([encoded()]), no_job)

    assert generated.usage == Usage(provider="local")


@pytest.mark.anyio
async def test_same_request_gives_the_same_bytes() -> None:
    """As a JPEG. Another prompt or another picture gives other bytes."""
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
    """A phone stores a portrait rotated, with the EXIF orientation that turns it back."""
    top, bottom = COLORS[0], COLORS[2]
    lying = Image.new("RGB", (640, 400), top)
    lying.paste(bottom, (320, 0, 640, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate clockwise for viewing.
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
def test_every_pixel_format_is_drawn_in_its_colour(
    image_format: str, mode: str, color: Any, shown: Color
) -> None:
    """As a picture viewer would draw it."""
    sheet = drawn(encoded(image_format, mode=mode, color=color))

    assert area_of(sheet.crop(MIDDLE), shown) == MIDDLE_AREA


def test_palette_is_resolved() -> None:
    """A PNG of few colours holds palette indexes; one of the entries may be transparent."""
    picture = Image.new("P", (32, 48), 1)
    picture.putpalette([*COLORS[0], *COLORS[1]])
    picture.paste(0, (0, 0, 32, 24))
    file = BytesIO()
    picture.save(file, "PNG", transparency=0)

    sheet = drawn(file.getvalue())

    assert area_of(sheet, COLORS[1]) > 100_000
    assert area_of(sheet.crop(MIDDLE), PAPER) == MIDDLE_AREA


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_truncated_picture_is_refused(image_format: str) -> None:
    """Its header is valid, so only decoding reveals it."""
    file = BytesIO()
    Image.effect_noise((200, 200), 60).convert("RGB").save(file, image_format)
    data = file.getvalue()

    with pytest.raises(Refused) as refusal:
        draw_sheet(a_request([encoded(), data[: len(data) // 2]]))

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE


def test_metadata_does_not_reach_the_sheet() -> None:
    """EXIF, XMP, comments and profiles of the input pictures."""
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
    """Long prompts are cut; characters that the font lacks do no harm."""
    assert draw_sheet(a_request([encoded()], prompt))
