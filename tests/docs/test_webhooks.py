"""docs/webhooks.md is enough to write a receiver: its code verifies our signatures."""

import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from adapters.webhooks.secrets import new_webhook_secret
from domain.signatures import signed_headers
from tests.docs.pages import blocks, pages

CODE = {block.language: block.text for block in blocks(pages()["docs/webhooks.md"])}
SECRET, BEFORE = new_webhook_secret(), new_webhook_secret()
BODY = '{"type":"webhook.test","data":"caf\u00e9"}'.encode()
Verify = Callable[[str, dict[str, str], bytes], bool]


def in_python(secret: str, headers: dict[str, str], body: bytes) -> bool:
    names: dict[str, Verify] = {}
    exec(CODE["python"], names)  # noqa: S102 - our own page
    return names["is_genuine"](secret, headers, body)


def in_javascript(secret: str, headers: dict[str, str], body: bytes) -> bool:
    arguments = f"{json.dumps(secret)}, {json.dumps(headers)}, Buffer.from('{body.hex()}', 'hex')"
    script = f"{CODE['js']}\nconsole.log(isGenuine({arguments}));"
    node = shutil.which("node") or "node"
    ran = subprocess.run(
        [node, "--input-type=module"], input=script, text=True, capture_output=True, check=True
    )
    return ran.stdout == "true\n"


@pytest.mark.parametrize(
    "verify",
    [
        in_python,
        pytest.param(
            in_javascript,
            marks=pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
        ),
    ],
)
def test_code_of_the_page_verifies_messages(verify: Verify) -> None:
    """Of both secrets during a rotation; not with another secret, another body, or too old."""
    now = datetime.now(UTC)
    headers = signed_headers(BODY, delivery_id=uuid4(), at=now, secrets=[SECRET, BEFORE])
    old = signed_headers(BODY, delivery_id=uuid4(), at=now - timedelta(minutes=6), secrets=[SECRET])

    assert verify(SECRET, headers, BODY)
    assert verify(BEFORE, headers, BODY)
    assert not verify(new_webhook_secret(), headers, BODY)
    assert not verify(SECRET, headers, BODY + b" ")
    assert not verify(SECRET, old, BODY)
