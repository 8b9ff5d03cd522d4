"""Passwords of the console's operators: only a slow hash (scrypt, RFC 7914) is stored."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode

from domain.errors import InvalidInput

MIN_PASSWORD_LENGTH = 12
MAX_PASSWORD_LENGTH = 200
"""A longer one would only cost time to hash."""

_COST, _BLOCK, _LANES = 2**15, 8, 1
"""32 MB and some 80 ms for each guess."""
_MEMORY_BYTES = 64 * 1024 * 1024
_SALT_BYTES = 16


def check_password(password: str) -> None:
    """Raises ``InvalidInput`` unless the password may be chosen."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidInput(
            "password", f"must have {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters"
        )


def hash_password(password: str) -> str:
    """The text to store: ``scrypt$COST$BLOCK$LANES$SALT$HASH``."""
    salt = secrets.token_bytes(_SALT_BYTES)
    hashed = _scrypt(password, salt, _COST, _BLOCK, _LANES)
    encoded = "$".join(b64encode(part).decode() for part in (salt, hashed))
    return f"scrypt${_COST}${_BLOCK}${_LANES}${encoded}"


def is_password(password: str, stored: str) -> bool:
    """Whether ``stored`` was made from ``password``."""
    _, cost, block, lanes, salt, expected = stored.split("$")
    found = _scrypt(password, b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(found, b64decode(expected))


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    text = password[: MAX_PASSWORD_LENGTH + 1].encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=cost, r=block, p=lanes, maxmem=_MEMORY_BYTES)
