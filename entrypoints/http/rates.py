"""The headers that tell a caller how much of its rates is left.

``RateLimit-Policy`` and ``RateLimit`` list every rate (draft-ietf-httpapi-ratelimit-headers):
quota ``q`` and window ``w``, remaining calls ``r`` and seconds ``t`` until all are back. The older
``X-RateLimit-*`` name the rate that ends first; its reset is a Unix time.
"""

from collections.abc import Sequence
from functools import cache
from time import time

from domain.plans import RateUse
from entrypoints.http.cors import Header


@cache
def _texts(*rates: tuple[str, int, int]) -> tuple[bytes, bytes]:
    """The policy of these rates, by name, limit and period, and a template for what is left of
    them. There are as many as the settings have."""
    policy = ", ".join(f'"{name}";q={limit};w={seconds}' for name, limit, seconds in rates)
    left = ", ".join(f'"{name}";r=%d;t=%d' for name, _, _ in rates)
    return policy.encode(), left.encode()


def rate_headers(rates: Sequence[RateUse]) -> list[Header]:
    """No header without a rate. They are on every answer to a submission, so what does not change
    is put together once."""
    if not rates:
        return []
    scarcest = rates[0]
    fixed: list[tuple[str, int, int]] = []
    left: tuple[int, ...] = ()
    for rate in rates:
        fixed.append(rate[:3])
        left += rate[3:]
        if rate.remaining < scarcest.remaining:
            scarcest = rate
    policy, template = _texts(*fixed)
    return [
        (b"ratelimit-policy", policy),
        (b"ratelimit", template % left),
        (b"x-ratelimit-limit", b"%d" % scarcest.limit),
        (b"x-ratelimit-remaining", b"%d" % scarcest.remaining),
        (b"x-ratelimit-reset", b"%d" % (time() + scarcest.reset_seconds)),
    ]


def as_text(headers: Sequence[Header]) -> dict[str, str]:
    """The headers as Litestar takes them."""
    return {name.decode(): value.decode() for name, value in headers}
