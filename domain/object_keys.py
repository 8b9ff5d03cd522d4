"""Object keys in the picture storage: a prefix plus the extension of the picture's media type."""

import re

from domain.errors import NotFound
from domain.sessions import StoredPicture

_EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}

MEDIA_TYPES = tuple(_EXTENSIONS)
"""The media types of pictures."""

# No segment begins with a dot, so no key can lead out of the storage.
_SEGMENT = r"[A-Za-z0-9_:-][A-Za-z0-9._:-]*"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def stored_picture(prefix: str, media_type: str) -> StoredPicture:
    """The picture of this media type under ``prefix``."""
    return StoredPicture(object_key=prefix + _EXTENSIONS[media_type], media_type=media_type)


def possible_pictures(prefix: str) -> list[StoredPicture]:
    """One picture for each media type, all under ``prefix``: at most one of them exists."""
    return [stored_picture(prefix, media_type) for media_type in _EXTENSIONS]


def media_type_of(object_key: str) -> str:
    """The media type that the key's extension names. Raises ``NotFound`` for an invalid key."""
    if _KEY.fullmatch(object_key):
        for media_type, extension in _EXTENSIONS.items():
            if object_key.endswith(extension):
                return media_type
    raise NotFound("No such picture")
