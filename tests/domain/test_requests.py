"""The validation of a caller's request."""

from typing import Any

import pytest

from domain.errors import InvalidInput
from domain.links import LinkRules
from domain.sessions import DEFAULT_PROMPT, Accessory
from tests.support.examples import HAT, STORE, USER, a_request

URL = "https://pictures.example/"


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "k\n", "\u00e9"])
def test_invalid_key(key: str) -> None:
    """A key has 1 to 255 visible ASCII characters. The error names the field."""
    with pytest.raises(InvalidInput) as refusal:
        a_request(idempotency_key=key)

    assert refusal.value.field == "Idempotency-Key"


@pytest.mark.parametrize(
    "url",
    [
        "https://pictures.example/model.jpg",
        "http://pictures.example:80/a/b?size=1&x=%20#top",
        "http://pictures.example:443/",
        "https://Pictures.EXAMPLE./a.png",
        "https://1.2.3.4.example/a.png",
        "https://0x7f.example/a.png",
        "https://host/a.png",
        "HTTPS://Pictures.Example/",
        "https://bücher.example/größe.png",
        URL + "x" * (2048 - len(URL)),
    ],
)
def test_valid_url(url: str) -> None:
    """Any http or https URL within the limit. The fetcher checks the address behind it."""
    request = a_request(
        model_image_url=url, outfit_image_url=url, accessories=(Accessory(type="hat", url=url),)
    )

    assert request.input.model_image_url == url


BAD_URLS = [
    "",
    "model.jpg",
    "//pictures.example/model.jpg",
    "ftp://pictures.example/model.jpg",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "gopher://127.0.0.1:70/",
    "javascript:alert(1)",
    "https://",
    "https:///model.jpg",
    "https://?model.jpg",
    "https://pictures.example:99999/",
    "https://pictures.example:0/",
    "https://pictures.example:port/",
    "https://[::1/",
    "https://user@pictures.example/",
    "https://user:password@pictures.example/",
    "https://@pictures.example/",
    "http://good.example\\@127.0.0.1/",
    "https://pictures.example/a b",
    " https://pictures.example/",
    "https://pictures.example/\r\nHost: x",
    "https://pictures.example/\x00",
    "https://pictures.example/\x1b[2J",
    "https://pictures.example/\u202egpj.exe",
    "https://pictures.example/\ud800",
    'https://pictures.example/"',
    "https://pictures.example/<b>",
    URL + "x" * (2049 - len(URL)),
]


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_image_url", lambda url: {"model_image_url": url}),
        ("outfit_image_url", lambda url: {"outfit_image_url": url}),
        (
            "accessories[1].url",
            lambda url: {"accessories": (HAT, Accessory(type="bag", url=url))},
        ),
    ],
)
def test_invalid_url(field: str, change: Any, url: str) -> None:
    """It is refused before anything is charged. The error names the field."""
    with pytest.raises(InvalidInput) as refusal:
        a_request(**change(url))

    assert refusal.value.field == field
    assert str(refusal.value).startswith(f"{field}: ")


UNFETCHABLE_HOSTS = [
    "127.0.0.1",
    "127.0.0.1.",
    "2130706433",
    "0x7f000001",
    "0X7F000001",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "00000177.0.0.1",
    "127.000.000.001",
    "127.1",
    "127.0.1",
    "127.65530",
    "0",
    "0x",
    "0.0.0.0",  # noqa: S104 - an address to reject, nothing binds to it
    "93.184.216.34",
    "[2606:4700:4700::1111]",
    "10.0.0.1",
    "192.168.1.1",
    "3232235777",
    "172.16.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "0251.0376.0251.0376",
    "169.254.43518",
    "192.0.0.192",
    "168.63.129.16",
    "203.0.113.7",
    "224.0.0.1",
    "255.255.255.255",
    "\uff11\uff12\uff17.0.0.1",
    "127\uff0e0\uff0e0\uff0e1",
    "127\u30020\u30020\u30021",
    "127\uff610\uff610\uff611",
    "\u2460\u2461\u2466.0.0.1",
    "\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1",
    "\u0661\u0662\u0667.0.0.1",
    "\uff10\uff58\uff17\uff46\uff10\uff10\uff10\uff10\uff10\uff11",
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "256.1.1.1",
    "1.2.3.4.5",
    "1.2.3.256",
    "4294967296",
    "09.1.1.1",
    "0xg.1",
    "good.example.0x7f",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:8.8.8.8]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[5f00::1]",
    "pictures.example:8080",
    "pictures.example:22",
    "pictures.example:65535",
]


@pytest.mark.parametrize("host", UNFETCHABLE_HOSTS, ids=ascii)
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_link_that_can_never_be_fetched(scheme: str, host: str) -> None:
    """An IP address in any spelling, or a port that is not the web's: refused before anything is
    charged. The error names the field and not the address that was meant."""
    with pytest.raises(InvalidInput) as refusal:
        a_request(accessories=(HAT, Accessory(type="bag", url=f"{scheme}://{host}/a.png")))

    assert refusal.value.field == "accessories[1].url"


@pytest.mark.parametrize(
    ("url", "valid"),
    [
        ("http://127.0.0.1:8000/a.png", True),
        ("http://[::1]:8000/a.png", True),
        ("http://pictures.example:8080/a.png", True),
        ("http://127.1:8000/a.png", False),
        ("http://2130706433/a.png", False),
        ("http://10.0.0.1/a.png", False),
        ("http://[::ffff:127.0.0.1]/a.png", False),
    ],
)
def test_links_to_this_machine_in_development(url: str, *, valid: bool) -> None:
    """What the fetcher would fetch then is valid: loopback in its usual spelling, and any port."""
    rules = LinkRules(allow_loopback=True)

    assert (_refusal(url, rules) is None) == valid


def test_own_upload_may_lead_anywhere() -> None:
    """It is read from the storage and not fetched, so a service at a private address or an unusual
    port can use its own links."""
    own = "http://10.0.0.5:8000/files/uploads/a"
    rules = LinkRules(is_own=lambda url: url == own)

    assert _refusal(own, rules) is None
    assert _refusal(f"{own}/b", rules) is not None


def _refusal(url: str, rules: LinkRules) -> InvalidInput | None:
    try:
        a_request(model_image_url=url, links=rules)
    except InvalidInput as refusal:
        return refusal
    return None


def test_limit_of_accessories() -> None:
    """Eight are valid, nine are not."""
    a_request(accessories=(HAT,) * 8)

    with pytest.raises(InvalidInput) as refusal:
        a_request(accessories=(HAT,) * 9)

    assert refusal.value.field == "accessories"


@pytest.mark.parametrize("prompt", ["x", "x" * 4000, "Zwei Zeilen,\nund ein 👒"])
def test_valid_prompt_of_a_store(prompt: str) -> None:
    """Up to 4,000 characters."""
    assert a_request(STORE, prompt=prompt).input.prompt == prompt


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 4001])
def test_invalid_prompt_of_a_store(prompt: str) -> None:
    """Blank, or too long."""
    with pytest.raises(InvalidInput) as refusal:
        a_request(STORE, prompt=prompt)

    assert refusal.value.field == "prompt"


def test_prompt_of_a_user_is_refused() -> None:
    """Only stores may give a prompt of their own. The default prompt counts as none."""
    a_request(USER, prompt=DEFAULT_PROMPT)

    with pytest.raises(InvalidInput, match="only stores") as refusal:
        a_request(USER, prompt="In the rain")

    assert refusal.value.field == "prompt"
