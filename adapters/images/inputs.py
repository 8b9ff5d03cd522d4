"""Where the pictures of a request come from: a caller's own uploads out of our storage, without
the network; everything else from wherever the link leads."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from domain.credits import Owner
from domain.ports import Picture, PictureFetcherPort, PictureStoragePort, UploadStoragePort
from domain.uploads import is_upload_of

if TYPE_CHECKING:
    from adapters.images.fetcher import Prepare

_PARTS_OF_A_KEY = 5

Download = Callable[[str], Awaitable[Picture]]
"""Gets and prepares what a stranger's link leads to. Raises ``Refused`` or ``TryAgain``."""


class InputPictures(PictureFetcherPort):
    """``pictures`` and ``uploads`` are the same storage."""

    def __init__(
        self,
        *,
        pictures: PictureStoragePort,
        uploads: UploadStoragePort,
        download: Download,
        prepare: "Prepare",
        max_bytes: int,
    ) -> None:
        self._pictures = pictures
        self._uploads = uploads
        self._download = download
        self._prepare = prepare
        self._max_bytes = max_bytes

    async def fetch(self, url: str, owner: Owner) -> Picture:
        object_key = self._own_upload(url, owner)
        if object_key is None:
            return await self._download(url)
        data = await self._uploads.read_upload(object_key, max_bytes=self._max_bytes)
        return await self._prepare(data)

    def _own_upload(self, url: str, owner: Owner) -> str | None:
        """The key, if ``url`` is a link that our storage gave out for an upload of ``owner``.

        Nothing is parsed: what stands before the query must be, letter for letter, what we would
        write for a key in the owner's own folder. So no spelling leads anywhere else, and the
        signature, which is for others, need not be checked, nor may it have expired meanwhile.
        """
        place, _, _ = url.partition("?")
        object_key = "/".join(unquote(place).split("/")[-_PARTS_OF_A_KEY:])
        if not is_upload_of(owner, object_key):
            return None
        return object_key if place == self._pictures.url(object_key).partition("?")[0] else None
