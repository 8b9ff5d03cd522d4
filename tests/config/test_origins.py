"""The web pages from which users' tokens may be used: ``WEARON_ORIGINS``."""

import pytest

from config.loading import load_settings
from config.origins import Pages, pages
from config.settings import SettingsError

API = "https://api.example"


def pages_of(**environ: str) -> Pages:
    return pages(load_settings({"WEARON_PUBLIC_URL": f"{API}/wearon", **environ}))


def test_production_allows_none_but_our_own() -> None:
    """The page at /schema calls the API at its own origin."""
    found = pages_of()

    assert found == Pages(own=frozenset({API}), users=frozenset({API}), any_for_users=False)


def test_origins_are_normalized() -> None:
    """As browsers send them."""
    found = pages_of(WEARON_ORIGINS=" https://Shop.example:443/ ,http://localhost:3000")

    assert found.users == {API, "https://shop.example", "http://localhost:3000"}
    assert not found.any_for_users


def test_development_allows_all() -> None:
    """Unless it names some."""
    assert pages_of(WEARON_ENVIRONMENT="development").any_for_users
    assert pages_of(WEARON_ENVIRONMENT="development", WEARON_ORIGINS="*").any_for_users
    named = pages_of(WEARON_ENVIRONMENT="development", WEARON_ORIGINS="https://a.example")
    assert not named.any_for_users


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"WEARON_ORIGINS": "*"}, "WEARON_ORIGINS: `*` requires WEARON_ENVIRONMENT=development"),
        ({"WEARON_ORIGINS": "shop.example"}, "WEARON_ORIGINS: must be like `https://shop.example`"),
        (
            {"WEARON_ORIGINS": "https://a.example,"},
            "WEARON_ORIGINS: must be like `https://shop.example`",
        ),
        (
            {"WEARON_ORIGINS": "https://a.example,*"},
            "WEARON_ORIGINS: must be like `https://shop.example`",
        ),
        ({"WEARON_ORIGINS": "null"}, "WEARON_ORIGINS: must be like `https://shop.example`"),
        (
            {"WEARON_PUBLIC_URL": "https://api.example:0"},
            "WEARON_PUBLIC_URL: must be like `https://shop.example`",
        ),
    ],
)
def test_unusable_origins_are_refused(environ: dict[str, str], problem: str) -> None:
    """Before anything starts."""
    with pytest.raises(SettingsError) as refused:
        load_settings(environ)

    assert str(refused.value) == problem
