"""Uploads: pictures that callers store with us before they use them in a request.

An upload is an object whose key names its owner and its day, so quotas and ages need no table. The
uploads of a store's shopper are in a folder of their own within the store's.
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol
from uuid import UUID

from domain.callers import Caller, Shopper
from domain.client_tokens import ClientTokenRepoPort
from domain.credits import GENERATION_COST, Owner
from domain.errors import (
    BodyTooSlow,
    Conflict,
    InvalidInput,
    LinkInUse,
    Overloaded,
    Refused,
    StorageUnavailable,
    TooManyUploads,
    Unauthenticated,
    UploadTooLarge,
)
from domain.object_keys import media_type_of
from domain.picture_ports import UploadLinks, UploadSinkPort, UploadStoragePort
from domain.signup import CallerAccounts

_USED = "This upload link was already used; request a new one"
_BUSY = "Too many uploads in progress; try again later"
_BUSY_SECONDS = 5


_SHOPPER_FOLDER = re.compile(r"/shopper-[0-9a-f]{32}/")
_OWNER_DEPTH = 3
"""How many slashes the folder of an owner has."""


class InspectHead(Protocol):
    """Finds the media type of a file by its first bytes. Raises ``Refused`` unless it may be a
    picture of a usable size."""

    def __call__(self, head: bytes, *, is_whole: bool) -> str: ...


_UPLOAD = re.compile(
    r"uploads/[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<whose>[^/]+/[^/]+)(?:/shopper-[0-9a-f]{32})?"
    r"/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]+"
)


def upload_folder(owner: Owner, day: date) -> str:
    """The folder of ``owner``'s uploads whose links were issued on ``day`` (UTC)."""
    return f"uploads/{day.isoformat()}/{upload_path(owner)}"


def upload_path(owner: Owner) -> str:
    """The part of the folders of ``owner``'s uploads after their day."""
    return f"{owner.channel}/{owner.id}"


def shopper_folder(folder: str, shopper_id: str) -> str:
    """The folder of a shopper's uploads within ``folder``, that of its store. Links and logs name
    it, so it does not show the shopper's id."""
    return f"{folder}/{_folder_name(shopper_id)}"


def leads_to_another_shopper(url: str, shopper_id: str) -> bool:
    """Whether a link to an upload leads into the folder of another shopper."""
    return any(name[1:-1] != _folder_name(shopper_id) for name in _SHOPPER_FOLDER.findall(url))


def is_upload_of_shopper(owner: Owner, shopper_id: str, object_key: str) -> bool:
    """Whether an object key, which may come from anywhere, is that of an upload of a shopper of
    ``owner``."""
    return is_upload_of(owner, object_key) and f"/{_folder_name(shopper_id)}/" in object_key


def _folder_name(shopper_id: str) -> str:
    return f"shopper-{hashlib.sha256(shopper_id.encode()).hexdigest()[:32]}"


def _folder_of_store(folder: str) -> str | None:
    """The store's folder, if ``folder`` is that of one of its shoppers."""
    store, _, name = folder.rpartition("/")
    return store if name.startswith("shopper-") and store.count("/") == _OWNER_DEPTH else None


def is_upload(object_key: str) -> bool:
    """Whether an object key, which may come from anywhere, is that of an upload."""
    return _UPLOAD.fullmatch(object_key) is not None


def is_upload_of(owner: Owner, object_key: str) -> bool:
    """Whether an object key, which may come from anywhere, is that of an upload of ``owner``."""
    upload = _UPLOAD.fullmatch(object_key)
    return upload is not None and upload["whose"] == f"{owner.channel}/{owner.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPolicy:
    """An owner's quota of uploads per day, and the share of it that one shopper may use; the size
    limit of each, and how long a link for sending one is valid."""

    max_per_day: int = 1_000
    max_per_shopper: int = 50
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
        accounts: CallerAccounts,
        tokens: ClientTokenRepoPort,
        policy: UploadPolicy,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._storage = storage
        self._accounts = accounts
        self._tokens = tokens
        self._policy = policy
        self._new_id = new_id
        self._clock = clock

    async def offer(self, caller: Caller, media_type: str) -> UploadOffer:
        """Links for one new picture. Raises ``InsufficientCredits`` if the owner could not use it,
        and ``TokenUsedUp`` or ``Unauthenticated`` if the shopper could not; ``Suspended``,
        ``TooManyUploads``, and ``StorageUnavailable`` when the storage does not answer."""
        now = self._clock().replace(microsecond=0)  # Signed links have whole seconds only.
        folder = upload_folder(caller.owner, now.date())
        if caller.shopper is not None:
            await self._require_picture(caller.shopper)
            folder = shopper_folder(folder, caller.shopper.id)
        account = await self._accounts.of(caller)
        account.require_active()
        account.require(GENERATION_COST)
        await self.check_quota(folder)
        links = self._storage.upload_links(
            f"{folder}/{self._new_id()}", media_type, lifetime=self._policy.send_within
        )
        return UploadOffer(
            links=links,
            expires_at=now + self._policy.send_within,
            max_bytes=self._policy.max_bytes,
        )

    async def _require_picture(self, shopper: Shopper) -> None:
        token = await self._tokens.get(shopper.token_id)
        if token is None:
            raise Unauthenticated("The client token has expired or was revoked")
        token.require_picture(self._clock())

    async def check_quota(self, folder: str) -> None:
        """Raises ``TooManyUploads`` if the quota of ``folder`` is used up: that of a shopper, or
        that of its owner, which includes its shoppers' uploads."""
        store = _folder_of_store(folder)
        if store is not None:
            await self._check(folder, self._policy.max_per_shopper)
        await self._check(store or folder, self._policy.max_per_day)

    async def _check(self, folder: str, quota: int) -> None:
        if await self._storage.count_uploads(folder, limit=quota) >= quota:
            raise TooManyUploads(
                f"The daily limit of {quota} uploads is reached",
                retry_after_seconds=_seconds_left_of_day(self._clock()),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivingLimits:
    """Bounds of uploads in progress, in one process: of all, of one owner itself, of one shopper,
    of all shoppers of a store, and from one address. One address may be that of a proxy, and many
    clients. A body must arrive within ``grace_seconds`` or
    average ``min_bytes_per_second``."""

    in_progress: int = 128
    per_owner: int = 16
    per_shopper: int = 4
    per_store_of_shoppers: int = 64
    per_address: int = 64
    grace_seconds: float = 10.0
    min_bytes_per_second: int = 10_000
    head_bytes: int = 65_536


RECEIVING_LIMITS = ReceivingLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedUpload:
    """What was kept."""

    media_type: str
    size: int


class UploadReceiver:
    """Keeps one picture per upload link, for storage whose uploads pass through our API. Looks at
    the first bytes only; those of the whole picture are never in memory together."""

    def __init__(
        self,
        *,
        sink: UploadSinkPort,
        check_quota: Callable[[str], Awaitable[None]],
        inspect: InspectHead,
        limits: ReceivingLimits = RECEIVING_LIMITS,
    ) -> None:
        self._sink = sink
        self._check_quota = check_quota
        self._inspect = inspect
        self._limits = limits
        self._links: set[str] = set()
        self._folders: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    async def receive(
        self,
        object_key: str,
        *,
        expires: int,
        signature: str,
        address: str,
        body: Callable[[], AsyncIterator[bytes]],
    ) -> ReceivedUpload:
        """Keep the picture whose pieces ``body`` returns. ``body`` is called only for a valid link
        that is not used up, with capacity and quota left. ``address`` is the client's.

        Raises ``NotFound`` for an invalid link, ``LinkInUse``, ``Overloaded``, ``TooManyUploads``,
        and ``Conflict`` if the link was used before, but not by the same bytes; ``InvalidInput``
        unless it may be a picture of the media type that the key names, and what ``body`` raises.
        The last two use the link up, unless the body only failed to arrive. Raises
        ``StorageUnavailable`` when the storage does not answer.
        """
        self._sink.check_upload_link(object_key, expires=expires, signature=signature)
        folder, _, _ = object_key.rpartition("/")
        with self._place(object_key, folder, address):
            await self._check_quota(folder)
            if await self._sink.is_used_up(object_key):
                raise Conflict(_USED)
            upload = _Arriving(body(), media_type_of(object_key), self._inspect, self._limits)
            try:
                kept = await self._keep(object_key, upload)
            except (InvalidInput, UploadTooLarge):
                with suppress(StorageUnavailable):
                    await self._sink.keep_upload(object_key, b"")
                raise
            if not kept:
                raise Conflict(_USED)
        return ReceivedUpload(media_type=media_type_of(object_key), size=upload.size)

    async def _keep(self, object_key: str, upload: "_Arriving") -> bool:
        try:
            async with asyncio.timeout(self._limits.grace_seconds) as deadline:
                return await self._sink.keep_pieces(object_key, upload.pieces(deadline))
        except TimeoutError as error:
            raise BodyTooSlow("body: did not arrive in time") from error

    @contextmanager
    def _place(self, object_key: str, folder: str, address: str) -> Iterator[None]:
        limits = self._limits
        if object_key in self._links:
            raise LinkInUse("This upload link is receiving a picture")
        shares = self._shares(folder)
        if any(self._folders[share] >= limit for share, limit in shares.items()):
            raise TooManyUploads(_BUSY, retry_after_seconds=_BUSY_SECONDS)
        if self._addresses[address] >= limits.per_address:
            raise TooManyUploads(_BUSY, retry_after_seconds=_BUSY_SECONDS)
        if len(self._links) >= limits.in_progress:
            raise Overloaded(_BUSY)
        self._links.add(object_key)
        self._folders.update(shares.keys())
        self._addresses[address] += 1
        try:
            yield
        finally:
            self._links.remove(object_key)
            self._folders -= Counter(shares.keys())  # also drops what is no longer counted
            self._addresses -= Counter([address])

    def _shares(self, folder: str) -> dict[str, int]:
        """What an upload to ``folder`` counts for, each with its limit."""
        store = _folder_of_store(folder)
        if store is None:
            return {folder: self._limits.per_owner}
        return {
            folder: self._limits.per_shopper,
            f"{store}/*": self._limits.per_store_of_shoppers,
        }


class _Arriving:
    """An upload that arrives: its first bytes are looked at before any of it is passed on."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        announced: str,
        inspect: InspectHead,
        limits: ReceivingLimits,
    ) -> None:
        self._body = body
        self._announced = announced
        self._inspect = inspect
        self._limits = limits
        self.size = 0

    async def pieces(self, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        """Each received byte extends the ``deadline`` a little."""
        ends_at = asyncio.get_running_loop().time() + self._limits.grace_seconds
        head, is_inspected = bytearray(), False
        async for piece in self._body:
            self.size += len(piece)
            deadline.reschedule(ends_at + self.size / self._limits.min_bytes_per_second)
            if is_inspected:
                yield piece
                continue
            head += piece
            if len(head) >= self._limits.head_bytes:
                self._check(bytes(head[: self._limits.head_bytes]), is_whole=False)
                is_inspected = True
                yield bytes(head)
                head.clear()
        if not is_inspected:
            self._check(bytes(head), is_whole=True)
            yield bytes(head)

    def _check(self, head: bytes, *, is_whole: bool) -> None:
        try:
            found = self._inspect(head, is_whole=is_whole)
        except Refused as error:
            raise InvalidInput("body", str(error)) from error
        if found != self._announced:
            raise InvalidInput("body", f"is {found}, not {self._announced} as announced")


def _seconds_left_of_day(now: datetime) -> int:
    return 86_400 - (now.hour * 60 + now.minute) * 60 - now.second
