"""Pictures in this process's memory."""

import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from adapters.images.inspection import too_large
from adapters.storage.signing import UrlSigner
from adapters.storage.uploads import UPLOADS_ROOT, not_uploaded
from domain.errors import NotFound
from domain.object_keys import media_type_of, possible_pictures, stored_picture
from domain.picture_ports import (
    Picture,
    PictureStoragePort,
    SignedReadPort,
    UploadLinks,
    UploadSinkPort,
    UploadStoragePort,
)
from domain.sessions import StoredPicture


@dataclass(frozen=True, slots=True)
class _Stored:
    picture: Picture
    at: datetime


class InMemoryPictureStorage(UploadStoragePort, PictureStoragePort, SignedReadPort, UploadSinkPort):
    """Lost at exit. The signer's clock says when a picture was stored."""

    def __init__(self, *, signer: UrlSigner) -> None:
        self._stored: dict[str, _Stored] = {}
        self._signer = signer

    async def check(self) -> None:
        """Memory that is full ends the process."""

    async def find(self, prefix: str) -> StoredPicture | None:
        for stored in possible_pictures(prefix):
            if stored.object_key in self._stored:
                return stored
        return None

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        stored = stored_picture(prefix, picture.media_type)
        self._keep(stored.object_key, picture)
        return stored

    async def delete(self, prefix: str) -> None:
        for stored in possible_pictures(prefix):
            self._stored.pop(stored.object_key, None)

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:
        return self._signer.url(object_key, lifetime=lifetime)

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        self._signer.check(object_key, expires=expires, signature=signature)
        if object_key not in self._stored or await self.is_used_up(object_key):
            raise NotFound("No such picture")
        return self._stored[object_key].picture

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        object_key = stored_picture(prefix, media_type).object_key
        return self._signer.upload_links(object_key, lifetime=lifetime)

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:
        self._signer.check_upload(object_key, expires=expires, signature=signature)

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        if object_key in self._stored:
            return self._stored[object_key].picture.data == data
        self._keep(object_key, Picture(data=data, media_type=media_type_of(object_key)))
        return True

    async def keep_pieces(self, object_key: str, pieces: AsyncIterator[bytes]) -> bool:
        return await self.keep_upload(object_key, b"".join([piece async for piece in pieces]))

    async def is_used_up(self, object_key: str) -> bool:
        return object_key in self._stored and not self._stored[object_key].picture.data

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        return min(limit, sum(key.startswith(f"{folder}/") for key in self._stored))

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        if object_key not in self._stored or await self.is_used_up(object_key):
            raise not_uploaded()
        data = self._stored[object_key].picture.data
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        return data

    async def delete_uploads_before(self, moment: datetime, *, limit: int) -> int:
        old = [
            key
            for key, stored in sorted(self._stored.items())
            if key.startswith(f"{UPLOADS_ROOT}/") and stored.at < moment
        ]
        for key in old[:limit]:
            del self._stored[key]
        return len(old[:limit])

    async def delete_uploads(self, object_keys: Collection[str]) -> None:
        for key in object_keys:
            self._stored.pop(key, None)

    async def delete_uploads_below(self, path: str, *, limit: int) -> int:
        below = re.compile(rf"{UPLOADS_ROOT}/[^/]+/{re.escape(path)}/")
        found = [key for key in self._stored if below.match(key)][:limit]
        for key in found:
            del self._stored[key]
        return len(found)

    def _keep(self, object_key: str, picture: Picture) -> None:
        self._stored[object_key] = _Stored(picture, self._signer.clock())
