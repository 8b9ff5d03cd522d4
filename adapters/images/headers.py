"""Recognise a picture by its first bytes, in bounded time and memory: for the API, which never
decodes what callers send. The pool's processes look at the rest.

Formats: https://www.w3.org/TR/png/, https://www.w3.org/Graphics/JPEG/itu-t81.pdf (Annex B) and
https://developers.google.com/speed/webp/docs/riff_container.
"""

from adapters.images.inspection import check_size, damaged, signature_of

HEAD_BYTES = 65_536
"""How much of a file is looked at. A JPEG's size may come later, behind a large profile."""

_MOST_SEGMENTS = 100
_JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def inspect_head(head: bytes, *, is_whole: bool) -> str:
    """The media type of a file that begins with ``head``, of at most HEAD_BYTES.

    Raises ``Refused`` unless the file may be a picture of a usable size.
    """
    image_format = signature_of(head)
    try:
        size = _SIZES[image_format](head)
    except IndexError as error:
        if is_whole or image_format != "JPEG":
            raise damaged() from error
        size = None
    if size is not None:
        check_size(*size)
    return f"image/{image_format.lower()}"


def _png_size(head: bytes) -> tuple[int, int]:
    if _at(head, 12, 4) != b"IHDR":
        raise damaged()
    return int.from_bytes(_at(head, 16, 4)), int.from_bytes(_at(head, 20, 4))


def _webp_size(head: bytes) -> tuple[int, int]:
    match _at(head, 12, 4):
        case b"VP8X":
            width, height = (int.from_bytes(_at(head, place, 3), "little") for place in (24, 27))
            return width + 1, height + 1
        case b"VP8L":
            bits = int.from_bytes(_at(head, 21, 4), "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (int.from_bytes(_at(head, place, 2), "little") for place in (26, 28))
            return width & 0x3FFF, height & 0x3FFF
        case _:
            raise damaged()


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """None if it comes after more segments than are looked at."""
    place = 2
    for _ in range(_MOST_SEGMENTS):
        rest = head[place:]
        place += max(0, len(rest) - len(rest.lstrip(b"\xff")) - 1)  # padding
        marker = _at(head, place, 2)
        if marker[0] != 0xFF or marker[1] in {0xD9, 0xDA}:  # The pixels begin, or the file ends.
            raise damaged()
        if marker[1] in _JPEG_SIZE_MARKERS:
            height, width = (int.from_bytes(_at(head, place + skip, 2)) for skip in (5, 7))
            return width, height
        has_length = marker[1] != 0x01 and not 0xD0 <= marker[1] <= 0xD8
        place += 2 + (int.from_bytes(_at(head, place + 2, 2)) if has_length else 0)
    return None


_SIZES = {"PNG": _png_size, "WEBP": _webp_size, "JPEG": _jpeg_size}


def _at(head: bytes, place: int, count: int) -> bytes:
    """Raises IndexError beyond the end."""
    found = head[place : place + count]
    if len(found) < count:
        raise IndexError(place)
    return found
