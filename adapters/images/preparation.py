"""Turn a stranger's picture into a plain one, in a process that may die of it.

``python -m adapters.images.preparation MEMORY_BYTES CPU_SECONDS`` says READY once it can work.
From then on each picture goes in as its length (LENGTH) and its bytes, and comes out as PREPARED
or REFUSED, a length, and the JPEG or the reason. It ends when its input does; whatever is wrong
with a picture and has no reason of its own ends it too. ``pool.py`` is the other side.
"""

import math
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO

from PIL import Image, ImageCms, ImageOps

from adapters.images.inspection import MIN_SIDE, inspect_picture
from domain.errors import Refused
from domain.sessions import ErrorCode

MAX_SIDE = 1_024
JPEG_QUALITY = 90

READY, PREPARED, REFUSED = b"+", b"p", b"r"
LENGTH = struct.Struct(">I")

_BOX = (MAX_SIDE, MAX_SIDE)
_SRGB = ImageCms.createProfile("sRGB")


def prepare_picture(data: bytes) -> bytes:
    """A JPEG in sRGB, upright, at most MAX_SIDE on its longer side, on white, without metadata.

    Raises ``Refused`` for what ``inspect_picture`` refuses, and for what cannot be decoded.
    """
    inspect_picture(data)
    try:
        with Image.open(BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            image.draft(None, _BOX)  # A JPEG is decoded at the nearest size above, which is faster.
            upright = _upright(_small(image))
            plain = _in_srgb(_on_white(upright), image.info.get("icc_profile"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("A picture is damaged", code=ErrorCode.INVALID_IMAGE) from error
    if min(plain.size) < MIN_SIDE:
        raise Refused("A picture is too long and narrow", code=ErrorCode.INVALID_IMAGE)
    plain.info.clear()  # Pillow would write some of it, a comment for one, into the new file.
    file = BytesIO()
    plain.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _small(image: Image.Image) -> Image.Image:
    """Scaled down to the box, in a mode whose pixels can be mixed."""
    if image.mode in {"I", "I;16"}:  # Pillow would cut its greys off at 255, not scale them.
        image = image.point(lambda grey: grey / 256).convert("L")
    grey, transparent = image.mode in {"1", "L", "LA"}, image.has_transparency_data
    if transparent:
        image = image.convert("LA" if grey else "RGBA")
    elif image.mode != "CMYK":
        image = image.convert("L" if grey else "RGB")
    image.thumbnail(_BOX, Image.Resampling.LANCZOS)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """A picture whose EXIF cannot be read is left as it lies, as viewers do."""
    with suppress(SyntaxError, ValueError, OSError, struct.error):
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"LA", "RGBA"}:
        return image
    opaque = image.mode.removesuffix("A")
    ground = Image.new(opaque, image.size, "white")
    ground.paste(image.convert(opaque), mask=image.getchannel("A"))
    return ground


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A profile that cannot be used is ignored, as viewers do."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def serve(prepare: Callable[[bytes], bytes]) -> None:
    """Prepare what arrives, each picture with the command line's limits, until the input ends."""
    memory_bytes, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    # Whoever stops the worker may signal its processes too, but the worker finishes its tasks.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    _limit(memory_bytes)
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    outgoing.write(READY)
    outgoing.flush()
    while header := incoming.read(LENGTH.size):
        _allow(cpu_seconds)
        try:
            kind, answer = PREPARED, prepare(incoming.read(*LENGTH.unpack(header)))
        except Refused as refusal:
            kind, answer = REFUSED, str(refusal).encode()
        outgoing.write(kind + LENGTH.pack(len(answer)) + answer)
        outgoing.flush()


def _limit(memory_bytes: int) -> None:
    """Memory as told; no core dump, which would hold a customer's picture, and nothing on disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "darwin":  # macOS does not know this limit.
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _allow(cpu_seconds: float) -> None:
    """The kernel ends this process after so much more computing."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_seconds), hard))


if __name__ == "__main__":
    serve(prepare_picture)
