"""Origins in the one form that can be compared with what a browser sends."""

import pytest

from domain.errors import InvalidInput
from domain.origins import ORIGIN, normalized_origin, origin_of_url

NORMALIZED = {
    "https://shop.example": "https://shop.example",
    "https://shop.example/": "https://shop.example",
    "HTTPS://Shop.Example": "https://shop.example",
    "https://shop.example:443": "https://shop.example",
    "http://shop.example:80/": "http://shop.example",
    "http://shop.example:443": "http://shop.example:443",
    "https://shop.example:8443": "https://shop.example:8443",
    "https://Bücher.example": "https://xn--bcher-kva.example",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "http://127.0.0.1:3000": "http://127.0.0.1:3000",
    "http://[0:0::0:1]:3000": "http://[::1]:3000",
    "http://localhost:3000": "http://localhost:3000",
    "https://my_shop.example": "https://my_shop.example",
    "capacitor://localhost": "capacitor://localhost",
    "chrome-extension://abcdefghijklmnop": "chrome-extension://abcdefghijklmnop",
}
REFUSED = [
    "",
    "*",
    "null",
    "shop.example",
    "//shop.example",
    "https://",
    "https:///",
    "https://*.shop.example",
    "https://shop.example/path",
    "https://shop.example//",
    "https://shop.example?query",
    "https://shop.example#fragment",
    "https://user@shop.example",
    "https://shop.example:0",
    "https://shop.example:99999",
    "https://shop.example:port",
    "https://shop.example,https://other.example",
    "https://shop example",
    " https://shop.example",
    "https://shop.example\n",
    "https://shop\n.example",
    "https://shop.example\x00",
    "https://faß.example",
    "https://" + "a" * 300,
    "https://[::1",
    "https://[::1%25lo]",
    "file:///page.html",
    "data:text/html,page",
]


@pytest.mark.parametrize(("text", "origin"), NORMALIZED.items())
def test_origin_is_normalized(text: str, origin: str) -> None:
    """Lower case, ASCII, without a slash at the end and without the scheme's default port."""
    assert normalized_origin(text) == origin
    assert normalized_origin(origin) == origin
    assert ORIGIN.fullmatch(origin)


@pytest.mark.parametrize("text", REFUSED)
def test_anything_but_one_origin_is_refused(text: str) -> None:
    """A wildcard too, and a name that browsers encode differently than we do. The message names the
    field, and not the value."""
    with pytest.raises(InvalidInput) as refused:
        normalized_origin(text, field="origins[0]")

    assert str(refused.value) == "origins[0]: must be like `https://shop.example`"


def test_origin_of_a_url() -> None:
    """Its path and query do not count."""
    assert origin_of_url("https://API.example:443/wearon?a=b#c") == "https://api.example"
    with pytest.raises(InvalidInput, match="url: must be like"):
        origin_of_url("https:///wearon")
