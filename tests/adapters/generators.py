"""Shared by the tests of the generators that call a provider."""

from typing import Any
from uuid import UUID

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.inspection import inspect_picture
from adapters.images.jobs import JobPictureGenerator
from adapters.images.limits import FetchLimits, JobLimits
from adapters.images.replicate import CallLimits, ReplicateJobs, ReplicateModel
from domain.picture_ports import Picture, PictureGeneratorPort, PictureRequest
from tests.support.clock import START
from tests.support.examples import TRACEPARENT
from tests.support.images import encoded
from tests.support.replicate import MODEL, TOKEN
from tests.support.service import seeded_random
from tests.support.shop import Shop

REQUEST = PictureRequest(
    session_id=UUID(int=1),
    prompt="In the rain, \N{UMBRELLA}",
    traceparent=TRACEPARENT,
    images=tuple(
        Picture(data=encoded(kind), media_type=f"image/{kind.lower()}")
        for kind in ("PNG", "JPEG", "WEBP")
    ),
)
TRANSIENT_MESSAGE = "The picture could not be made this time; the credit was refunded"
SAFETY_MESSAGE = "The pictures or the prompt did not pass the safety check; the credit was refunded"
UNUSABLE_MESSAGE = "A picture cannot be used to make a new one; the credit was refunded"

_CALLS = CallLimits(connect_seconds=5, total_seconds=10, max_bytes=500_000)
_QUICK_POLLS = JobLimits(total_seconds=20, first_pause_seconds=0.01, longest_pause_seconds=0.05)
_DOWNLOADS = FetchLimits(total_timeout_seconds=5, max_bytes=1_000_000)


class ReplicateAdapters:
    """Makes generators for a provider at ``url``; closes them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._results = HttpPictureFetcher(_DOWNLOADS, prepare=inspected, allow_loopback=True)
        self.made: list[ReplicateJobs] = []

    def jobs(self, **changes: Any) -> ReplicateJobs:
        options: dict[str, Any] = {
            "base_url": self._url,
            "token": TOKEN,
            "model": ReplicateModel(name=MODEL, image_field="image_input"),
            "usd_per_picture": None,
            "deadline_seconds": 20,
            "limits": _CALLS,
            "download": self._results.fetch,
            "clock": lambda: START,
        }
        self.made.append(ReplicateJobs(**options | changes))
        return self.made[-1]

    def __call__(self, polls: JobLimits = _QUICK_POLLS, **changes: Any) -> JobPictureGenerator:
        return JobPictureGenerator(
            self.jobs(**changes), name="replicate", limits=polls, random=seeded_random()
        )

    async def close(self) -> None:
        for made in self.made:
            await made.close()
        await self._results.close()


async def inspected(data: bytes) -> Picture:
    """Stands in for the processes that prepare pictures."""
    return inspect_picture(data)


async def submitted_to(generator: PictureGeneratorPort) -> Shop:
    """A shop with one session, whose picture comes from this generator."""
    shop = Shop(generator)
    await shop.submit()
    return shop
