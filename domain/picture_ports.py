"""The interfaces for pictures: fetching inputs, generating, and storing.

The same rules hold as in ``ports``. Fetchers and generators have no contract suite: their failures
depend on hosts and providers, so their tests are in ``tests/adapters``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from domain.credits import Owner
from domain.sessions import StoredPicture, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture's bytes. ``media_type`` is the format of the bytes, not what a header claimed."""

    data: bytes
    media_type: str


class PictureFetcherPort(Protocol):
    """Downloads the pictures that callers link to. Trusts neither the links nor the bytes."""

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:
        """The pictures behind ``owner``'s links, in their order, downloaded in parallel and within
        one time budget.

        Raises the first failure, which ends the other downloads: ``Refused`` (a forbidden address,
        not a picture, too large, gone), ``InputUnavailable`` (the link's host is slow, broken or
        busy, or the budget is spent), ``StorageUnavailable`` (for an upload) or
        ``WorkerExhausted``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRequest:
    """The input pictures in the order of the contract, and the prompt.

    ``instead_of`` is the previous recorded job if it produced nothing. Together with the session
    it identifies this request, so that a provider can recognise a repetition. ``traceparent`` is
    the session's trace.
    """

    session_id: UUID
    prompt: str
    images: tuple[Picture, ...]
    traceparent: str
    instead_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The generated picture, and its usage if the generator reports it."""

    picture: Picture
    usage: Usage | None = None


RecordJob = Callable[[str], Awaitable[None]]
"""Records the name of a provider job with its session. Calling it again with the same name is
allowed and checks that the attempt is still the current one. Raises ``Superseded`` if it is not,
and ``DatabaseUnavailable``, after which the name may have been recorded and the job may go on."""


class PictureGeneratorPort(Protocol):
    """Makes the picture, in one call or as a job that runs at the provider.

    A generator that starts jobs passes each job's name to ``record``, as soon as it knows it: at
    most 200 characters, starting with the generator's own name. When cancelled, it stops the job
    within a few seconds, unless ``record`` says that a newer attempt may already wait for the job.
    """

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:
        """Raises ``Refused`` (moderation, unusable input), ``ProviderUnavailable`` (busy, broken,
        slow), ``TryAgain`` (a result without a picture) or ``ProviderMisconfigured`` (a wrong key,
        no quota: no request can succeed). After the last one the session goes back to the queue
        and the worker's circuit opens: the worker takes no task until the circuit lets a probe
        through. Errors of ``record`` are passed on."""

    async def resume(self, job: str, record: RecordJob) -> Generated | None:  # noqa: ARG002
        """Wait for the picture of a recorded job. None if the job produced nothing or belongs to
        another generator. Starts no job; raises the errors of ``generate``.

        The default is None: without jobs, the generator's work does not outlive a call.
        """
        return None


class StartLimitPort(Protocol):
    """The provider's limit on started work, shared by all workers.

    A permit is taken and then used or given back. In any 60 seconds at most the limit's number of
    permits is used. A permit whose holder died counts as used.

    Raises nothing if the shared state is unreachable: each process then has a limit of its own.
    """

    @property
    def is_local(self) -> bool:
        """Whether that was so at the latest call."""

    async def take(self) -> float:
        """0.0 if a permit for one start was taken. Otherwise no permit was taken, and the result is
        the number of seconds after which to ask again."""

    async def give_back(self) -> None:
        """Return an unused permit, so that another start can have it at once."""

    async def wait(self, permits: int) -> float:
        """The seconds until ``permits`` more permits will be free, if nobody else takes any. Takes
        none."""


class PictureStoragePort(Protocol):
    """Keeps finished pictures. The first picture saved for a session remains its picture.

    Raises ``StorageUnavailable``.
    """

    async def check(self) -> None:
        """Raises ``StorageUnavailable`` if a picture could not be saved now: the storage is full,
        read-only or does not answer. Cheap enough to precede every picture, because a result is
        remembered for some time; after a failure the storage is really tried."""

    async def find(self, prefix: str) -> StoredPicture | None:
        """The picture whose key is ``prefix`` plus an extension; None if there is none."""

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        """Keep ``picture`` under ``prefix`` plus the extension of its type, durably. If ``prefix``
        has a picture already, that one stays and is returned."""

    async def delete(self, prefix: str) -> None:
        """Delete the pictures under ``prefix`` plus any extension. Deleting nothing succeeds."""

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:
        """A signed URL that serves the picture to anyone until it expires or the picture is
        deleted. None is the lifetime of links for callers."""


class SignedReadPort(Protocol):
    """Picture storage that serves its own signed URLs. Cloud storage does not need this port: its
    provider serves them."""

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        """The picture behind a signed URL, given that URL's parts.

        Raises ``NotFound``, without distinction, for a wrong signature, an expired URL and a
        missing picture; ``StorageUnavailable`` when the storage does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLinks:
    """Two signed URLs of one object: a PUT to the first stores a picture, a GET of the second
    returns it."""

    upload_url: str
    image_url: str


class UploadStoragePort(Protocol):
    """Keeps callers' own pictures, in one folder per day and owner. The key is
    ``uploads/{yyyy-mm-dd}/{channel}/{owner id}/{name}`` plus the extension of the type.

    Raises ``StorageUnavailable``.
    """

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        """The links of the object whose key is ``prefix`` plus the extension of the type; the
        ``upload_url`` is valid for ``lifetime``. The ``image_url`` is that of
        ``PictureStoragePort.url``."""

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        """The number of uploads in ``folder``, counted up to ``limit``."""

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        """The uploaded bytes. Raises ``Refused`` for a missing object and, without loading it, for
        one larger than ``max_bytes``."""

    async def delete_uploads_before(self, moment: datetime, *, limit: int) -> int:
        """Delete uploads that were stored before ``moment``, oldest day first, at most ``limit``.

        Returns the number found: less than ``limit`` means that none is left. Lists no folder of a
        day after ``moment``. Safe to run in many processes at once.
        """

    async def delete_uploads(self, object_keys: Collection[str]) -> None:
        """Delete these uploads. Missing ones count as deleted."""

    async def delete_uploads_below(self, path: str, *, limit: int) -> int:
        """Delete the uploads of all days below ``path``, the part of a folder after its day, at
        most ``limit``.

        Returns the number found: less than ``limit`` means that none is left.
        """


class UploadSinkPort(Protocol):
    """Picture storage whose uploads pass through our API. Cloud storage does not need this port:
    its provider receives them."""

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``upload_links`` issued this link and it has not expired."""

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        """Keep ``data``, whole or not at all. False, and nothing changes, if the key is taken by
        other bytes. No data at all marks a link as used up: such an upload counts, and reads as
        missing. Raises ``StorageUnavailable`` when the storage does not answer."""

    async def keep_pieces(self, object_key: str, pieces: AsyncIterator[bytes]) -> bool:
        """``keep_upload`` for data that arrives in pieces. Holds few of them in memory, if the
        storage is no memory. Keeps nothing, and passes the error on, if ``pieces`` fails."""

    async def is_used_up(self, object_key: str) -> bool:
        """Whether the link was marked as used up. Raises ``StorageUnavailable``."""
