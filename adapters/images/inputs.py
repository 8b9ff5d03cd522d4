"""The source of a request's pictures: the owner's uploads are read from our storage, without the
network; every other link is downloaded."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from adapters.images.limits import InputLimits
from domain.credits import Owner
from domain.errors import InputUnavailable, TryAgain
from domain.picture_ports import Picture, PictureFetcherPort, PictureStoragePort, UploadStoragePort
from domain.sessions import ErrorCode
from domain.uploads import is_upload, is_upload_of

_KEY_PARTS = (5, 6)
"""An upload's key has one part more if it is a shopper's."""

Download = Callable[[str], Awaitable[bytes]]
"""Downloads from an untrusted link. Raises ``Refused`` or ``InputUnavailable``."""

Prepare = Callable[[bytes], Awaitable[Picture]]
"""Turns untrusted bytes into a picture. Raises ``Refused`` or ``WorkerExhausted``."""

PrepareFor = Callable[[bytes, Owner], Awaitable[Picture]]
"""The same for an owner: owners take turns."""


class InputPictures(PictureFetcherPort):
    """``pictures`` and ``uploads`` are the same storage."""

    def __init__(
        self,
        *,
        pictures: PictureStoragePort,
        uploads: UploadStoragePort,
        download: Download,
        prepare: PrepareFor,
        max_bytes: int,
        limits: InputLimits,
    ) -> None:
        self._pictures = pictures
        self._uploads = uploads
        self._download = download
        self._prepare = prepare
        self._max_bytes = max_bytes
        self._limits = limits

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:
        places = asyncio.Semaphore(self._limits.parallel)
        budget = _Budget(self._limits.seconds)
        return await _all([self._fetch_one(url, owner, places, budget) for url in urls])

    async def _fetch_one(
        self, url: str, owner: Owner, places: asyncio.Semaphore, budget: "_Budget"
    ) -> Picture:
        async with places:
            object_key = upload_key(url, self._pictures)
            if object_key is None or not is_upload_of(owner, object_key):
                data = await self._downloaded(url, budget)
            else:
                data = await self._uploads.read_upload(object_key, max_bytes=self._max_bytes)
            return await self._prepare(data, owner)

    async def _downloaded(self, url: str, budget: "_Budget") -> bytes:
        try:
            async with budget.running():
                return await self._download(url)
        except TimeoutError as error:
            raise InputUnavailable(
                "A request's pictures took too long to download", code=ErrorCode.IMAGE_UNREACHABLE
            ) from error
        except TryAgain as error:
            raise InputUnavailable(
                str(error),
                code=error.reason,
                retry_after_seconds=error.retry_after_seconds,
                cause=error.cause,
            ) from error


def is_own(url: str, pictures: PictureStoragePort) -> bool:
    """Whether ``url`` leads to an upload in our storage, which is read without the network."""
    return upload_key(url, pictures) is not None


def upload_key(url: str, pictures: PictureStoragePort) -> str | None:
    """The object's key if ``url`` is our storage's link to an upload of any owner, else None.

    The URL is compared, not parsed: up to the query it must equal, letter for letter, the URL that
    we would write for the key. So no spelling can lead to another object. The signature is not
    checked, because it protects the object from others; it may have expired while the session
    waited.
    """
    location, _, _ = url.partition("?")
    parts = unquote(location).split("/")
    for object_key in ("/".join(parts[-count:]) for count in _KEY_PARTS):
        if is_upload(object_key):
            return object_key if location == pictures.url(object_key).partition("?")[0] else None
    return None


class _Budget:
    """A time limit for several parallel activities together: it runs while any of them runs."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._running = 0
        self._since = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises ``TimeoutError`` once the budget is spent."""
        clock = asyncio.get_running_loop().time
        if not self._running:
            self._since = clock()
        self._running += 1
        try:
            async with asyncio.timeout(self._left - (clock() - self._since)):
                yield
        finally:
            self._running -= 1
            if not self._running:
                self._left -= clock() - self._since


async def _all(work: Sequence[Coroutine[Any, Any, Picture]]) -> tuple[Picture, ...]:
    """The results in the order of ``work``. The first failure ends all of it and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)
