"""Pictures in this process's memory."""

from datetime import date, timedelta

from adapters.images.inspection import too_large
from adapters.storage.keys import media_type_of, possible_pictures, stored_picture
from adapters.storage.signing import SignedReadPort, UploadSinkPort, UrlSigner
from adapters.storage.uploads import day_of, not_there
from domain.errors import NotFound
from domain.ports import Picture, PictureStoragePort, UploadLinks, UploadStoragePort
from domain.sessions import StoredPicture


class InMemoryPictureStorage(UploadStoragePort, PictureStoragePort, SignedReadPort, UploadSinkPort):
    """Gone at exit."""

    def __init__(self, *, signer: UrlSigner) -> None:
        self._pictures: dict[str, Picture] = {}
        self._signer = signer

    async def find(self, prefix: str) -> StoredPicture | None:
        for stored in possible_pictures(prefix):
            if stored.object_key in self._pictures:
                return stored
        return None

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        stored = stored_picture(prefix, picture.media_type)
        self._pictures[stored.object_key] = picture
        return stored

    async def delete(self, prefix: str) -> None:
        for stored in possible_pictures(prefix):
            self._pictures.pop(stored.object_key, None)

    def url(self, object_key: str) -> str:
        return self._signer.url(object_key)

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        self._signer.check(object_key, expires=expires, signature=signature)
        if object_key not in self._pictures:
            raise NotFound("No such picture")
        return self._pictures[object_key]

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        object_key = stored_picture(prefix, media_type).object_key
        return UploadLinks(
            upload_url=self._signer.upload_url(object_key, lifetime=lifetime),
            image_url=self.url(object_key),
        )

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        picture = Picture(data=data, media_type=media_type_of(object_key))
        return self._pictures.setdefault(object_key, picture) is picture

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        return min(limit, sum(key.startswith(f"{folder}/") for key in self._pictures))

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        if object_key not in self._pictures:
            raise not_there()
        data = self._pictures[object_key].data
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        return data

    async def delete_uploads_before(self, day: date, *, limit: int) -> int:
        old = [key for key in sorted(self._pictures) if _is_upload_before(key, day)][:limit]
        for key in old:
            del self._pictures[key]
        return len(old)


def _is_upload_before(object_key: str, day: date) -> bool:
    return object_key.startswith("uploads/") and day_of(object_key) < day.isoformat()
