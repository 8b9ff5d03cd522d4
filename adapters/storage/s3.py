"""Pictures in a bucket of S3 or a compatible service: R2, MinIO, Supabase Storage."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any
from uuid import uuid4

from obstore import sign
from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore, S3Store

from adapters.storage.faults import Readiness, faults_translated, unavailable
from adapters.storage.uploads import StoredUploads
from domain.errors import StorageUnavailable
from domain.object_keys import possible_pictures, stored_picture
from domain.picture_ports import Picture, PictureStoragePort, UploadLinks
from domain.sessions import StoredPicture

_MAX_RETRIES = 2
_CHECKS_ROOT = "generated/checks"  # Where we may write, if credentials are limited to pictures.
_NO_CONDITIONS = "501 to a conditional PUT: set WEARON_S3_CONDITIONAL_PUT=false"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Bucket:
    """A bucket's address and our credentials for it.

    Without ``endpoint`` it is Amazon's. With ``path_style`` the bucket's name is in the path of
    every URL; without it an ``endpoint`` has to begin with the name itself. The credentials need
    PutObject, GetObject, DeleteObject and ListBucket: without the last, S3 answers 403 for a
    missing object.
    """

    name: str
    region: str
    endpoint: str | None
    path_style: bool
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    timeout_seconds: float

    @property
    def url(self) -> str:
        """What the bucket's links begin with."""
        host = "s3" if self.path_style else f"{self.name}.s3"
        return self.endpoint or f"https://{host}.{self.region}.amazonaws.com"


def s3_store(bucket: S3Bucket) -> S3Store:
    """A client that tries at most three times, each time for at most ``timeout_seconds``."""
    timeout = timedelta(seconds=bucket.timeout_seconds)
    return S3Store(
        bucket.name,
        endpoint=bucket.url,
        region=bucket.region,
        access_key_id=bucket.access_key_id,
        secret_access_key=bucket.secret_access_key,
        virtual_hosted_style_request=not bucket.path_style,
        client_options={"timeout": timeout, "connect_timeout": timeout, "allow_http": True},
        retry_config={"max_retries": _MAX_RETRIES, "retry_timeout": timeout * _MAX_RETRIES},
    )


def cors_rule(origins: Sequence[str]) -> dict[str, Any]:
    """What lets pages of ``origins`` send uploads to a bucket and draw its pictures on a canvas, in
    the form of S3's PutBucketCors."""
    rule = {
        "AllowedOrigins": list(origins),
        "AllowedMethods": ["GET", "HEAD", "PUT"],
        "AllowedHeaders": ["content-type"],
        "ExposeHeaders": ["ETag"],
        "MaxAgeSeconds": 7200,
    }
    return {"CORSRules": [rule]}


class S3PictureStorage(StoredUploads, PictureStoragePort):
    """A picture appears whole or not at all, and with ``conditional_put`` it is never replaced.

    Some services do not support ``If-None-Match: *`` and may answer 501, which ``check`` reports
    with the name of the setting: set ``conditional_put`` to False for them. That is for an operator
    to decide, because a picture is then only looked for before it is saved: two workers that save
    at the same moment (one of them has lost its lease) may replace one finished picture of a
    session with another of the same session; key and credits are the same either way.

    A signed upload URL limits neither the size nor how often it is used before it expires, so size
    and type are checked when the picture is used.
    """

    def __init__(
        self, store: S3Store, *, url_lifetime: timedelta, conditional_put: bool = True
    ) -> None:
        self._store = store
        self._url_lifetime = url_lifetime
        self._conditional_put = conditional_put
        self._readiness = Readiness(self._probe, seconds=inf)

    async def check(self) -> None:
        """Tries the bucket at first and after a picture was not saved: a request costs money."""
        await self._readiness.check()

    async def _probe(self, size: int) -> None:
        object_key = f"{_CHECKS_ROOT}/{uuid4()}"
        await self._put(object_key, bytes(size), "application/octet-stream")
        await self._has(object_key)
        with suppress(StorageUnavailable), faults_translated():
            await self._store.delete_async([object_key])

    async def _put(self, object_key: str, data: bytes, media_type: str) -> None:
        try:
            # After a lost reply, the retry finds our own picture there: that is a success.
            with faults_translated(), suppress(AlreadyExistsError):
                await self._store.put_async(
                    object_key,
                    data,
                    attributes={"Content-Type": media_type},
                    mode="create" if self._conditional_put else "overwrite",
                    use_multipart=False,
                )
        except StorageUnavailable as error:
            if self._conditional_put and error.cause.detail.startswith("501"):
                raise unavailable(_NO_CONDITIONS) from error
            raise

    async def find(self, prefix: str) -> StoredPicture | None:
        candidates = possible_pictures(prefix)
        with self._readiness.used():
            there = await asyncio.gather(*(self._has(stored.object_key) for stored in candidates))
        return next(
            (stored for stored, found in zip(candidates, there, strict=True) if found), None
        )

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        stored = stored_picture(prefix, picture.media_type)
        with self._readiness.used(len(picture.data)):
            await self._put(stored.object_key, picture.data, picture.media_type)
        return stored

    async def delete(self, prefix: str) -> None:
        """Names existing objects only: some services reject the deletion of a missing one."""
        candidates = possible_pictures(prefix)
        there = await asyncio.gather(*(self._has(stored.object_key) for stored in candidates))
        keys = [stored.object_key for stored, found in zip(candidates, there, strict=True) if found]
        with faults_translated():
            if keys:
                await self._store.delete_async(keys)
            else:
                # A missing bucket has no such objects either; only a listing reports that.
                await self._store.list_with_delimiter_async(prefix)

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:
        return sign(self._store, "GET", object_key, lifetime or self._url_lifetime)

    def _objects(self) -> ObjectStore:
        return self._store

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        object_key = stored_picture(prefix, media_type).object_key
        return UploadLinks(
            upload_url=sign(self._store, "PUT", object_key, lifetime),
            image_url=self.url(object_key),
        )

    async def _has(self, object_key: str) -> bool:
        with faults_translated():
            try:
                await self._store.head_async(object_key)
            except FileNotFoundError:
                return False
        return True
