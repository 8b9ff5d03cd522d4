"""The table of API keys: what the API answers to each."""

import pytest

from adapters.auth.api_keys import key_sha256, new_api_key
from tests.support.examples import STORE
from tests.support.http import Answer, Api

pytestmark = pytest.mark.anyio

KEY = "wk_0123456789abcdef0123456789abcdef"
NOT_VALID = (401, "INVALID_API_KEY", "The API key is not valid")
MALFORMED = (401, "INVALID_TOKEN", "The token is malformed")
HEADER = "Send one header 'Authorization: Bearer <token>'"
NO_KEY = (401, "INVALID_API_KEY", HEADER)
NO_TOKEN = (401, "INVALID_TOKEN", HEADER)

REJECTED = {
    "one digit short": (KEY[:-1], NOT_VALID),
    "one digit long": (KEY + "0", NOT_VALID),
    "another digit": (KEY[:-1] + "0", NOT_VALID),
    "digits in upper case": ("wk_" + KEY[3:].upper(), NOT_VALID),
    "unknown": (new_api_key(), NOT_VALID),
    "only the prefix": ("wk_", NOT_VALID),
    "its hash": (key_sha256(KEY), MALFORMED),
    "its hash as a key": ("wk_" + key_sha256(KEY), NOT_VALID),
    "prefix twice": ("wk_" + KEY, NOT_VALID),
    "with padding": (KEY + "=", NOT_VALID),
    "with a dot": (KEY + ".", NOT_VALID),
    "with a letter of hexadecimal's end": ("wk_" + "g" * 32, NOT_VALID),
    "of 10,000 digits": ("wk_" + "0" * 10_000, NOT_VALID),
    "prefix in upper case": ("WK_" + KEY[3:], MALFORMED),
    "prefix in mixed case": ("Wk_" + KEY[3:], MALFORMED),
    "without its prefix": (KEY[3:], MALFORMED),
    "of another kind": ("sk_" + KEY[3:], MALFORMED),
    "with a hyphen": ("wk-" + KEY[3:], MALFORMED),
    "as a part of a token": (KEY.replace("wk_", "a.") + ".b", MALFORMED),
    "two keys": (f"{KEY},{KEY}", NO_KEY),
    "with a space inside": (f"{KEY[:10]} {KEY[10:]}", NO_KEY),
    "with NUL": (KEY + "\x00", NO_KEY),
    "percent-encoded": ("wk%5F" + KEY[3:], NO_TOKEN),
    "in quotes": (f'"{KEY}"', NO_TOKEN),
}


@pytest.fixture
def api() -> Api:
    return Api()


async def called_with(api: Api, sent: str) -> Answer:
    headers = [("authorization", f"Bearer {sent}")]
    return await api.get("/api/v1/credits", owner=None, headers=headers)


@pytest.mark.parametrize(("sent", "expected"), REJECTED.values(), ids=REJECTED)
async def test_rejected_keys(
    api: Api, sent: str, expected: tuple[int, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the valid key that they resemble; the answer does not repeat them."""
    monkeypatch.setattr("tests.support.http.new_api_key", lambda: KEY)
    assert await api.token(STORE) == KEY

    accepted, rejected = await called_with(api, KEY), await called_with(api, sent)

    assert accepted.data["owner_id"] == STORE.id
    assert (*rejected.error, rejected.message) == expected


async def test_revoked_key(api: Api) -> None:
    """It is answered like one that never existed."""
    text = await api.token(STORE)
    (key,) = await api.keys.all(STORE)
    await api.keys.revoke(key.id)

    rejected = await called_with(api, text)

    assert (*rejected.error, rejected.message) == NOT_VALID
