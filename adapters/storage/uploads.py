"""Callers' own pictures in any storage that obstore supports."""

from abc import abstractmethod
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, date, datetime

from obstore.store import ObjectStore

from adapters.images.inspection import too_large
from adapters.storage.faults import faults_translated
from domain.errors import Refused
from domain.picture_ports import UploadStoragePort
from domain.sessions import ErrorCode

UPLOADS_ROOT = "uploads"
_PAGE = 1_000


class StoredUploads(UploadStoragePort):
    """The part of ``UploadStoragePort`` that does not depend on who serves the links."""

    @abstractmethod
    def _objects(self) -> ObjectStore:
        """The uploads and all other objects."""

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        count = 0
        with faults_translated():
            async for page in self._objects().list(folder, chunk_size=min(limit, _PAGE)):
                count += len(page)
                if count >= limit:
                    break
        return min(count, limit)

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        with faults_translated():
            try:
                # The size arrives before the bytes; too many of them are not downloaded.
                found = await self._objects().get_async(object_key)
                if found.meta["size"] > max_bytes:
                    raise too_large(max_bytes)
                data = bytes(await found.bytes_async())
            except FileNotFoundError as error:
                raise not_uploaded() from error
        if not data:
            raise not_uploaded()
        return data

    async def delete_uploads_before(self, moment: datetime, *, limit: int) -> int:
        with faults_translated():
            keys = await self._stored_before(moment, limit)
            await _delete(self._objects(), keys)
        return len(keys)

    async def delete_uploads(self, object_keys: Collection[str]) -> None:
        """Names existing objects only: some services reject the deletion of a missing one."""
        with faults_translated():
            there = [key for key in object_keys if await _exists(self._objects(), key)]
            if there:
                await _delete(self._objects(), there)

    async def delete_uploads_below(self, path: str, *, limit: int) -> int:
        with faults_translated():
            keys = await self._stored_below(path, limit)
            if keys:
                await _delete(self._objects(), keys)
        return len(keys)

    async def _stored_below(self, path: str, limit: int) -> list[str]:
        objects = self._objects()
        listing = await objects.list_with_delimiter_async(UPLOADS_ROOT)
        keys: list[str] = []
        for folder in listing["common_prefixes"]:
            async for page in objects.list(f"{folder}/{path}", chunk_size=_PAGE):
                keys += [found["path"] for found in page]
                if len(keys) >= limit:
                    return keys[:limit]
        return keys

    async def _stored_before(self, moment: datetime, limit: int) -> list[str]:
        """Up to ``limit`` keys, oldest day first. An upload is stored on the day of its folder or
        later, so folders of days after ``moment`` hold none."""
        objects = self._objects()
        listing = await objects.list_with_delimiter_async(UPLOADS_ROOT)
        last_day = moment.astimezone(UTC).date()
        keys: list[str] = []
        for folder in sorted(listing["common_prefixes"]):
            day = day_of(folder)
            if day is None or day > last_day:
                continue
            async for page in objects.list(folder, chunk_size=_PAGE):
                keys += [found["path"] for found in page if found["last_modified"] < moment]
                if len(keys) >= limit:
                    return keys[:limit]
        return keys


def not_uploaded() -> Refused:
    """The error for a missing upload."""
    return Refused("A picture was not uploaded", code=ErrorCode.IMAGE_UNREACHABLE)


def day_of(path: str) -> date | None:
    """The day in the path of an upload or its day's folder. None if the folder's name is not a
    date: leave such folders alone."""
    with suppress(ValueError, IndexError):
        return date.fromisoformat(path.split("/")[1])
    return None


async def _exists(objects: ObjectStore, object_key: str) -> bool:
    try:
        await objects.head_async(object_key)
    except FileNotFoundError:
        return False
    return True


async def _delete(objects: ObjectStore, keys: list[str]) -> None:
    """All in one call. A local disk stops at the first file that another process has deleted
    already: then one by one."""
    try:
        await objects.delete_async(keys)
    except FileNotFoundError:
        for key in keys:
            with suppress(FileNotFoundError):
                await objects.delete_async(key)
