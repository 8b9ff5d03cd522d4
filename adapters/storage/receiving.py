"""Uploads that come to us, where no storage service takes them."""

import asyncio
from collections.abc import Awaitable, Callable

from adapters.images.inspection import inspect_picture
from adapters.storage.keys import media_type_of
from adapters.storage.signing import UploadSinkPort, UrlSigner
from domain.errors import Conflict, InvalidInput, Overloaded, Refused
from domain.ports import Picture


class UploadReceiver:
    """Takes one picture for each signed link, once.

    ``max_at_once`` bounds what uploads that are under way may take of this process's memory.
    """

    def __init__(
        self,
        *,
        storage: UploadSinkPort,
        signer: UrlSigner,
        check_quota: Callable[[str], Awaitable[None]],
        max_at_once: int = 32,
    ) -> None:
        self._storage = storage
        self._signer = signer
        self._check_quota = check_quota
        self._max_at_once = max_at_once
        self._under_way = 0

    async def receive(
        self,
        object_key: str,
        *,
        expires: int,
        signature: str,
        body: Callable[[], Awaitable[bytes]],
    ) -> Picture:
        """Keep what ``body`` gives, which is asked for only if the link is good.

        Raises ``NotFound`` for a link that is not, ``Overloaded``, ``TooManyUploads``,
        ``InvalidInput`` for what is no picture of the type that the key names, and ``Conflict``
        where a picture was uploaded before.
        """
        self._signer.check_upload(object_key, expires=expires, signature=signature)
        if self._under_way >= self._max_at_once:
            raise Overloaded("Too many pictures are being uploaded; try again")
        self._under_way += 1
        try:
            await self._check_quota(object_key.rpartition("/")[0])
            picture = await _looked_at(await body(), media_type_of(object_key))
            if not await self._storage.keep_upload(object_key, picture.data):
                raise Conflict("A picture was uploaded here before; ask for another link")
        finally:
            self._under_way -= 1
        return picture


async def _looked_at(data: bytes, announced: str) -> Picture:
    """In a thread, for a header may take its time; pixels are decoded elsewhere, and later."""
    try:
        picture = await asyncio.to_thread(inspect_picture, data)
    except Refused as error:
        raise InvalidInput("body", str(error)) from error
    if picture.media_type != announced:
        raise InvalidInput("body", f"is {picture.media_type}, not {announced} as announced")
    return picture
