"""The first bytes of an upload: enough to refuse what is no usable picture, at a bounded cost."""

import struct
import zlib
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.images.headers import HEAD_BYTES, inspect_head
from adapters.images.inspection import MAX_CHUNKS, inspect_picture
from domain.errors import Refused
from tests.support.images import encoded

FORMATS = ["JPEG", "PNG", "WEBP"]
ENCODINGS = [
    *((image_format, {}) for image_format in FORMATS),
    ("JPEG", {"progressive": True}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ("WEBP", {"mode": "RGBA"}),
]


def head_of(data: bytes) -> str:
    return inspect_head(data[:HEAD_BYTES], is_whole=len(data) < HEAD_BYTES)


@pytest.mark.parametrize(("image_format", "options"), ENCODINGS, ids=repr)
@pytest.mark.parametrize("size", [(16, 16), (16, 300), (301, 17)])
def test_usable_pictures(image_format: str, options: Any, size: tuple[int, int]) -> None:
    """Their media type, as ``inspect_picture`` finds it."""
    data = encoded(image_format, size=size, **options)

    assert head_of(data) == inspect_picture(data).media_type


@pytest.mark.parametrize(("image_format", "options"), ENCODINGS, ids=repr)
@pytest.mark.parametrize("size", [(15, 16), (300, 15)])
def test_small_pictures(image_format: str, options: Any, size: tuple[int, int]) -> None:
    """Both width and height are read."""
    with pytest.raises(Refused, match="smaller than 16 x 16"):
        head_of(encoded(image_format, size=size, **options))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_too_many_pixels(image_format: str) -> None:
    """By the header alone."""
    with pytest.raises(Refused, match="more than 40 megapixels"):
        head_of(
            encoded(image_format, mode="1" if image_format == "PNG" else "L", size=(8000, 5001))
        )


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", encoded("GIF"), b"RIFF1234WAVE", b"<svg/>"])
def test_other_files(data: bytes) -> None:
    with pytest.raises(Refused, match="not a JPEG, PNG or WebP"):
        head_of(data)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("length", [12, 15, 18, 20])
def test_truncated_files(image_format: str, length: int) -> None:
    """What ends before its size is damaged."""
    with pytest.raises(Refused, match="damaged"):
        head_of(encoded(image_format)[:length])


def segments(count: int, length: int = 2) -> bytes:
    return (b"\xff\xe4" + length.to_bytes(2) + bytes(length - 2)) * count


@pytest.mark.parametrize("before", [segments(3, 60_000), segments(200), b"\xff" * 70_000])
def test_size_beyond_the_first_bytes(before: bytes) -> None:
    """A JPEG may carry a large profile or preview before its size: the worker looks for it."""
    data = encoded("JPEG", size=(8, 8))

    assert head_of(data[:2] + before + data[2:]) == "image/jpeg"


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBP"])
@given(rest=st.binary(max_size=200), is_whole=st.booleans())
def test_any_bytes(start: bytes, rest: bytes, *, is_whole: bool) -> None:
    """They are a picture or refused; nothing else happens."""
    with suppress(Refused):
        assert inspect_head(start + rest, is_whole=is_whole).startswith("image/")


@pytest.mark.parametrize(
    "head", [segments(16_000), b"\xff" * 65_536, b"\xff\x01" * 32_000], ids=["4", "1", "2"]
)
def test_hostile_headers_take_no_time(head: bytes) -> None:
    """However many parts there are."""
    began = perf_counter()

    assert head_of(b"\xff\xd8\xff\xe0\x00\x02" + head) == "image/jpeg"

    assert perf_counter() - began < 0.05


def _png_of_chunks(count: int) -> bytes:
    data = encoded("PNG")
    empty = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return data[:33] + empty * count + data[33:]


def _jpeg_of_segments(count: int) -> bytes:
    data = encoded("JPEG")
    return data[:2] + segments(count) + data[2:]


@pytest.mark.parametrize("flooded", [_png_of_chunks, _jpeg_of_segments])
def test_parts_of_a_picture_are_bounded(flooded: Any) -> None:
    """Pillow keeps an object for each, so too many are refused before it sees them: 2.5 million in
    10 MB took 340 MB and two seconds."""
    inspect_picture(flooded(MAX_CHUNKS - 100))
    began = perf_counter()
    with pytest.raises(Refused, match="parts besides its pixels"):
        inspect_picture(flooded(800_000))

    assert perf_counter() - began < 0.5


def test_pixels_may_come_in_many_parts() -> None:
    """A PNG's pixels are often split into small chunks."""
    data = encoded("PNG")
    place = data.index(b"IDAT") - 4
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    split = data[:place] + empty * (MAX_CHUNKS + 1) + data[place:]

    assert inspect_picture(split).media_type == "image/png"


@pytest.mark.parametrize("image_format", FORMATS)
def test_bytes_behind_a_picture_are_no_parts_of_it(image_format: str) -> None:
    """However many they are."""
    data = encoded(image_format) + bytes(1_000_000)

    assert inspect_picture(data).media_type == head_of(data)
