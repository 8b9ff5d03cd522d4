"""Links to pictures that we serve ourselves: whoever holds one may read, until it expires."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import quote

from domain.errors import NotFound
from domain.ports import Picture


class SignedReads(Protocol):
    """Image storage that hands out its own pictures. Cloud storage does not: it serves them."""

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        """The picture of a signed URL, from that URL's parts.

        Raises ``NotFound``, without distinction, for a wrong signature, an expired URL and a
        picture that is not there; ``TryAgain`` when the storage does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSigner:
    """Signs an object key and an expiry (Unix seconds) with HMAC-SHA256."""

    base_url: str
    secret: bytes = field(repr=False)
    lifetime: timedelta
    clock: Callable[[], datetime]

    def url(self, object_key: str) -> str:
        """``{base_url}/files/{object_key}?expires={unix seconds}&signature={hex}``."""
        expires = int((self.clock() + self.lifetime).timestamp())
        signature = self._signature(object_key, expires)
        return f"{self.base_url}/files/{quote(object_key)}?expires={expires}&signature={signature}"

    def check(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``url`` gave out this signature and it is not expired."""
        expected = self._signature(object_key, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise NotFound("No such picture")
        if expires <= self.clock().timestamp():
            raise NotFound("No such picture")

    def _signature(self, object_key: str, expires: int) -> str:
        signed = f"{expires}\n{object_key}".encode(errors="surrogatepass")
        return hmac.new(self.secret, signed, hashlib.sha256).hexdigest()
