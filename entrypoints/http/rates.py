"""The headers that tell a caller how much of its rates is left.

``RateLimit-Policy`` and ``RateLimit`` list every rate (draft-ietf-httpapi-ratelimit-headers):
quota ``q`` and window ``w``, remaining calls ``r`` and seconds ``t`` until all are back. The older
``X-RateLimit-*`` name the rate that ends first; its reset is a Unix time.
"""

from collections.abc import Sequence
from time import time

from domain.plans import RateUse

RATES = "rates"
"""Where the state of a request keeps its rates, for the headers of the response."""


def rate_headers(rates: Sequence[RateUse]) -> dict[str, str]:
    """No header without a rate."""
    if not rates:
        return {}
    scarcest = min(rates, key=lambda rate: rate.remaining)
    return {
        "RateLimit-Policy": ", ".join(
            f'"{rate.name}";q={rate.limit};w={rate.period_seconds}' for rate in rates
        ),
        "RateLimit": ", ".join(
            f'"{rate.name}";r={rate.remaining};t={rate.reset_seconds}' for rate in rates
        ),
        "X-RateLimit-Limit": str(scarcest.limit),
        "X-RateLimit-Remaining": str(scarcest.remaining),
        "X-RateLimit-Reset": str(int(time()) + scarcest.reset_seconds),
    }
