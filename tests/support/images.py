"""Pictures, and a scripted fetcher and generator."""

import asyncio
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from domain.credits import Owner
from domain.errors import Refused
from domain.picture_ports import (
    Generated,
    Picture,
    PictureFetcherPort,
    PictureGeneratorPort,
    PictureRequest,
    RecordJob,
)
from domain.sessions import ErrorCode, Usage

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


async def no_job(job: str) -> None:
    """For generators whose work does not outlive a call: they record no job."""
    raise AssertionError(job)


class FakePictureFetcher(PictureFetcherPort):
    """Returns or raises what ``pictures`` has for a URL; other URLs are unreachable."""

    def __init__(self, pictures: Mapping[str, Picture | Exception]) -> None:
        self.pictures = dict(pictures)
        self.fetched: list[str] = []

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:  # noqa: ARG002
        return tuple([await self.fetch_one(url) for url in urls])

    async def fetch_one(self, url: str) -> Picture:
        self.fetched.append(url)
        if url not in self.pictures:
            raise Refused("A picture could not be downloaded", code=ErrorCode.IMAGE_UNREACHABLE)
        return _given(self.pictures[url])


class FakePictureGenerator(PictureGeneratorPort):
    """Returns or raises the next of ``outcomes``, or returns A_PICTURE once there are none; each
    after ``seconds`` and with ``usage``.

    A ``stubborn`` generator ignores a cancellation and takes ``seconds`` again. Each call records
    the next of ``jobs``, if there is one. Jobs in ``finished`` can be resumed.
    """

    def __init__(self, outcomes: Sequence[Picture | BaseException] = ()) -> None:
        self.outcomes = list(outcomes)
        self.seconds = 0.0
        self.stubborn = False
        self.usage: Usage | None = None
        self.requests: list[PictureRequest] = []
        self.jobs: list[str] = []
        self.finished: set[str] = set()
        self.resumed: list[str] = []

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:
        self.requests.append(request)
        if self.jobs:
            await record(self.jobs.pop(0))
        outcome = self.outcomes.pop(0) if self.outcomes else A_PICTURE
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            if not self.stubborn:
                raise
            await asyncio.sleep(self.seconds)
        return Generated(picture=_given(outcome), usage=self.usage)

    async def resume(self, job: str, record: RecordJob) -> Generated | None:  # noqa: ARG002
        self.resumed.append(job)
        return Generated(picture=A_PICTURE) if job in self.finished else None


def _given(outcome: Picture | BaseException) -> Picture:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
