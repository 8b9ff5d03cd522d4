"""Pictures as files below one directory."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, ObjectStore

from adapters.storage.faults import faults_translated
from adapters.storage.keys import media_type_of, possible_pictures, stored_picture
from adapters.storage.signing import SignedReadPort, UploadSinkPort, UrlSigner
from adapters.storage.uploads import StoredUploads
from domain.errors import NotFound
from domain.ports import Picture, PictureStoragePort, UploadLinks
from domain.sessions import StoredPicture


class LocalPictureStorage(StoredUploads, PictureStoragePort, SignedReadPort, UploadSinkPort):
    """A file appears whole or not at all, and is never replaced.

    A process that is killed while it saves may leave ``{key}#1`` behind, or a higher number where
    that is taken. Nobody reads them, and the first three are deleted with the picture.
    """

    def __init__(self, root: Path, *, signer: UrlSigner) -> None:
        self._root = root
        self._signer = signer

    @cached_property
    def _store(self) -> LocalStore:
        return LocalStore(self._root, mkdir=True)

    @cached_property
    def _tidying_store(self) -> LocalStore:
        """Removes the folders that it empties, which may fail a write into them at that moment: so
        it only ever deletes below the folders of past days, where nobody writes."""
        return LocalStore(self._root, mkdir=True, automatic_cleanup=True)

    async def find(self, prefix: str) -> StoredPicture | None:
        with faults_translated():
            for stored in possible_pictures(prefix):
                with suppress(FileNotFoundError):
                    await self._store.head_async(stored.object_key)
                    return stored
        return None

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        stored = stored_picture(prefix, picture.media_type)
        with faults_translated(), suppress(AlreadyExistsError):
            await self._store.put_async(stored.object_key, picture.data, mode="create")
        return stored

    async def delete(self, prefix: str) -> None:
        with faults_translated():
            await asyncio.to_thread(self._remove, prefix)

    def _remove(self, prefix: str) -> None:
        for stored in possible_pictures(prefix):
            path = self.path_of(stored.object_key)
            for leftover in ("", "#1", "#2", "#3"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)

    def url(self, object_key: str) -> str:
        return self._signer.url(object_key)

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        self._signer.check(object_key, expires=expires, signature=signature)
        media_type = media_type_of(object_key)
        with faults_translated():
            try:
                found = await self._store.get_async(object_key)
                data = await found.bytes_async()
            except FileNotFoundError as error:
                raise NotFound("No such picture") from error
        return Picture(data=bytes(data), media_type=media_type)

    def _objects(self) -> ObjectStore:
        return self._tidying_store

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        object_key = stored_picture(prefix, media_type).object_key
        return UploadLinks(
            upload_url=self._signer.upload_url(object_key, lifetime=lifetime),
            image_url=self.url(object_key),
        )

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        with faults_translated():
            try:
                await self._store.put_async(object_key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def path_of(self, object_key: str) -> Path:
        """The file that holds a picture. Raises ``NotFound`` for a key that none can have."""
        media_type_of(object_key)
        return self._root / object_key
