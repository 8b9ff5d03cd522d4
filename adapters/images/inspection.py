"""Recognise untrusted bytes as a picture by their header, without decoding a pixel."""

import asyncio
from io import BytesIO

from PIL import Image

from domain.errors import Refused
from domain.ports import Picture
from domain.sessions import ErrorCode

MAX_PIXELS = 40_000_000
MIN_SIDE = 16


def inspect_picture(data: bytes) -> Picture:
    """``data`` with the media type found in its bytes.

    Raises ``Refused`` unless it is a still JPEG, PNG or WebP picture of a usable size.
    """
    image_format = _signature(data)
    if image_format is None:
        raise _refused("A picture is not a JPEG, PNG or WebP file")
    _check_header(data, image_format)
    return Picture(data=data, media_type=f"image/{image_format.lower()}")


def too_large(max_bytes: int) -> Refused:
    """The error for a picture of more than ``max_bytes``."""
    return _refused(f"A picture is larger than {max_bytes / 1_000_000:g} MB")


def _signature(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _check_header(data: bytes, image_format: str) -> None:
    try:
        with Image.open(BytesIO(data), formats=[image_format]) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels() from error
    except (OSError, ValueError) as error:
        raise _refused("A picture is damaged") from error
    if width * height > MAX_PIXELS:
        raise _too_many_pixels()
    if min(width, height) < MIN_SIDE:
        raise _refused(f"A picture is smaller than {MIN_SIDE} x {MIN_SIDE} pixels")
    # Many phones add a depth or brightness map to a JPEG as a second frame; the photo is the first.
    if frames > 1 and image_format != "JPEG":
        raise _refused("A picture is animated; only still pictures can be used")


def _too_many_pixels() -> Refused:
    return _refused(f"A picture has more than {MAX_PIXELS // 1_000_000} megapixels")


def _refused(message: str) -> Refused:
    return Refused(message, code=ErrorCode.INVALID_IMAGE)


async def inspect_in_thread(data: bytes) -> Picture:
    """``inspect_picture`` without blocking the event loop."""
    return await asyncio.to_thread(inspect_picture, data)
