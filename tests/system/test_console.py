"""The console as a process of its own, on real servers, as in production."""

import json
import secrets
import signal
from urllib.request import Request

import pytest

from tests.support.pages import OPENER, call
from tests.system.deployment import STORE_ID, Deployment, eventually, free_port, kill

PASSWORD = "correct horse battery"


@pytest.fixture
def settings() -> dict[str, str]:
    return {
        "WEARON_ENVIRONMENT": "production",
        "WEARON_FETCH_ALLOW_LOOPBACK": "",
        "WEARON_CONSOLE_PORT": str(free_port()),
        "WEARON_CONSOLE_SECRET": secrets.token_hex(32),
    }


def test_operator_signs_in_acts_and_is_revoked(
    deployment: Deployment, settings: dict[str, str]
) -> None:
    """Without an operator the console does not start. Then a link, a password, a grant that is in
    the audit log, and a revocation that ends the sign-in within seconds."""
    refused = deployment.wearon("console", check=False, **settings)
    added = deployment.wearon("operators", "add", "alice", "--role", "operator", "--json")
    console = deployment.start("console", **settings)
    base = f"http://127.0.0.1:{settings['WEARON_CONSOLE_PORT']}"
    eventually(lambda: _is_up(base))

    link = json.loads(added.stdout)["link"]
    own = f"{base}/console/link/{link.rpartition('/')[2]}"
    entered, _, cookie = call(own, fields={"password": PASSWORD})
    statuses = {path: call(base + path, cookie)[0] for path in PAGES}
    balance = deployment.balance("b2b")
    page = _html(f"{base}/console/act/grant?owner=b2b:{STORE_ID}", cookie)
    form = {name: page.split(f'name="{name}" value="')[1].split('"')[0] for name in FIELDS}
    acted = [
        call(f"{base}/console/act/grant", cookie, {**form, "amount": 2, "reason": "ticket 4711"})
        for _ in range(2)
    ]
    log = json.loads(deployment.wearon("operators", "log", "--name", "alice", "--json").stdout)
    deployment.wearon("operators", "revoke", "alice", "--reason", "has left")

    assert refused.returncode == 1
    assert "wearon operators add" in refused.stderr
    assert "/console/link/" in link
    assert entered == 303
    assert set(statuses.values()) == {200}, statuses
    assert [status for status, *_ in acted] == [200, 200], acted[0][1]
    assert deployment.balance("b2b") == balance + 2
    assert log[0]["action"] == "credits.grant"
    assert (log[0]["reason"], log[0]["subject"]) == ("ticket 4711", f"b2b:{STORE_ID}")
    eventually(lambda: call(f"{base}/console", cookie)[0] == 401)
    assert kill(console, signal.SIGTERM) == 0


PAGES = (
    "/console",
    "/console/sessions",
    "/console/sessions?status=failed&since=24h",
    "/console/owners",
    f"/console/owners/b2b/{STORE_ID}",
    "/console/queue",
    "/console/workers",
    "/console/keys",
    "/console/audit",
    "/console/find?q=no-such-thing",
)
FIELDS = ("token", "action_id", "owner")


def _is_up(base: str) -> bool:
    try:
        return call(f"{base}/console/login")[0] == 200
    except OSError:
        return False


def _html(url: str, cookie: str) -> str:
    with OPENER.open(Request(url, headers={"Accept": "text/html", "Cookie": cookie})) as answer:
        return str(answer.read().decode())
