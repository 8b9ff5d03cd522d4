"""Which secrets are too easy to guess."""

from collections import Counter
from itertools import pairwise
from math import log2

MIN_BITS = 90
"""By the frequencies of the characters. 32 random hexadecimal digits have about 117."""

_SAMPLES = (
    "a-key-of-your-own",
    "changeme",
    "change-me",
    "change_me",
    "change-this",
    "change_this",
    "example",
    "insert-your",
    "password",
    "placeholder",
    "replace-me",
    "replace_me",
    "supersecret",
    "super-secret",
    "the-key-that-signs",
    "your-256-bit-secret",
    "your-secret",
    "your_secret",
    "string-secret-at-least",
)
"""Parts of secrets in our pages, in other projects' samples and in tutorials. They are long enough
never to be part of a random secret."""
_KEYS = ("-----BEGIN ", "ssh-rsa ", "ssh-ed25519 ", "ecdsa-sha2-", '"kty"')


def is_weak(secret: str) -> bool:
    """Whether someone could guess ``secret``: it is a sample, a pattern, or has little variety."""
    lower = secret.lower()
    return (
        _bits(secret) < MIN_BITS
        or _is_repeated(secret)
        or _is_sequence(lower)
        or any(sample in lower for sample in _SAMPLES)
    )


def is_public_key(secret: str) -> bool:
    """Whether ``secret`` is a key of a pair, or its certificate: anyone may have it."""
    return any(key in secret for key in _KEYS)


def _bits(secret: str) -> float:
    """The Shannon entropy of the characters, times their number."""
    counts = Counter(secret).values()
    return sum(count * log2(len(secret) / count) for count in counts)


def _is_repeated(secret: str) -> bool:
    """Whether it repeats its beginning, which is at most half of it, until its end."""
    return any(secret.startswith(secret[length:]) for length in range(1, len(secret) // 2 + 1))


def _is_sequence(secret: str) -> bool:
    """Whether most characters are the next or the previous one in the alphabet."""
    steps = Counter(ord(second) - ord(first) for first, second in pairwise(secret))
    return steps[1] + steps[-1] > (len(secret) - 1) / 2
