"""Callers' own pictures in any storage that obstore knows."""

from abc import abstractmethod
from contextlib import suppress
from datetime import date

from obstore.store import ObjectStore

from adapters.images.inspection import too_large
from adapters.storage.faults import faults_translated
from domain.errors import Refused
from domain.ports import UploadStoragePort
from domain.sessions import ErrorCode

_ROOT = "uploads"
_PAGE = 1_000


class StoredUploads(UploadStoragePort):
    """What does not depend on who serves the links."""

    @abstractmethod
    def _objects(self) -> ObjectStore:
        """Where they are."""

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        with faults_translated():
            return len(await _first(self._objects(), folder, limit))

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        with faults_translated():
            try:
                # Its size comes before its bytes, which are left where they are if there are more.
                found = await self._objects().get_async(object_key)
                if found.meta["size"] > max_bytes:
                    raise too_large(max_bytes)
                return bytes(await found.bytes_async())
            except FileNotFoundError as error:
                raise not_there() from error

    async def delete_uploads_before(self, day: date, *, limit: int) -> int:
        with faults_translated():
            store = self._objects()
            listing = await store.list_with_delimiter_async(_ROOT)
            old = [folder for folder in sorted(listing["common_prefixes"]) if _is_old(folder, day)]
            keys: list[str] = []
            for folder in old:
                keys += await _first(store, folder, limit - len(keys))
                if len(keys) >= limit:
                    break
            await _delete(store, keys)
        return len(keys)


def not_there() -> Refused:
    """What to raise where no upload is."""
    return Refused("A picture was not uploaded", code=ErrorCode.IMAGE_UNREACHABLE)


def day_of(object_key: str) -> str:
    """The day of an upload, as it sorts."""
    return object_key.split("/")[1]


def _is_old(folder: str, day: date) -> bool:
    """What is no day's folder is not ours to delete."""
    with suppress(ValueError):
        return date.fromisoformat(day_of(folder)) < day
    return False


async def _first(store: ObjectStore, folder: str, limit: int) -> list[str]:
    """Up to ``limit`` of the keys in ``folder``."""
    keys: list[str] = []
    async for page in store.list(folder, chunk_size=min(limit, _PAGE)):
        keys += [found["path"] for found in page]
        if len(keys) >= limit:
            break
    return keys[:limit]


async def _delete(store: ObjectStore, keys: list[str]) -> None:
    """At once; on a disk, where that stops at the first that another process deleted, singly."""
    try:
        await store.delete_async(keys)
    except FileNotFoundError:
        for key in keys:
            with suppress(FileNotFoundError):
                await store.delete_async(key)
