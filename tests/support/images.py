"""Pictures, and a fetcher and a generator that do what a test tells them."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from domain.errors import Refused
from domain.ports import ImageFetcherPort, ImageGeneratorPort, Picture, PictureRequest
from domain.sessions import ErrorCode

A_PICTURE = Picture(data=b"a picture", media_type="image/jpeg")


def encoded(
    image_format: str = "PNG",
    *,
    mode: str = "RGB",
    size: tuple[int, int] = (32, 48),
    color: Any = "teal",
    **options: Any,
) -> bytes:
    """An image file of one colour; ``options`` are Pillow's for the format."""
    file = BytesIO()
    Image.new(mode, size, color).save(file, image_format, **options)
    return file.getvalue()


class FakeImageFetcher(ImageFetcherPort):
    """Knows what lies, or goes wrong, behind some URLs; the others lead nowhere."""

    def __init__(self, pictures: Mapping[str, Picture | Exception]) -> None:
        self._pictures = pictures
        self.fetched: list[str] = []

    async def fetch(self, url: str) -> Picture:
        self.fetched.append(url)
        if url not in self._pictures:
            raise Refused("A picture could not be downloaded", code=ErrorCode.IMAGE_UNREACHABLE)
        return _given(self._pictures[url])


class FakeImageGenerator(ImageGeneratorPort):
    """Gives ``outcomes`` one after the other, and then A_PICTURE for ever."""

    def __init__(self, outcomes: Sequence[Picture | Exception] = ()) -> None:
        self._outcomes = list(outcomes)
        self.requests: list[PictureRequest] = []

    async def generate(self, request: PictureRequest) -> Picture:
        self.requests.append(request)
        return _given(self._outcomes.pop(0)) if self._outcomes else A_PICTURE


def _given(outcome: Picture | Exception) -> Picture:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
