"""The web pages that may use credentials, as far as the settings say: stores have their own in the
database."""

from collections.abc import Iterator
from dataclasses import dataclass

from config.options import Environment
from config.settings import Settings
from domain.errors import InvalidInput
from domain.origins import normalized_origin, origin_of_url

_ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Origins. ``own`` are the API's, whose page on itself can call it; ``users`` those for users'
    tokens, unless they may be used from all."""

    own: frozenset[str]
    users: frozenset[str]
    any_for_users: bool


def pages(settings: Settings) -> Pages:
    own = frozenset({origin_of_url(settings.public_url)})
    return Pages(
        own=own,
        users=own | {normalized_origin(text) for text in _listed(settings)},
        any_for_users=_chosen(settings) == _ANY,
    )


def problems(settings: Settings) -> Iterator[str]:
    """A line for the first invalid origin, and one for what production does not allow."""
    try:
        origin_of_url(settings.public_url, field="WEARON_PUBLIC_URL")
        for text in _listed(settings):
            normalized_origin(text, field="WEARON_ORIGINS")
    except InvalidInput as error:
        yield str(error)
    if _chosen(settings) == _ANY and settings.environment is Environment.PRODUCTION:
        yield "WEARON_ORIGINS: `*` requires WEARON_ENVIRONMENT=development"


def _chosen(settings: Settings) -> str:
    if settings.origins is None and settings.environment is Environment.DEVELOPMENT:
        return _ANY
    return (settings.origins or "").strip()


def _listed(settings: Settings) -> list[str]:
    chosen = _chosen(settings)
    return [] if chosen in {"", _ANY} else [text.strip() for text in chosen.split(",")]
