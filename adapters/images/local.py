"""A generator for development, without artificial intelligence: a sheet of the input pictures."""

import asyncio
from collections.abc import Sequence
from io import BytesIO
from math import ceil
from typing import assert_never

from PIL import Image, ImageDraw, ImageFont, ImageOps

from adapters.images.cards import Card, find_card
from domain.causes import Cause, CauseKind
from domain.errors import ProviderUnavailable, Refused
from domain.picture_ports import Generated, Picture, PictureGeneratorPort, PictureRequest, RecordJob
from domain.sessions import ErrorCode, Usage

WIDTH, HEIGHT = 768, 1024
SLOW_SECONDS = 10.0
_BUSY_JOBS = ("local-busy-1", "local-busy-2")
_MARGIN = 24
_CAPTION_HEIGHT = 132
_PROMPT_CHARACTERS = 70
_PAPER, _INK, _PALE, _FRAME = "#fbfaf7", "#2d2a2e", "#7a7478", "#d9d4ca"

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


class LocalPictureGenerator(PictureGeneratorPort):
    """Lays out every input picture on one portrait sheet (3:4, JPEG) with a caption.

    The same request gives the same bytes, so a picture proves which inputs arrived.
    ``delay_seconds`` simulates the time that a real provider takes. With ``plays_cards``, a test
    card among the pictures is obeyed.
    """

    def __init__(self, *, delay_seconds: float = 0.0, plays_cards: bool = False) -> None:
        self._delay_seconds = delay_seconds
        self._plays_cards = plays_cards

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:
        await asyncio.sleep(self._delay_seconds)
        if self._plays_cards:
            await _play(await asyncio.to_thread(find_card, request.images), request, record)
        data = await asyncio.to_thread(draw_sheet, request)
        return Generated(
            picture=Picture(data=data, media_type="image/jpeg"), usage=Usage(provider="local")
        )


async def _play(card: Card | None, request: PictureRequest, record: RecordJob) -> None:
    match card:
        case None:
            pass
        case Card.SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        case Card.MODERATED:
            cause = Cause(CauseKind.INPUT, "moderation test card")
            message = "The request was rejected by the content moderation"
            raise Refused(message, code=ErrorCode.MODERATION_BLOCKED, cause=cause)
        case Card.BUSY:
            # The faults are counted by the recorded job, so that any worker makes the next attempt.
            faults = _BUSY_JOBS.index(request.instead_of) + 1 if request.instead_of else 0
            if faults < len(_BUSY_JOBS):
                await record(_BUSY_JOBS[faults])
                cause = Cause(CauseKind.PROVIDER, "429 test card")
                raise ProviderUnavailable("The picture could not be made", cause=cause)
        case unknown:
            assert_never(unknown)


def draw_sheet(request: PictureRequest) -> bytes:
    """The sheet as a JPEG. Raises ``Refused`` for a picture that cannot be decoded."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for picture, box in zip(request.images, _boxes(len(request.images)), strict=True):
        pen.rectangle(box, outline=_FRAME)
        _place(sheet, picture, box)
    _write_caption(pen, request)
    file = BytesIO()
    sheet.save(file, "JPEG", quality=90)
    return file.getvalue()


def _boxes(count: int) -> Sequence[Box]:
    """The place of each picture: the model's is large and on the left, the others on the right."""
    right, bottom = WIDTH - _MARGIN, HEIGHT - _CAPTION_HEIGHT - _MARGIN
    others = count - 1
    if others == 0:
        return [(_MARGIN, _MARGIN, right, bottom)]
    columns = 1 if others <= 3 else 2
    rows = ceil(others / columns)
    left = 2 * (right - _MARGIN) // 3 + _MARGIN
    boxes = [(_MARGIN, _MARGIN, left - _MARGIN // 2, bottom)]
    for index in range(others):
        row, column = divmod(index, columns)
        boxes.append(
            (
                left + (right - left) * column // columns,
                _MARGIN + (bottom - _MARGIN) * row // rows,
                left + (right - left) * (column + 1) // columns - 4,
                _MARGIN + (bottom - _MARGIN) * (row + 1) // rows - 4,
            )
        )
    return boxes


def _place(sheet: Image.Image, picture: Picture, box: Box) -> None:
    left, top, right, bottom = box
    size = (right - left - 2, bottom - top - 2)
    try:
        with Image.open(BytesIO(picture.data)) as image:
            image.draft("RGB", size)
            upright = ImageOps.contain(_in_color(ImageOps.exif_transpose(image)), size)
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("A picture is damaged", code=ErrorCode.INVALID_IMAGE) from error
    place = (
        left + 1 + (size[0] - upright.width) // 2,
        top + 1 + (size[1] - upright.height) // 2,
    )
    sheet.paste(upright, place, upright)


def _in_color(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # Pillow would clip its greys at 255 instead of scaling them.
        image = image.point(lambda grey: grey / 256)
    return image.convert("RGBA")


def _write_caption(pen: ImageDraw.ImageDraw, request: PictureRequest) -> None:
    prompt = " ".join(request.prompt.split())
    if len(prompt) > _PROMPT_CHARACTERS:
        prompt = prompt[:_PROMPT_CHARACTERS] + " ..."
    top = HEIGHT - _CAPTION_HEIGHT
    lines = (
        (top, 26, _INK, f"Try-on from {len(request.images)} picture(s)"),
        (top + 42, 16, _PALE, prompt),
        (top + 70, 16, _PALE, f"session {request.session_id}"),
        (top + 98, 16, _PALE, "made by the local generator, for development"),
    )
    for y, size, color, text in lines:
        pen.text((_MARGIN, y), text, color, ImageFont.load_default(size))
