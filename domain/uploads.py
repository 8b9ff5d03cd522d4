"""Uploads: pictures that callers store with us before they use them in a request.

An upload is an object whose key names its owner and its day, so quotas and ages need no table.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from domain.credits import Owner
from domain.errors import Conflict, InvalidInput, Overloaded, Refused, TooManyUploads
from domain.object_keys import media_type_of
from domain.ports import Picture, UploadLinks, UploadSinkPort, UploadStoragePort

InspectPicture = Callable[[bytes], Awaitable[Picture]]
"""Finds the media type that the bytes really have. Raises ``Refused`` unless they are a picture."""

_UPLOAD = re.compile(
    r"uploads/[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<whose>[^/]+/[^/]+)"
    r"/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]+"
)


def upload_folder(owner: Owner, day: date) -> str:
    """The folder of ``owner``'s uploads whose links were issued on ``day`` (UTC)."""
    return f"uploads/{day.isoformat()}/{owner.channel}/{owner.id}"


def is_upload(object_key: str) -> bool:
    """Whether an object key, which may come from anywhere, is that of an upload."""
    return _UPLOAD.fullmatch(object_key) is not None


def is_upload_of(owner: Owner, object_key: str) -> bool:
    """Whether an object key, which may come from anywhere, is that of an upload of ``owner``."""
    upload = _UPLOAD.fullmatch(object_key)
    return upload is not None and upload["whose"] == f"{owner.channel}/{owner.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPolicy:
    """An owner's quota of uploads per day, the size limit of each, and how long a link for sending
    one is valid."""

    max_per_day: int = 1_000
    max_bytes: int = 10_000_000
    send_within: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOffer:
    """Where to send a picture, by when and how large, and the link under which to use it."""

    links: UploadLinks
    expires_at: datetime
    max_bytes: int


class Uploads:
    """Issues upload links within each owner's daily quota."""

    def __init__(
        self,
        *,
        storage: UploadStoragePort,
        policy: UploadPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._storage = storage
        self._policy = policy
        self._new_id = new_id
        self._clock = clock

    async def offer(self, owner: Owner, media_type: str) -> UploadOffer:
        """Links for one new picture. Raises ``TooManyUploads``, and ``TryAgain`` when the storage
        does not answer."""
        now = self._clock().replace(microsecond=0)  # Signed links have whole seconds only.
        folder = upload_folder(owner, now.date())
        await self.check_quota(folder)
        links = self._storage.upload_links(
            f"{folder}/{self._new_id()}", media_type, lifetime=self._policy.send_within
        )
        return UploadOffer(
            links=links,
            expires_at=now + self._policy.send_within,
            max_bytes=self._policy.max_bytes,
        )

    async def check_quota(self, folder: str) -> None:
        """Raises ``TooManyUploads`` if the quota of ``folder`` is used up."""
        quota = self._policy.max_per_day
        if await self._storage.count_uploads(folder, limit=quota) >= quota:
            raise TooManyUploads(
                f"The daily limit of {quota} uploads is reached",
                retry_after_seconds=_seconds_left_of_day(self._clock()),
            )


class UploadReceiver:
    """Keeps one picture per upload link, for storage whose uploads pass through our API.

    ``max_in_flight`` bounds the memory that uploads take.
    """

    def __init__(
        self,
        *,
        sink: UploadSinkPort,
        check_quota: Callable[[str], Awaitable[None]],
        inspect: InspectPicture,
        max_in_flight: int = 32,
    ) -> None:
        self._sink = sink
        self._check_quota = check_quota
        self._inspect = inspect
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def receive(
        self,
        object_key: str,
        *,
        expires: int,
        signature: str,
        body: Callable[[], Awaitable[bytes]],
    ) -> Picture:
        """Keep the picture that ``body`` returns. ``body`` is called only for a valid link, with
        capacity and quota left.

        Raises ``NotFound`` for an invalid link, ``Overloaded``, ``TooManyUploads``,
        ``InvalidInput`` unless it is a picture of the media type that the key names, ``Conflict``
        if the link was used before, and ``TryAgain`` when the storage does not answer.
        """
        self._sink.check_upload_link(object_key, expires=expires, signature=signature)
        if self._in_flight >= self._max_in_flight:
            raise Overloaded("Too many uploads in progress; try again later")
        self._in_flight += 1
        try:
            folder, _, _ = object_key.rpartition("/")
            await self._check_quota(folder)
            picture = await self._inspected(await body(), media_type_of(object_key))
            if not await self._sink.keep_upload(object_key, picture.data):
                raise Conflict("This upload link was already used; request a new one")
        finally:
            self._in_flight -= 1
        return picture

    async def _inspected(self, data: bytes, announced: str) -> Picture:
        try:
            picture = await self._inspect(data)
        except Refused as error:
            raise InvalidInput("body", str(error)) from error
        if picture.media_type != announced:
            raise InvalidInput("body", f"is {picture.media_type}, not {announced} as announced")
        return picture


def _seconds_left_of_day(now: datetime) -> int:
    return 86_400 - (now.hour * 60 + now.minute) * 60 - now.second
