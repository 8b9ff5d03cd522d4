"""Short texts that operators write: names, labels, notes, reasons and references."""

import re
import unicodedata

from domain.errors import InvalidInput

MAX_LABEL_LENGTH = 100
MAX_NAME_LENGTH = 200
MAX_NOTE_LENGTH = 500
MAX_REFERENCE_LENGTH = 255

_REFERENCE = re.compile(rf"[\x21-\x7e]{{1,{MAX_REFERENCE_LENGTH}}}")
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control characters, marks that change the direction of text, lone surrogates, line ends."""


def checked_label(field: str, text: str, *, max_length: int, may_be_empty: bool = False) -> str:
    """``text`` without spaces around it. Raises ``InvalidInput`` for ``field`` if it is empty, too
    long or not printable."""
    label = text.strip()
    if not label and not may_be_empty:
        raise InvalidInput(field, "must not be empty")
    if len(label) > max_length:
        raise InvalidInput(field, f"has more than {max_length} characters")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in label):
        raise InvalidInput(field, "contains a character that is not allowed")
    return label


def checked_reference(field: str, text: str) -> str:
    """Raises ``InvalidInput`` for ``field`` unless ``text`` can name a write of the caller's."""
    if not _REFERENCE.fullmatch(text):
        raise InvalidInput(field, f"must be 1 to {MAX_REFERENCE_LENGTH} visible ASCII characters")
    return text
