"""Pictures that callers bring along, so that they need no other place to keep them.

An upload is an object whose key says whose it is and of which day: bounds and age need no table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from domain.credits import Owner
from domain.errors import TooManyUploads
from domain.ports import UploadLinks, UploadStoragePort

_NAME = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]+"


def upload_folder(owner: Owner, day: date) -> str:
    """Where the uploads of ``owner`` that were asked for on ``day`` (UTC) are kept."""
    return f"uploads/{day.isoformat()}/{owner.channel}/{owner.id}"


def is_upload_of(owner: Owner, object_key: str) -> bool:
    """Whether an object of this key, which may come from anywhere, is an upload of ``owner``."""
    whose = re.escape(f"{owner.channel}/{owner.id}")
    day = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    return re.fullmatch(rf"uploads/{day}/{whose}/{_NAME}", object_key) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPolicy:
    """How many pictures an owner may have of one day, how large they may be, and for how long one
    may be sent after it was asked for."""

    max_per_day: int = 1_000
    max_bytes: int = 10_000_000
    send_within: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOffer:
    """Where to send a picture, until when, how large it may be, and where it will be then."""

    links: UploadLinks
    expires_at: datetime
    max_bytes: int


class Uploads:
    """Lets callers bring their own pictures."""

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
        now = self._clock().replace(microsecond=0)  # Signed links know whole seconds only.
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
        """Raises ``TooManyUploads`` if there are as many uploads in ``folder`` as there may be."""
        most = self._policy.max_per_day
        if await self._storage.count_uploads(folder, limit=most) >= most:
            raise TooManyUploads(
                f"No more than {most} pictures can be uploaded in a day",
                retry_after_seconds=_seconds_left_of_day(self._clock()),
            )


def _seconds_left_of_day(now: datetime) -> int:
    return 86_400 - (now.hour * 60 + now.minute) * 60 - now.second
