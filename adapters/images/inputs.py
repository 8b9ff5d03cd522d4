"""The source of a request's pictures: the owner's uploads are read from our storage, without the
network; every other link is downloaded."""

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from domain.credits import Owner
from domain.ports import Picture, PictureFetcherPort, PictureStoragePort, UploadStoragePort
from domain.uploads import is_upload_of

_KEY_PARTS = 5

Download = Callable[[str], Awaitable[Picture]]
"""Downloads a picture from an untrusted link. Raises ``Refused`` or ``InputUnavailable``."""

Prepare = Callable[[bytes], Awaitable[Picture]]
"""Turns untrusted bytes into a picture. Raises ``Refused`` or ``WorkerExhausted``."""


class InputPictures(PictureFetcherPort):
    """``pictures`` and ``uploads`` are the same storage."""

    def __init__(
        self,
        *,
        pictures: PictureStoragePort,
        uploads: UploadStoragePort,
        download: Download,
        prepare: Prepare,
        max_bytes: int,
    ) -> None:
        self._pictures = pictures
        self._uploads = uploads
        self._download = download
        self._prepare = prepare
        self._max_bytes = max_bytes

    async def fetch(self, url: str, owner: Owner) -> Picture:
        object_key = self._upload_key(url, owner)
        if object_key is None:
            return await self._download(url)
        data = await self._uploads.read_upload(object_key, max_bytes=self._max_bytes)
        return await self._prepare(data)

    def _upload_key(self, url: str, owner: Owner) -> str | None:
        """The object's key if ``url`` is our storage's link to an upload of ``owner``, else None.

        The URL is compared, not parsed: up to the query it must equal, letter for letter, the URL
        that we would write for a key in the owner's folder. So no spelling can lead to another
        object. The signature is not checked, because it protects the object from others; it may
        have expired while the session waited.
        """
        location, _, _ = url.partition("?")
        object_key = "/".join(unquote(location).split("/")[-_KEY_PARTS:])
        if not is_upload_of(owner, object_key):
            return None
        return object_key if location == self._pictures.url(object_key).partition("?")[0] else None
