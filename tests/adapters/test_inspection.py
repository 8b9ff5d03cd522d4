"""``inspect_picture`` looks at bytes as strangers send them."""

import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from adapters.images.inspection import inspect_picture
from domain.errors import Refused
from domain.sessions import ErrorCode
from tests.support.images import encoded

SECOND_FRAME: dict[str, Any] = {
    "save_all": True,
    "append_images": [Image.new("RGB", (32, 48), "orange")],
}


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header names this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (encoded("JPEG"), "image/jpeg"),
        (encoded("JPEG", mode="CMYK", color=0), "image/jpeg"),
        (encoded("MPO", **SECOND_FRAME), "image/jpeg"),
        (encoded("PNG"), "image/png"),
        (encoded("PNG", mode="I;16", color=0), "image/png"),
        (encoded("PNG", size=(16, 16)), "image/png"),
        (png_that_claims(8_000, 5_000), "image/png"),
        (encoded("WEBP"), "image/webp"),
        (encoded("WEBP", lossless=True), "image/webp"),
    ],
)
def test_the_type_is_what_the_bytes_show(data: bytes, media_type: str) -> None:
    """JPEG, PNG and WebP are accepted as they are; also a phone's JPEG with a second frame."""
    picture = inspect_picture(data)

    assert picture.data == data
    assert picture.media_type == media_type


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html></html>", id="a page"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(encoded("GIF"), id="gif"),
        pytest.param(encoded("BMP"), id="bmp"),
        pytest.param(encoded("TIFF"), id="tiff"),
        pytest.param(b"%PDF-1.7\n" + encoded("JPEG"), id="a picture behind another header"),
        pytest.param(encoded("JPEG")[:3] + encoded("PNG"), id="a png behind a jpeg's signature"),
        pytest.param(encoded("PNG")[:20], id="cut header"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBPVP8 ", id="webp without a picture"),
        pytest.param(encoded("PNG", **SECOND_FRAME), id="animated png"),
        pytest.param(encoded("WEBP", **SECOND_FRAME), id="animated webp"),
        pytest.param(encoded("PNG", size=(15, 400)), id="too narrow"),
        pytest.param(encoded("PNG", size=(400, 15)), id="too low"),
        pytest.param(png_that_claims(8_000, 5_001), id="just over 40 megapixels"),
        pytest.param(png_that_claims(9_000, 9_000), id="81 megapixels"),
        pytest.param(png_that_claims(9_500, 9_500), id="what Pillow warns of"),
        pytest.param(png_that_claims(30_000, 30_000), id="what Pillow refuses"),
    ],
)
def test_what_cannot_be_used_is_refused(data: bytes) -> None:
    """Other formats, damaged, animated, tiny and huge pictures fail with ``INVALID_IMAGE``."""
    with pytest.raises(Refused) as refusal:
        inspect_picture(data)

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE
