"""Origins: one form per origin, the one that browsers send."""

import pytest

from domain.errors import InvalidInput
from domain.origins import MAX_ORIGIN_LENGTH, normalised_origin

SAME = [
    ("https://shop.example", "https://shop.example"),
    ("HTTPS://Shop.EXAMPLE", "https://shop.example"),
    ("https://shop.example:443", "https://shop.example"),
    ("https://shop.example:8443", "https://shop.example:8443"),
    ("https://shop.example:08443", "https://shop.example:8443"),
    ("https://shop.example:80", "https://shop.example:80"),
    ("http://localhost", "http://localhost"),
    ("http://localhost:80", "http://localhost"),
    ("http://localhost:3000", "http://localhost:3000"),
    ("http://app.localhost:3000", "http://app.localhost:3000"),
    ("http://127.0.0.1:5173", "http://127.0.0.1:5173"),
    ("http://127.9.9.9", "http://127.9.9.9"),
    ("http://[::1]:8080", "http://[::1]:8080"),
    ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
    ("https://[2001:DB8::0001]", "https://[2001:db8::1]"),
    ("https://[::ffff:192.0.2.1]", "https://[::ffff:c000:201]"),
    ("https://192.0.2.1", "https://192.0.2.1"),
    ("https://bücher.example", "https://xn--bcher-kva.example"),
    ("https://BÜCHER.example", "https://xn--bcher-kva.example"),
    ("https://bu\u0308cher.example", "https://xn--bcher-kva.example"),
    ("https://straße.example", "https://xn--strae-oqa.example"),
    ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ("https://例え.テスト", "https://xn--r8jz45g.xn--zckzah"),
    ("https://shop\u3002example", "https://shop.example"),
    ("https://\uff53\uff48\uff4f\uff50.example", "https://shop.example"),
    ("https://a-b.c--d.example", "https://a-b.c--d.example"),
]


@pytest.mark.parametrize(("text", "origin"), SAME)
def test_origin_has_one_form(text: str, origin: str) -> None:
    """And that form stays as it is."""
    assert normalised_origin(text) == origin
    assert normalised_origin(origin) == origin


WRONG = [
    "", "*", "null", "shop.example", "https://", "https:///", "//shop.example",
    "https:shop.example",
    "https://shop.example/", "https://shop.example/path", "https://shop.example?a=b",
    "https://shop.example#a", "https://user@shop.example", "https://user:pw@shop.example",
    "https://shop.example\\@evil.example", " https://shop.example", "https://shop.example ",
    "https://shop.example\n", "https://shop.example\x00", "https://sh%6fp.example",
    "https://shop.example:", "https://shop.example:0", "https://shop.example:65536",
    "https://shop.example:-1", "https://shop.example:+443", "https://shop.example:٣",
    "https://shop.example:123456", "ftp://shop.example", "file://", "javascript://shop.example",
    "chrome-extension://abc", "https://*.example", "https://-a.example", "https://a-.example",
    "https://a..example", "https://.example", "https://a_b.example", "https://a,b.example",
    "https://shop.example,https://b.example", "https://" + "a" * 64 + ".example",
    "https://" + "a." * 127 + "example", "https://" + "a" * MAX_ORIGIN_LENGTH,
    "https://1.2.3", "https://1.2.3.256", "https://127.1", "https://2130706433", "https://0x7f000001",
    "https://1.2.3.04", "https://[::1", "https://::1", "https://[::g]", "https://[fe80::1%eth0]",
    "https://[v1.a]", "https://[1.2.3.4]", "http://shop.example", "http://localhost.example",
    "http://128.0.0.1", "http://[::2]", "http://notlocalhost", "https://a\u200db.example",
    "https://\u202eshop.example", "https://☃.example", "https://a\uff0fb.example",
    "https://a\uff20b.example",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_anything_else_is_rejected(text: str) -> None:
    """``InvalidInput`` names the field, and shows no more of the text than fits in a message."""
    with pytest.raises(InvalidInput, match=r"^origins: ") as error:
        normalised_origin(text)

    assert len(str(error.value)) < 300
