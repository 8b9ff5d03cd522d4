"""What texts in requests may be, for the OpenAPI document. The domain checks them, in its own
words; a pattern here is no stricter than the domain, except where the domain tidies a text up."""

from typing import Any

from domain.client_tokens import SHOPPER_ID

# Control characters (PostgreSQL rejects NUL, terminals execute ESC sequences) and marks that change
# the direction of text. A prompt may have tabs and line ends.
_UNPRINTABLE = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
_UNPRINTABLE_IN_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"

PRINTABLE_LINE = f"^(?![\\s\\S]*{_UNPRINTABLE})"
PRINTABLE_TEXT = f"^(?![\\s\\S]*{_UNPRINTABLE_IN_TEXT})"

ID = f"^{SHOPPER_ID}$"
"""A store's or a shopper's id. A user's UUID is one, too."""

IDEMPOTENCY_KEY = "^[!-~]{1,255}$"
CURSOR = "^[A-Za-z0-9_=-]+$"

LINE: dict[str, Any] = {"pattern": PRINTABLE_LINE}
NAMED: dict[str, Any] = {"pattern": ID}
VISIBLE: dict[str, Any] = {"pattern": "^[!-~]+$"}
URL: dict[str, Any] = {"pattern": r'^[Hh][Tt][Tt][Pp][Ss]?://[^\s\\"<>]+$'}
ORIGIN: dict[str, Any] = {"pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s/]+/?$"}
"""Additions to the schema of a field."""
