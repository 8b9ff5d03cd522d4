"""The headers that tell a caller how much of its rates is left.

``RateLimit-Policy`` and ``RateLimit`` list every rate (draft-ietf-httpapi-ratelimit-headers):
quota ``q`` and window ``w``, remaining calls ``r`` and seconds ``t`` until all are back. The older
``X-RateLimit-*`` name the rate that ends first; its reset is a Unix time.
"""

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from time import time

from domain.plans import RateUse
from entrypoints.http.cors import Header

_remaining = attrgetter("remaining")


@cache
def _policy(name: str, limit: int, seconds: int) -> str:
    """Of as many policies as the settings have."""
    return f'"{name}";q={limit};w={seconds}'


def rate_headers(rates: Sequence[RateUse]) -> list[Header]:
    """No header without a rate."""
    if not rates:
        return []
    scarcest = min(rates, key=_remaining)
    policy = ", ".join([_policy(rate.name, rate.limit, rate.period_seconds) for rate in rates])
    left = ", ".join([f'"{name}";r={left};t={reset}' for name, _, _, left, reset in rates])
    return [
        (b"ratelimit-policy", policy.encode()),
        (b"ratelimit", left.encode()),
        (b"x-ratelimit-limit", b"%d" % scarcest.limit),
        (b"x-ratelimit-remaining", b"%d" % scarcest.remaining),
        (b"x-ratelimit-reset", b"%d" % (time() + scarcest.reset_seconds)),
    ]


def as_text(headers: Sequence[Header]) -> dict[str, str]:
    """The headers as Litestar takes them."""
    return {name.decode(): value.decode() for name, value in headers}
