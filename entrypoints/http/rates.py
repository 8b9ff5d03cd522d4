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

RATES = "rates"
"""Where the state of a request keeps its rates, for the headers of the response."""


_remaining = attrgetter("remaining")


@cache
def _policy(name: str, limit: int, seconds: int) -> str:
    """Of as many policies as the settings have."""
    return f'"{name}";q={limit};w={seconds}'


def rate_headers(rates: Sequence[RateUse]) -> dict[str, str]:
    """No header without a rate."""
    if not rates:
        return {}
    scarcest = min(rates, key=_remaining)
    return {
        "RateLimit-Policy": ", ".join([_policy(r.name, r.limit, r.period_seconds) for r in rates]),
        "RateLimit": ", ".join([f'"{r.name}";r={r.remaining};t={r.reset_seconds}' for r in rates]),
        "X-RateLimit-Limit": str(scarcest.limit),
        "X-RateLimit-Remaining": str(scarcest.remaining),
        "X-RateLimit-Reset": str(int(time()) + scarcest.reset_seconds),
    }
