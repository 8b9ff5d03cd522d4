"""The validation of a caller's request."""

from typing import Any

import pytest

from domain.errors import InvalidInput
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
        "http://pictures.example:8080/a/b?size=1&x=%20#top",
        "HTTPS://Pictures.Example/",
        "https://bücher.example/größe.png",
        "https://[2001:db8::1]/a.png",
        "https://203.0.113.7/a.png",
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
