"""Test cards: pictures that make the local generator fail or wait on purpose, as the test numbers
of payment providers do.

A generator gets decoded pictures and no links, so a card is recognised by the eight colour bars
along its lower edge. Their order names the card. The bars outlive scaling, JPEG and an upload.
"""

from collections.abc import Iterable
from enum import StrEnum
from io import BytesIO

from PIL import Image, ImageDraw

from domain.picture_ports import Picture

Color = tuple[int, int, int]

SHARE = 10
"""The bars take this part of the height: a tenth."""

_TOLERANCE = 40
_BARS: dict[str, Color] = {
    "w": (235, 235, 235),
    "y": (230, 220, 20),
    "c": (20, 210, 215),
    "g": (20, 190, 40),
    "m": (205, 30, 190),
    "r": (215, 30, 30),
    "b": (30, 40, 205),
    "k": (20, 20, 20),
}


class Card(StrEnum):
    """A card's name."""

    SLOW = "slow"
    BUSY = "busy"
    MODERATED = "moderated"


_ORDERS = {Card.SLOW: "wycgmrbk", Card.BUSY: "kbrmgcyw", Card.MODERATED: "rwbygkcm"}


def draw_bars(pen: ImageDraw.ImageDraw, size: tuple[int, int], card: Card) -> None:
    """Draw the card's bars along the lower edge of a picture of this size."""
    width, height = size
    for number, letter in enumerate(_ORDERS[card]):
        left, right = (width * edge // len(_BARS) for edge in (number, number + 1))
        pen.rectangle((left, height - height // SHARE, right - 1, height - 1), _BARS[letter])


def find_card(pictures: Iterable[Picture]) -> Card | None:
    """The first card among the pictures. One that cannot be decoded is none."""
    return next((card for picture in pictures if (card := _card_of(picture.data))), None)


def _card_of(data: bytes) -> Card | None:
    lowest_row = 2 * SHARE - 1  # Half as high as the bars: no pixel of it mixes in what is above.
    size = (len(_BARS), lowest_row + 1)
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft("RGB", (16 * size[0], 16 * size[1]))
            small = image.convert("RGB").resize(size, Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError):
        return None
    row = [small.getpixel((column, lowest_row)) for column in range(len(_BARS))]
    return next((card for card, order in _ORDERS.items() if _shows(row, order)), None)


def _shows(row: list[float | tuple[int, ...] | None], order: str) -> bool:
    return all(
        isinstance(found, tuple)
        and all(abs(a - b) <= _TOLERANCE for a, b in zip(found, _BARS[letter], strict=True))
        for found, letter in zip(row, order, strict=True)
    )
