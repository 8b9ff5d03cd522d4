"""Why something failed: a kind from a closed set, and a short detail for logs and operators.

A cause is never shown to a caller.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL = 200

_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^\s/]*@)?([^\s?#]*)[?#]?\S*", re.IGNORECASE)


class CauseKind(StrEnum):
    """What failed."""

    PROVIDER = "provider"
    STORAGE = "storage"
    INPUT = "input"
    DECODING = "decoding"
    DATABASE = "database"
    QUEUE = "queue"
    USER_KEYS = "user keys"
    WORKER = "worker"
    TIMEOUT = "timeout"
    LOST_LEASE = "lost lease"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Cause:
    """``str(cause)`` is its kind and its detail, such as ``provider 500 server_error``.

    The detail is made safe for a log: at most ``MAX_DETAIL`` printable characters, and of a URL
    neither the password nor the query. Whoever gives the detail keeps other secrets out of it.
    """

    kind: CauseKind
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", _made_safe(self.detail))

    def __str__(self) -> str:
        return f"{self.kind.value} {self.detail}".rstrip()


def _made_safe(text: str) -> str:
    # A long text is cut twice, so that the second step need not read all of it.
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * MAX_DETAIL])
    return " ".join(_URL.sub(r"\1\2", printable).split())[:MAX_DETAIL].rstrip()
