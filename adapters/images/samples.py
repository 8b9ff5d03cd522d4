"""Sample pictures for trying out the service: a person, outfits, accessories and test cards.

``gone.png`` is a test card as well: no such picture exists, so its link answers 404.
"""

from collections.abc import Callable
from functools import cache, partial
from io import BytesIO

from PIL import Image, ImageDraw

from adapters.images.cards import Card, draw_bars

Point = tuple[int, int]

_SIZE = (600, 800)
_CANVAS = (_SIZE[0] * 2, _SIZE[1] * 2)
_BROKEN = "broken.png"
"""The first half of a picture's bytes: its header is valid, decoding fails."""
_INK = "#3a3336"
_SKIN = "#d9a382"
_SKIN_SHADE = "#c68e6d"


@cache
def draw_sample(name: str) -> bytes:
    """A PNG picture, always the same bytes. Raises ``KeyError`` for an unknown name.

    Cached, because drawing takes about 40 ms and blocks the API's event loop for that time.
    """
    if name == _BROKEN:
        whole = draw_sample("model.png")
        return whole[: len(whole) // 2]
    background, draw = _DRAWINGS[name]
    # Drawn at twice the size, because scaling down smooths the edges.
    image = Image.new("RGB", _CANVAS, background)
    draw(ImageDraw.Draw(image))
    file = BytesIO()
    small = image.resize(_SIZE, Image.Resampling.LANCZOS)
    # A palette makes a flat drawing's file a third as large.
    small.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _limb(pen: ImageDraw.ImageDraw, points: list[Point], width: int, color: str) -> None:
    """A thick line with round ends and joints."""
    pen.line(points, color, width)
    for point in points:
        pen.circle(point, width / 2, color)


def _model(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse((330, 1450, 870, 1530), "#d3ccc1")
    pen.rounded_rectangle((460, 130, 740, 520), 140, _INK)
    _limb(pen, [(545, 930), (535, 1200), (530, 1440)], 112, "#566070")
    _limb(pen, [(655, 930), (665, 1200), (670, 1440)], 112, "#566070")
    pen.rounded_rectangle((450, 1440, 580, 1500), 28, "#f7f5f0")
    pen.rounded_rectangle((620, 1440, 750, 1500), 28, "#f7f5f0")
    _limb(pen, [(455, 560), (400, 760), (420, 950)], 76, _SKIN)
    _limb(pen, [(745, 560), (800, 760), (780, 950)], 76, _SKIN)
    pen.rectangle((555, 420, 645, 530), _SKIN_SHADE)
    pen.polygon([(455, 522), (745, 522), (690, 760), (714, 960), (486, 960), (510, 760)], "#fbfaf7")
    _limb(pen, [(462, 560), (738, 560)], 76, "#fbfaf7")
    _limb(pen, [(455, 562), (436, 640)], 90, "#fbfaf7")
    _limb(pen, [(745, 562), (764, 640)], 90, "#fbfaf7")
    pen.pieslice((545, 470, 655, 570), 0, 180, _SKIN)
    pen.ellipse((490, 175, 710, 455), _SKIN)
    pen.chord((480, 140, 720, 400), 190, 350, _INK)
    _face(pen)


def _face(pen: ImageDraw.ImageDraw) -> None:
    for x in (555, 645):
        pen.ellipse((x - 12, 312, x + 12, 336), _INK)
        pen.arc((x - 26, 284, x + 26, 320), 200, 340, _INK, 6)
    pen.arc((578, 330, 616, 376), 20, 120, _SKIN_SHADE, 7)
    pen.arc((560, 350, 640, 412), 25, 155, "#a8483f", 9)


def _outfit(pen: ImageDraw.ImageDraw) -> None:
    red, shade = "#c8553d", "#a94330"
    pen.arc((540, 90, 660, 210), 180, 30, "#8c8279", 12)
    _limb(pen, [(600, 205), (420, 300)], 14, "#8c8279")
    _limb(pen, [(600, 205), (780, 300)], 14, "#8c8279")
    _limb(pen, [(470, 300), (480, 440)], 34, red)
    _limb(pen, [(730, 300), (720, 440)], 34, red)
    pen.polygon([(462, 430), (600, 500), (738, 430), (710, 760), (490, 760)], red)
    pen.polygon([(490, 750), (710, 750), (930, 1420), (270, 1420)], red)
    pen.ellipse((270, 1365, 930, 1475), red)
    for bottom in (420, 540, 660, 780):
        middle = 600 + (bottom - 600) // 4
        pen.polygon([(middle, 830), (bottom + 16, 1440), (bottom - 16, 1440)], shade)
    pen.rounded_rectangle((478, 735, 722, 795), 22, "#f0c987")


def _hat(pen: ImageDraw.ImageDraw) -> None:
    straw, shade = "#e2b867", "#c99a45"
    pen.ellipse((150, 1040, 1050, 1130), "#c5d0cc")
    pen.ellipse((110, 820, 1090, 1090), shade)
    pen.ellipse((110, 790, 1090, 1060), straw)
    pen.rounded_rectangle((355, 470, 845, 1000), 200, straw)
    pen.chord((355, 840, 845, 1030), 0, 180, "#2f5d62")
    pen.rectangle((355, 810, 845, 936), "#2f5d62")
    pen.chord((355, 740, 845, 880), 0, 180, straw)
    pen.arc((470, 430, 730, 610), 20, 160, shade, 10)


def _bag(pen: ImageDraw.ImageDraw) -> None:
    leather, shade, brass = "#5b4b8a", "#463a6d", "#e5c07b"
    pen.ellipse((210, 1215, 990, 1295), "#dcc9c4")
    pen.arc((390, 330, 810, 1010), 180, 360, shade, 42)
    pen.rounded_rectangle((240, 670, 960, 1250), 90, leather)
    pen.pieslice((240, 440, 960, 1040), 0, 180, shade)
    pen.rounded_rectangle((240, 670, 960, 790), 60, shade)
    pen.circle((600, 1030), 52, brass)
    pen.circle((600, 1030), 24, shade)
    for x in (411, 789):
        pen.circle((x, 680), 30, brass)


def _suit(pen: ImageDraw.ImageDraw) -> None:
    navy, shade, lining = "#33435c", "#26334a", "#f4f1ea"
    pen.arc((540, 90, 660, 210), 180, 30, "#8c8279", 12)
    _limb(pen, [(600, 205), (410, 310)], 14, "#8c8279")
    _limb(pen, [(600, 205), (790, 310)], 14, "#8c8279")
    _limb(pen, [(420, 360), (330, 640), (330, 930)], 120, shade)
    _limb(pen, [(780, 360), (870, 640), (870, 930)], 120, shade)
    pen.polygon([(440, 900), (760, 900), (790, 1470), (630, 1470), (600, 1040)], shade)
    pen.polygon([(440, 900), (610, 900), (600, 1040), (570, 1470), (410, 1470)], shade)
    pen.polygon([(410, 310), (790, 310), (800, 980), (400, 980)], navy)
    pen.polygon([(520, 300), (680, 300), (600, 640)], lining)
    pen.polygon([(578, 330), (622, 330), (632, 540), (600, 600), (568, 540)], "#a8483f")
    pen.polygon([(520, 290), (450, 420), (500, 440), (480, 480), (600, 660)], shade)
    pen.polygon([(680, 290), (750, 420), (700, 440), (720, 480), (600, 660)], shade)
    pen.line([(600, 660), (600, 980)], shade, 8)
    for y in (740, 860):
        pen.circle((622, y), 14, "#c9b48a")
    pen.rounded_rectangle((660, 520, 740, 536), 6, lining)
    for left in (440, 670):
        pen.rounded_rectangle((left, 800, left + 90, 820), 6, shade)


def _on_card(pen: ImageDraw.ImageDraw, card: Card) -> None:
    _model(pen)
    draw_bars(pen, _CANVAS, card)


_DRAWINGS: dict[str, tuple[str, Callable[[ImageDraw.ImageDraw], None]]] = {
    "model.png": ("#e9e4dc", _model),
    "outfit.png": ("#f3ebe4", _outfit),
    "hat.png": ("#dfe7e4", _hat),
    "bag.png": ("#f2e4e0", _bag),
    "suit.png": ("#e6e9ee", _suit),
    **{f"{card}.png": ("#dcdcd8", partial(_on_card, card=card)) for card in Card},
}
