"""A worker whose tasks take no time, so that its own overhead remains:
``python -m tests.bench.worker CONCURRENCY [FILE]`` writes to FILE when each generation starts.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime

from dependency_injector import providers

from adapters.webhooks.sender import HttpWebhookSender
from config.container import Container
from config.loading import load_settings
from config.logging import configure_logging
from domain.credits import Owner
from domain.picture_ports import (
    Generated,
    Picture,
    PictureFetcherPort,
    PictureGeneratorPort,
    PictureRequest,
    PictureStoragePort,
    RecordJob,
)
from domain.sessions import StoredPicture
from entrypoints.worker import run_on

_PICTURE = Picture(data=b"", media_type="image/jpeg")


class _NoFetcher(PictureFetcherPort):
    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:  # noqa: ARG002
        return (_PICTURE,) * len(urls)


class _NoGenerator(PictureGeneratorPort):
    """Writes lines of ``session_id seconds``, on the clock that all processes share."""

    def __init__(self, stamps: Path | None) -> None:
        self._file = None if stamps is None else stamps.open("a", buffering=1)

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:  # noqa: ARG002
        if self._file is not None:
            self._file.write(f"{request.session_id} {clock_gettime(CLOCK_MONOTONIC):.9f}\n")
        return Generated(picture=_PICTURE)


class _NoStorage(PictureStoragePort):
    async def check(self) -> None: ...

    async def find(self, prefix: str) -> StoredPicture | None:  # noqa: ARG002
        return None

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        return StoredPicture(object_key=f"{prefix}.jpg", media_type=picture.media_type)

    async def delete(self, prefix: str) -> None:
        raise NotImplementedError(prefix)  # No picture of a benchmark reaches its lifetime.

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:  # noqa: ARG002
        return object_key


def _main(concurrency: int, stamps: Path | None) -> None:
    settings = load_settings(os.environ)
    configure_logging(settings)
    container = Container(settings=settings)
    container.fetcher.override(providers.Object(_NoFetcher()))
    container.generator.override(providers.Object(_NoGenerator(stamps)))
    container.storage.override(providers.Object(_NoStorage()))
    sender = HttpWebhookSender(clock=container.clock(), allow_loopback=True)
    container.webhook_sender.override(providers.Object(sender))
    run_on(container, concurrency=concurrency, recovery=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
