"""Which secrets production refuses, and that it accepts random ones."""

import re
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from random import Random

import pytest

from config.loading import load_settings
from config.settings import SettingsError
from config.weak_secrets import is_public_key, is_weak

REPOSITORY = Path(__file__).parents[2]
NAMES = (
    "WEARON_JWT_SECRET",
    "WEARON_JWT_PREVIOUS_SECRET",
    "WEARON_SIGNING_SECRET",
    "WEARON_SIGNING_PREVIOUS_SECRET",
)
PRODUCTION = {name: Random(name).randbytes(32).hex() for name in NAMES}
DEVELOPMENT = {"WEARON_ENVIRONMENT": "development"}
WEAK = {
    "one character": "s" * 64,
    "few characters": "01" * 20 + "abcdef",
    "mostly one character": "x" * 40 + "abcdefghijkl",
    "a word repeated": "wearon4you" * 4,
    "a pattern that ends early": "k3y-of-the-shop!" * 2 + "k3y-of-",
    "digits in order": "0123456789" * 4,
    "letters in order": "abcdefghijklmnopqrstuvwxyz012345",
    "letters in reverse": "zyxwvutsrqponmlkjihgfedcba987654",
    "ours, for tokens": "the-key-that-signs-the-tokens-of-your-users",
    "ours, for links": "a-key-of-your-own-for-links-to-pictures",
    "Supabase's": "super-secret-jwt-token-with-at-least-32-characters-long",
    "of jwt.io": "a-string-secret-at-least-256-bits-long",
    "of tutorials": "Your-256-bit-secret-for-HS256-tokens",
    "to change": "CHANGE_ME_to_something_random_4711",
}


@pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("name", NAMES)
def test_weak_secret_is_refused(name: str, secret: str) -> None:
    """In production, wherever it is used; development keeps it."""
    weak = PRODUCTION | {name: secret}

    with pytest.raises(SettingsError) as refused:
        load_settings(weak)

    assert str(refused.value) == f"{name}: is too easy to guess"
    assert load_settings(weak | DEVELOPMENT).environment == "development"


def test_random_secrets_are_accepted() -> None:
    """As `openssl rand` and Python's `secrets` make them: of thousands, none is refused."""
    random = Random(0)
    drawn = [random.randbytes(32) for _ in range(3_000)]
    texts = [text for each in drawn for text in (each.hex(), b64encode(each).decode())]
    texts += [urlsafe_b64encode(each[:24]).decode() for each in drawn]

    assert [text for text in texts if is_weak(text)] == []
    assert load_settings(PRODUCTION).signing_previous_secret is not None


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_equal_secrets_are_refused(first: str, second: str) -> None:
    """One secret for two uses would let a link's owner try it out, and a rotation to the same
    secret is none."""
    if first == second:
        return

    with pytest.raises(SettingsError) as refused:
        load_settings(PRODUCTION | {first: PRODUCTION[second]})

    earlier, later = sorted((first, second), key=NAMES.index)
    assert str(refused.value) == f"{later}: must differ from {earlier}"


def test_samples_in_our_pages_are_refused() -> None:
    """Whoever copies a page's secret shares it with all other readers."""
    pages = [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*.md"), REPOSITORY / ".env.example"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    samples = re.findall(r"WEARON_\w*SECRET=([^\s`'\"$]+)", text)

    assert samples
    assert [sample for sample in samples if not is_weak(sample)] == []


@pytest.mark.parametrize(
    "key",
    [
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ",
        '{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"}',
    ],
)
def test_public_key_as_a_secret_is_refused(key: str) -> None:
    """Anyone could sign tokens with it, so development refuses it as well."""
    assert is_public_key(key)
    with pytest.raises(SettingsError, match=r"^WEARON_JWT_SECRET: is a key pair's; set WEARON_JWT"):
        load_settings(DEVELOPMENT | {"WEARON_JWT_SECRET": key})
