"""Pictures as files below one directory."""

import asyncio
import errno
import filecmp
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from secrets import randbits
from typing import BinaryIO

from obstore.store import LocalStore, ObjectStore

from adapters.storage.faults import Readiness, faults_translated
from adapters.storage.signing import UrlSigner
from adapters.storage.uploads import UPLOADS_ROOT, StoredUploads, day_of
from domain.errors import NotFound
from domain.object_keys import media_type_of, possible_pictures, stored_picture
from domain.picture_ports import (
    Picture,
    PictureStoragePort,
    SignedReadPort,
    UploadLinks,
    UploadSinkPort,
)
from domain.sessions import StoredPicture

_CHECK_AGAIN_SECONDS = 5.0
_RESERVE_BYTES = 32_000_000
"""A disk with less free space counts as full; so does a small one with less than a twentieth."""
_MAX_LEFTOVERS = 100
_PARTIAL = "#"
"""Ends the name of a partial file, with a number behind it: obstore lists no such file."""
_BLOCK_BYTES = 262_144
_QUIET_DAYS = timedelta(days=2)
"""A folder of uploads whose day began this long ago, or longer, gets no new ones."""


class LocalPictureStorage(StoredUploads, PictureStoragePort, SignedReadPort, UploadSinkPort):
    """A file appears whole or not at all, and is never replaced. A saved picture has reached the
    disk, and so has its name.

    A process that is killed while saving may leave a partial file named ``{key}#1``, or with a
    higher number if that is taken. It is never read; the first three are deleted with the picture,
    those of uploads some days later.
    """

    def __init__(self, root: Path, *, signer: UrlSigner) -> None:
        self._root = root
        self._signer = signer
        self._readiness = Readiness(self._probe, seconds=_CHECK_AGAIN_SECONDS)

    async def check(self) -> None:
        await self._readiness.check()

    async def _probe(self, size: int) -> None:
        with faults_translated():
            await asyncio.to_thread(self._try_to_write, size)

    def _try_to_write(self, size: int) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(self._root)
        reserve = min(_RESERVE_BYTES, room.f_blocks * room.f_frsize // 20)
        if room.f_bavail * room.f_frsize < max(reserve, size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _written(self._root / "check", bytes(size)):
            pass

    @cached_property
    def _store(self) -> LocalStore:
        return LocalStore(self._root, mkdir=True)

    async def find(self, prefix: str) -> StoredPicture | None:
        with self._readiness.used(), faults_translated():
            return await asyncio.to_thread(self._find, prefix)

    def _find(self, prefix: str) -> StoredPicture | None:
        for stored in possible_pictures(prefix):
            with suppress(FileNotFoundError):
                self.path_of(stored.object_key).stat()
                return stored
        return None

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        stored = stored_picture(prefix, picture.media_type)
        with self._readiness.used(len(picture.data)), faults_translated():
            await asyncio.to_thread(_write_durably, self._root, stored.object_key, picture.data)
        return stored

    async def delete(self, prefix: str) -> None:
        with faults_translated():
            await asyncio.to_thread(self._remove, prefix)

    def _remove(self, prefix: str) -> None:
        for stored in possible_pictures(prefix):
            path = self.path_of(stored.object_key)
            for leftover in ("", "#1", "#2", "#3"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:
        return self._signer.url(object_key, lifetime=lifetime)

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        self._signer.check(object_key, expires=expires, signature=signature)
        media_type = media_type_of(object_key)
        with faults_translated():
            try:
                found = await self._store.get_async(object_key)
                data = await found.bytes_async()
            except FileNotFoundError as error:
                raise NotFound("No such picture") from error
        if not data:
            raise NotFound("No such picture")
        return Picture(data=bytes(data), media_type=media_type)

    def _objects(self) -> ObjectStore:
        return self._store

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        object_key = stored_picture(prefix, media_type).object_key
        return self._signer.upload_links(object_key, lifetime=lifetime)

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:
        self._signer.check_upload(object_key, expires=expires, signature=signature)

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        return await self.keep_pieces(object_key, _one_piece(data))

    async def keep_pieces(self, object_key: str, pieces: AsyncIterator[bytes]) -> bool:
        path = self.path_of(object_key)
        with faults_translated():
            file = await asyncio.to_thread(_open_partial, path)
        try:
            async for block in _blocks(pieces):
                with faults_translated():
                    await asyncio.to_thread(file.write, block)
            with faults_translated():
                return await asyncio.to_thread(_publish, file, path)
        finally:
            with faults_translated():
                await asyncio.to_thread(_discard, file)

    async def is_used_up(self, object_key: str) -> bool:
        with faults_translated():
            return await asyncio.to_thread(_is_empty, self.path_of(object_key))

    async def delete_uploads_before(self, moment: datetime, *, limit: int) -> int:
        found = await super().delete_uploads_before(moment, limit=limit)
        if found < limit:
            quiet_since = moment.astimezone(UTC).date() - _QUIET_DAYS
            with faults_translated():
                await asyncio.to_thread(self._remove_empty_folders, quiet_since)
        return found

    def _remove_empty_folders(self, quiet_since: date) -> None:
        """Remove the empty folders of this day and earlier ones: to remove the folder that another
        process is about to write into would fail that write."""
        for folder in self._root.glob(f"{UPLOADS_ROOT}/*"):
            day = day_of(folder.relative_to(self._root).as_posix())
            if day is not None and day <= quiet_since:
                for path, _, names in os.walk(folder, topdown=False):
                    with suppress(OSError):
                        for name in names:
                            if _PARTIAL in name:
                                Path(path, name).unlink()
                        Path(path).rmdir()

    def path_of(self, object_key: str) -> Path:
        """The file that holds a picture. Raises ``NotFound`` for an invalid key."""
        media_type_of(object_key)
        return self._root / object_key


def _write_durably(root: Path, key: str, data: bytes) -> None:
    """Write a new file, or leave the one that is there."""
    path = root / key
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written(path, data) as partial, suppress(FileExistsError):
        path.hardlink_to(partial)
    for folder in (path.parent, *(folder.parent for folder in missing)):
        _sync(folder)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside ``path`` that holds ``data`` on the disk, for as long as the block runs."""
    partial, descriptor = _opened_beside(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _opened_beside(path: Path) -> tuple[Path, int]:
    for number in range(1, _MAX_LEFTOVERS):
        partial = path.with_name(f"{path.name}#{number}")
        with suppress(FileExistsError):
            return partial, os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    raise OSError(errno.EEXIST, "too many partial files")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _one_piece(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _blocks(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces joined to larger blocks, because each write takes a thread."""
    block = bytearray()
    async for piece in pieces:
        block += piece
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _open_partial(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}{_PARTIAL}{randbits(48)}").open("xb")


def _publish(file: BinaryIO, path: Path) -> bool:
    """False if the name is taken by other bytes."""
    file.flush()
    try:
        os.link(file.name, path)
    except FileExistsError:
        return filecmp.cmp(file.name, path, shallow=False)
    return True


def _discard(file: BinaryIO) -> None:
    file.close()
    Path(file.name).unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return False
