"""Both languages verify webhooks alike, as Standard Webhooks defines them."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.drivers import NodeDriver
from wearon_client import InvalidWebhook, verify_webhook

NOW = 1_800_000_000
KEY, OTHER = b"k" * 24, b"o" * 32
EVENT = {"type": "generation.completed", "timestamp": "2027-01-15T08:00:00Z", "data": {"ü": "👗"}}
BODY = json.dumps(EVENT, ensure_ascii=False).encode()

Verify = Callable[..., dict[str, Any]]


def secret(key: bytes = KEY) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def signature(key: bytes = KEY, *, body: bytes = BODY, at: int = NOW, name: str = "msg_1") -> str:
    signed = f"{name}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def headers(signatures: str, *, at: object = NOW) -> dict[str, str]:
    return {
        "Webhook-Id": "msg_1", "WEBHOOK-TIMESTAMP": str(at), "webhook-signature": signatures
    }  # fmt: skip


def in_python(*args: Any, **options: Any) -> dict[str, Any]:
    return dict(verify_webhook(*args, **options))


@pytest.fixture(params=["python", "node"])
def verify(request: pytest.FixtureRequest) -> Verify:
    if request.param == "python":
        return in_python
    node: NodeDriver = request.getfixturevalue("node")

    def in_node(*args: Any, **options: Any) -> dict[str, Any]:
        outcome = node.ask(method="verify_webhook", args=args, options=options)
        if outcome.error is None:
            result: dict[str, Any] = outcome.result
            return result
        kind = {"InvalidWebhook": InvalidWebhook, "TypeError": ValueError}[outcome.error["name"]]
        raise kind(outcome.error["message"])

    return in_node


@pytest.mark.parametrize(
    "signatures",
    [
        signature(),
        f"{signature(OTHER)} {signature()}",
        f"v1a,AAAA v2,{signature()[3:]} {signature()} v1,&",
        f"{signature()}  ",
    ],
    ids=["one", "rotation", "other versions", "spaces"],
)
def test_one_valid_signature_is_enough(verify: Verify, signatures: str) -> None:
    """Any of the signatures may match; names of headers have no case."""
    assert verify(BODY, headers(signatures), secret(), now=NOW) == EVENT


def test_one_of_several_secrets_is_enough(verify: Verify) -> None:
    """A receiver may know the old and the new secret."""
    assert verify(BODY, headers(signature()), [secret(OTHER), secret()], now=NOW) == EVENT


@pytest.mark.parametrize(
    "signatures",
    [
        signature(OTHER),
        signature(body=BODY + b" "),
        signature(at=NOW + 1),
        signature(name="msg_2"),
        signature()[:-8] + "AAAAAAA=",
        signature()[3:],
        f"v2,{signature()[3:]}",
        "v1,",
        "v1,not base64",
        ",",
    ],
    ids=[
        "secret", "body", "time", "id", "changed", "no version", "version", "none", "text", "comma"
    ],
)  # fmt: skip
def test_invalid_signature_is_refused(verify: Verify, signatures: str) -> None:
    """Secret, body, time and id are all signed, by HMAC-SHA256 of version 1 only."""
    with pytest.raises(InvalidWebhook, match="signature"):
        verify(BODY, headers(signatures), secret(), now=NOW)


@pytest.mark.parametrize(
    ("late", "valid"), [(-301, False), (-300, True), (300, True), (301, False)]
)
def test_time_is_within_five_minutes(verify: Verify, late: int, valid: bool) -> None:
    """A recorded webhook cannot be sent again later, and clocks may differ."""
    if valid:
        assert verify(BODY, headers(signature()), secret(), now=NOW + late)
    else:
        with pytest.raises(InvalidWebhook, match="timestamp"):
            verify(BODY, headers(signature()), secret(), now=NOW + late)


@pytest.mark.parametrize("at", ["1e9", "-1", "\uff11", " ", "1" * 13, "0x10", f"{NOW}.5"])
def test_odd_time_is_refused(verify: Verify, at: str) -> None:
    """Digits only."""
    with pytest.raises(InvalidWebhook, match="no number"):
        verify(BODY, headers(signature(), at=at), secret(), now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_headers_are_required(verify: Verify, name: str) -> None:
    """A missing header is named."""
    given = {key: value for key, value in headers(signature()).items() if key.lower() != name}

    with pytest.raises(InvalidWebhook, match=name):
        verify(BODY, given, secret(), now=NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"type": 1}', b"\xff{}"])
def test_signed_body_is_an_event(verify: Verify, body: bytes) -> None:
    """A body without a type is refused, although it is signed."""
    with pytest.raises(InvalidWebhook, match="body"):
        verify(body, headers(signature(body=body)), secret(), now=NOW)


@pytest.mark.parametrize("wrong", ["", "whsec_", "whsec_&"])
def test_wrong_secret_is_the_receivers_error(verify: Verify, wrong: str) -> None:
    """An empty secret would accept what anyone signs."""
    with pytest.raises(ValueError, match="whsec_"):
        verify(BODY, headers(signature()), wrong, now=NOW)
