"""Lets requests in: by their credential, the page they come from, and the caller's rates."""

import re
from typing import Protocol

from litestar.types import HTTPScope

from domain.callers import Caller, Principal
from domain.errors import DomainMismatch, InvalidApiKey, Unauthenticated, Unavailable
from domain.plans import RateUse
from domain.throttle import Throttle
from entrypoints.http.addresses import client_address
from entrypoints.http.cors import origin_of
from entrypoints.http.request_info import RawHeaders

_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_LOOKS_LIKE_A_KEY = re.compile(rb"bearer +w[ak]_", re.IGNORECASE)


class Authenticator(Protocol):
    """From a bearer token to what it stands for."""

    async def __call__(self, token: str) -> Principal:
        """Raises ``Unauthenticated``, ``InvalidApiKey`` and ``DatabaseUnavailable``."""

    def known(self, token: str) -> Principal | None:
        """The principal, if the token was verified a short time ago."""


class Door:
    """``strangers`` limits the requests without a valid credential from each address, so that
    guessing does not reach the database. Known credentials pass by it."""

    def __init__(
        self,
        *,
        authenticate: Authenticator,
        strangers: Throttle,
        reads: Throttle,
        trusted_proxies: int = 0,
    ) -> None:
        self._authenticate = authenticate
        self._strangers = strangers
        self._reads = reads
        self._trusted_proxies = trusted_proxies

    async def admit(self, scope: HTTPScope) -> Principal:
        """The request's principal. Raises what ``Authenticator`` raises, ``RateLimited``, and
        ``DomainMismatch`` if the credential may not be used from the request's origin."""
        headers = scope["headers"]
        try:
            token = bearer_token(headers)
        except Unauthenticated:
            self._strangers.take(self.address_of(scope))
            raise
        principal = self._authenticate.known(token) or await self._verified(token, scope)
        principal.check_origin(origin_of(headers))
        return principal

    async def still_admits(self, scope: HTTPScope) -> bool:
        """Whether the credential of a request that was let in is still valid. True while that
        cannot be found out."""
        headers = scope["headers"]
        token = bearer_token(headers)
        try:
            principal = self._authenticate.known(token) or await self._authenticate(token)
            principal.check_origin(origin_of(headers))
        except (Unauthenticated, DomainMismatch):
            return False
        except Unavailable:  # The next check asks again.
            return True
        return True

    async def _verified(self, token: str, scope: HTTPScope) -> Principal:
        """Counted before it is verified, so that requests which arrive together count each
        other, and given back unless it is invalid: an outage tells nothing about it."""
        address = self.address_of(scope)
        self._strangers.take(address)
        is_invalid = False
        try:
            return await self._authenticate(token)
        except Unauthenticated:
            is_invalid = True
            raise
        finally:
            if not is_invalid:
                self._strangers.give_back(address)

    def count_read(self, principal: Principal) -> tuple[RateUse, ...]:
        """Count a read, in this process. Returns the caller's rate of reads, if it has a limit.
        Raises ``RateLimited``."""
        shopper = principal.shopper if isinstance(principal, Caller) else None
        return self._reads.take((str(principal), shopper and shopper.id))

    def address_of(self, scope: HTTPScope) -> str:
        """The client's address, as its proxies tell it."""
        return client_address(scope, trusted_proxies=self._trusted_proxies)


def bearer_token(headers: RawHeaders) -> str:
    """Raises Unauthenticated unless there is one well-formed Authorization header."""
    given = [value for name, value in headers if name == b"authorization"]
    match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    if match:
        return match[1].decode()
    problem = "Send one header 'Authorization: Bearer <token>'"
    if any(_LOOKS_LIKE_A_KEY.match(value) for value in given):
        raise InvalidApiKey(problem)
    raise Unauthenticated(problem)
