"""Links to pictures that our API serves or receives: anyone who has one may use it until it
expires."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import quote

from domain.errors import NotFound
from domain.picture_ports import UploadLinks

# No key begins like this, so a signature of one kind is never valid for the other.
_UPLOAD = "PUT\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSigner:
    """Signs an object key and an expiry (Unix seconds) with HMAC-SHA256.

    Read and upload links are signed separately; one cannot be used as the other. Links that
    ``previous_secret`` signed stay valid until they expire.
    """

    base_url: str
    secret: bytes = field(repr=False)
    previous_secret: bytes | None = field(default=None, repr=False)
    lifetime: timedelta
    clock: Callable[[], datetime]

    def url(self, object_key: str, *, lifetime: timedelta | None = None) -> str:
        """``{base_url}/files/{object_key}?expires={unix seconds}&signature={hex}``."""
        return self._url(f"files/{quote(object_key)}", object_key, lifetime or self.lifetime)

    def upload_links(self, object_key: str, *, lifetime: timedelta) -> UploadLinks:
        """The links of an upload, whose key begins with ``uploads/``. The ``upload_url`` has no
        ``files/``, and its own ``lifetime``."""
        upload_url = self._url(quote(object_key), f"{_UPLOAD}{object_key}", lifetime)
        return UploadLinks(upload_url=upload_url, image_url=self.url(object_key))

    def check(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``url`` issued this signature and it has not expired."""
        self._check(object_key, expires, signature)

    def check_upload(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``upload_links`` issued it and it has not expired."""
        self._check(f"{_UPLOAD}{object_key}", expires, signature)

    def _url(self, path: str, subject: str, lifetime: timedelta) -> str:
        expires = int((self.clock() + lifetime).timestamp())
        signature = _signature(self.secret, subject, expires)
        return f"{self.base_url}/{path}?expires={expires}&signature={signature}"

    def _check(self, subject: str, expires: int, signature: str) -> None:
        given = signature.encode(errors="replace")
        secrets = [each for each in (self.secret, self.previous_secret) if each is not None]
        expected = [_signature(each, subject, expires).encode() for each in secrets]
        if not any(hmac.compare_digest(each, given) for each in expected):
            raise NotFound("No such picture")
        if expires <= self.clock().timestamp():
            raise NotFound("No such picture")


def _signature(secret: bytes, subject: str, expires: int) -> str:
    signed = f"{expires}\n{subject}".encode(errors="surrogatepass")
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()
