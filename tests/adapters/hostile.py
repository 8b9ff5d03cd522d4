"""Hostile and unusual pictures, for the tests of the inspection, preparation and pool."""

import struct
import zlib
from functools import cache
from io import BytesIO
from itertools import pairwise
from typing import Any

from PIL import Image

from tests.support.images import encoded

SECOND_FRAME: dict[str, Any] = {
    "save_all": True,
    "append_images": [Image.new("RGB", (32, 48), "orange")],
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, *, depth: int = 8, kind: int = 2) -> bytes:
    """The first chunk of a PNG; ``kind`` 0 is grey, 2 is RGB."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))


def png(*chunks: bytes) -> bytes:
    return _SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header states this size."""
    return png(header(width, height), chunk(b"IDAT", zlib.compress(b"")))


def black(width: int, height: int) -> bytes:
    """A complete, all-black PNG with one bit per pixel."""
    row = bytes(1 + (width + 7) // 8)
    pixels = zlib.compress(row * height, 9)
    return png(header(width, height, depth=1, kind=0), chunk(b"IDAT", pixels))


def with_chunks(*chunks: bytes) -> bytes:
    """A valid PNG with additional chunks before its pixels."""
    whole = encoded("PNG")
    start = whole.index(b"IDAT") - 4
    return whole[:start] + b"".join(chunks) + whole[start:]


@cache
def packed(megabytes: int) -> bytes:
    """This many megabytes of zeros, compressed to a thousandth."""
    squeeze = zlib.compressobj(9, wbits=-15)
    block = squeeze.compress(bytes(1_000_000)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    adler32 = (megabytes * 1_000_000 % 65_521) << 16 | 1
    return b"\x78\xda" + block * megabytes + squeeze.flush() + struct.pack(">I", adler32)


def jpeg_with(marker: int, *bodies: bytes, picture: bytes | None = None) -> bytes:
    """A valid JPEG with additional segments of this marker."""
    whole = picture or encoded("JPEG")
    segments = (struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for body in bodies)
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_that_claims(side: int) -> bytes:
    """A WebP with a square canvas of this side around a picture of 32 x 48."""
    data = bytearray(encoded("WEBP", mode="RGBA", color=(0, 0, 0, 9), exif=b"Exif\0\0"))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def oriented(image_format: str, orientation: int) -> bytes:
    """40 x 20, blue with a red top left quarter once rotated by its EXIF ``orientation``."""
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste("red", (0, 0, 20, 10))
    stored = upright if (undo := _UNDO[orientation]) is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    stored.save(file, image_format, exif=exif)
    return file.getvalue()


_UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _noise(image_format: str) -> bytes:
    file = BytesIO()
    Image.effect_noise((64, 96), 90).convert("RGB").save(file, image_format)
    return file.getvalue()


def _cut() -> dict[str, bytes]:
    """Truncated pictures of each format."""
    return {
        f"{image_format} cut at {percent} %": data[: len(data) * percent // 100]
        for image_format in ("JPEG", "PNG", "WEBP")
        for data in [_noise(image_format)]
        for percent in (1, 25, 50, 75, 95)
    }


def _corrupt() -> bytes:
    """A PNG with one wrong byte in its compressed pixels, and a correct checksum."""
    pixels = bytearray(zlib.compress(bytes(97 * 32)))
    pixels[2] ^= 0xFF
    return png(header(32, 32), chunk(b"IDAT", bytes(pixels)))


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gif": encoded("GIF"),
    "animated gif": encoded("GIF", **SECOND_FRAME),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "ico around a png bomb": b"\0\0\1\0\1\0" + bytes(8) + struct.pack("<II", 9, 22) + black(9, 9),
    "avif": encoded("AVIF"),
    "pdf before a jpeg": b"%PDF-1.7\n" + encoded("JPEG"),
    "gif before a jpeg": encoded("GIF") + encoded("JPEG"),
    "png behind a jpeg's signature": encoded("JPEG")[:3] + encoded("PNG"),
    "jpeg signature and no more": b"\xff\xd8\xff",
    "webp without a picture": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "81 megapixels in 10 kB": black(9_000, 9_000),
    "jpeg of 4 gigapixels": jpeg_that_claims(65_500, 65_500),
    "webp of 268 megapixels": webp_that_claims(16_383),
    "png of 4 exapixels": png_that_claims(2**31 - 1, 2**31 - 1),
    "png without pixels": png_that_claims(0, 0),
    "png without height": png_that_claims(100, 0),
    "jpeg without height": jpeg_that_claims(100, 0),
    "png without data": png_that_claims(100, 100),
    "png without chunks": png(),
    "a line": black(1, 100_000),
    "a flat line": black(100_000, 1),
    "a strip": black(16, 100_000),
    "a flat strip": black(100_000, 16),
    "apng": encoded("PNG", **SECOND_FRAME),
    "animated webp": encoded("WEBP", **SECOND_FRAME),
    "colour profile that unpacks to 100 MB": with_chunks(chunk(b"iCCP", b"a\0\0" + packed(100))),
    "text that unpacks to 100 MB": with_chunks(chunk(b"zTXt", b"a\0\0" + packed(100))),
    "world text that unpacks to 100 MB": with_chunks(chunk(b"iTXt", b"a\0\1\0\0\0" + packed(100))),
    "a hundred texts that unpack to 1 MB": with_chunks(
        *(chunk(b"zTXt", b"a%d\0\0" % number + packed(1)) for number in range(100))
    ),
    "corrupt pixels": _corrupt(),
    "wrong checksum": encoded("PNG").replace(b"IHDR\0\0\0 ", b"IHDR\0\0\0!"),
    **_cut(),
}
"""Pictures that must be refused, by their defect."""


def _profiled() -> bytes:
    """With a colour profile of 900 kB of zeros."""
    return encoded("PNG", icc_profile=bytes(900_000))


def _camera() -> bytes:
    """With the metadata that phones and picture editors add."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0131] = "secret maker", "secret software"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 36.0)})
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0secret note"
    return encoded("JPEG", exif=exif, xmp=b"<secret/>", comment=b"secret comment", dpi=(300, 300))


ACCEPTED: dict[str, bytes] = {
    "a phone's": _camera(),
    "huge exif": jpeg_with(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(65_000)),
    "exif that refers to itself": jpeg_with(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"
    ),
    "exif of noise": jpeg_with(0xE1, b"Exif\0\0" + bytes(range(256)) * 9),
    "a thousand comments": jpeg_with(0xFE, *[b"secret" * 100] * 1_000),
    "colour profile of noise": jpeg_with(0xE2, b"ICC_PROFILE\0\1\1" + bytes(range(256)) * 9),
    "huge useless colour profile": _profiled(),
    "long text": with_chunks(chunk(b"tEXt", b"a\0" + b"secret" * 100_000)),
    "jpeg before an archive": encoded("JPEG") + b"PK\3\4secret",
    "jpeg before a script": jpeg_with(0xFE, b"*/=1;alert('secret');/*"),
    "png before html": encoded("PNG") + b"<html>secret</html>",
    "two frames": encoded("MPO", **SECOND_FRAME),
    "pixels that unpack to 100 MB": png(header(32, 48), chunk(b"IDAT", packed(100))),
    "40 megapixels in 5 kB": black(8_000, 5_000),
}
"""Unusual but valid pictures. The word ``secret`` in them must not come out."""


def jpeg_segments(data: bytes) -> list[int]:
    """The markers before a JPEG's pixels, in order."""
    starts = [2]
    while data[starts[-1] + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, starts[-1] + 2)
        starts.append(starts[-1] + 2 + length)
    return [data[start + 1] for start, _ in pairwise(starts)]
