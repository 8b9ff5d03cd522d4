"""Links to pictures that we serve or take: whoever holds one may use it until it expires."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import quote

from domain.errors import NotFound
from domain.ports import Picture

# No key begins like this, so a signature of the one kind is never one of the other.
_UPLOAD = "PUT\n"


class SignedReadPort(Protocol):
    """Image storage that hands out its own pictures. Cloud storage does not: it serves them."""

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        """The picture of a signed URL, from that URL's parts.

        Raises ``NotFound``, without distinction, for a wrong signature, an expired URL and a
        picture that is not there; ``TryAgain`` when the storage does not answer.
        """


class UploadSinkPort(Protocol):
    """Image storage to which uploads come through us. Cloud storage takes them itself."""

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        """Keep ``data``, whole or not at all. False, and nothing is changed, if there is something
        of this key already. Raises ``TryAgain`` when the storage does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSigner:
    """Signs an object key and an expiry (Unix seconds) with HMAC-SHA256.

    Whoever may read may not upload, nor the other way round: the two are signed apart.
    """

    base_url: str
    secret: bytes = field(repr=False)
    lifetime: timedelta
    clock: Callable[[], datetime]

    def url(self, object_key: str) -> str:
        """``{base_url}/files/{object_key}?expires={unix seconds}&signature={hex}``."""
        return self._url(f"files/{quote(object_key)}", object_key, self.lifetime)

    def upload_url(self, object_key: str, *, lifetime: timedelta) -> str:
        """The same for an upload, whose key begins with ``uploads/``, but without ``files/``."""
        return self._url(quote(object_key), f"{_UPLOAD}{object_key}", lifetime)

    def check(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``url`` gave out this signature and it is not expired."""
        self._check(object_key, expires, signature)

    def check_upload(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``upload_url`` did so."""
        self._check(f"{_UPLOAD}{object_key}", expires, signature)

    def _url(self, path: str, subject: str, lifetime: timedelta) -> str:
        expires = int((self.clock() + lifetime).timestamp())
        signature = self._signature(subject, expires)
        return f"{self.base_url}/{path}?expires={expires}&signature={signature}"

    def _check(self, subject: str, expires: int, signature: str) -> None:
        expected = self._signature(subject, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise NotFound("No such picture")
        if expires <= self.clock().timestamp():
            raise NotFound("No such picture")

    def _signature(self, subject: str, expires: int) -> str:
        signed = f"{expires}\n{subject}".encode(errors="surrogatepass")
        return hmac.new(self.secret, signed, hashlib.sha256).hexdigest()
