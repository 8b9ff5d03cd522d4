"""Signed links while the secret is rotated. The rest is in the contract of the storages."""

from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from adapters.storage.signing import UrlSigner
from domain.errors import NotFound
from tests.support.clock import FakeClock

KEY = "users/u/1.png"
CLOCK = FakeClock()
BEFORE = UrlSigner(base_url="", secret=b"old", lifetime=timedelta(hours=1), clock=CLOCK.now)
ROTATED = replace(BEFORE, secret=b"new", previous_secret=b"old")
AFTER = replace(BEFORE, secret=b"new")


def check(signer: UrlSigner, url: str, *, upload: bool = False) -> None:
    query = dict(parse_qsl(urlsplit(url).query))
    checked = signer.check_upload if upload else signer.check
    checked(KEY, expires=int(query["expires"]), signature=query["signature"])


def test_links_of_the_previous_secret_stay_valid() -> None:
    """Until it is removed; for reading as well as for uploads."""
    read, upload = BEFORE.url(KEY), BEFORE.upload_links(KEY, lifetime=timedelta(hours=1)).upload_url

    check(ROTATED, read)
    check(ROTATED, upload, upload=True)
    for url, is_upload in ((read, False), (upload, True)):
        with pytest.raises(NotFound):
            check(AFTER, url, upload=is_upload)


def test_new_links_are_signed_with_the_current_secret() -> None:
    """They stay valid when the previous one is removed, and processes that do not know the new one
    yet reject them."""
    url = ROTATED.url(KEY)

    check(ROTATED, url)
    check(AFTER, url)
    with pytest.raises(NotFound):
        check(BEFORE, url)


def test_previous_secret_changes_nothing_else() -> None:
    """A link is for one kind of use and for its time, whichever secret signed it."""
    url = BEFORE.url(KEY)
    with pytest.raises(NotFound):
        check(ROTATED, url, upload=True)

    late = replace(ROTATED, clock=lambda: CLOCK.now() + timedelta(hours=1))

    with pytest.raises(NotFound):
        check(late, url)
