"""Turn an untrusted picture into a plain JPEG, in a process of its own that may crash.

``python -m adapters.images.preparation MEMORY_BYTES CPU_SECONDS`` writes READY once it can work. It
then reads pictures, each as its length (LENGTH) and its bytes, and writes for each PREPARED or
REFUSED, a length, and the JPEG or the reason. It exits at the end of its input, and crashes on an
unexpected error in a picture. ``pool.py`` is the other side.
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
    """An upright sRGB JPEG of at most MAX_SIDE on its longer side, on white, without metadata.

    Raises ``Refused`` as ``inspect_picture`` does, and for a picture that cannot be decoded.
    """
    inspect_picture(data)
    try:
        with Image.open(BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            image.draft(None, _BOX)  # Decodes a JPEG at the next larger size, which is faster.
            upright = _upright(_small(image))
            plain = _in_srgb(_on_white(upright), image.info.get("icc_profile"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("A picture is damaged", code=ErrorCode.INVALID_IMAGE) from error
    if min(plain.size) < MIN_SIDE:
        raise Refused("A picture is too long and narrow", code=ErrorCode.INVALID_IMAGE)
    plain.info.clear()  # Pillow would write parts of it, such as a comment, into the new file.
    file = BytesIO()
    plain.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _small(image: Image.Image) -> Image.Image:
    """Scaled down to the box, in a mode whose pixels can be averaged."""
    if image.mode in {"I", "I;16"}:  # Pillow would clip its greys at 255 instead of scaling them.
        image = image.point(lambda grey: grey / 256).convert("L")
    grey, transparent = image.mode in {"1", "L", "LA"}, image.has_transparency_data
    if transparent:
        image = image.convert("LA" if grey else "RGBA")
    elif image.mode != "CMYK":
        image = image.convert("L" if grey else "RGB")
    image.thumbnail(_BOX, Image.Resampling.LANCZOS)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """A picture with unreadable EXIF is not rotated; viewers do the same."""
    with suppress(SyntaxError, ValueError, OSError, struct.error):
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"LA", "RGBA"}:
        return image
    opaque = image.mode.removesuffix("A")
    background = Image.new(opaque, image.size, "white")
    background.paste(image.convert(opaque), mask=image.getchannel("A"))
    return background


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An unusable profile is ignored; viewers do the same."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def serve(prepare: Callable[[bytes], bytes]) -> None:
    """Prepare pictures until the input ends, each within the limits of the command line."""
    memory_bytes, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    # A signal to the worker's process group arrives here too, but the worker drains its tasks.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    _set_limits(memory_bytes)
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    outgoing.write(READY)
    outgoing.flush()
    while header := incoming.read(LENGTH.size):
        _extend_cpu_limit(cpu_seconds)
        try:
            kind, result = PREPARED, prepare(incoming.read(*LENGTH.unpack(header)))
        except Refused as refusal:
            kind, result = REFUSED, str(refusal).encode()
        outgoing.write(kind + LENGTH.pack(len(result)) + result)
        outgoing.flush()


def _set_limits(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A dump would hold a customer's picture.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "darwin":  # macOS does not support this limit.
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _extend_cpu_limit(cpu_seconds: float) -> None:
    """The kernel kills this process once it has used ``cpu_seconds`` more of CPU time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_seconds), hard))


if __name__ == "__main__":
    serve(prepare_picture)
