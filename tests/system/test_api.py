"""The API process as operators see it: its keys and its log."""

import json
import signal
import time
from urllib.request import Request, urlopen

from tests.system.deployment import STORE_ID, Deployment, eventually, free_port, kill

SECONDS = 1.0
MARGIN_SECONDS = 1.0
"""Added to a bound on a busy machine."""


def test_revoked_key_stops_within_the_cache_time(deployment: Deployment) -> None:
    """At most ``WEARON_AUTH_CACHE_SECONDS`` after ``wearon keys revoke``, even in constant use."""
    port = free_port()
    deployment.start("serve", WEARON_PORT=str(port), WEARON_AUTH_CACHE_SECONDS=str(SECONDS))
    made = deployment.wearon("keys", "create", "--store", STORE_ID, "--json").stdout
    key = json.loads(made)
    request = Request(
        f"http://127.0.0.1:{port}/api/v1/credits", headers={"Authorization": f"Bearer {key['key']}"}
    )
    eventually(lambda: deployment.call(request).status == 200)

    deployment.wearon("keys", "revoke", key["id"])
    revoked_at = time.monotonic()
    eventually(lambda: deployment.call(request).status == 401)

    assert time.monotonic() - revoked_at < SECONDS + MARGIN_SECONDS


def test_access_line_is_written_within_a_second(deployment: Deployment) -> None:
    """Also if no other request comes. The line of a request that was answered just before SIGTERM
    is in the log too."""
    port = free_port()
    api = deployment.start("serve", WEARON_PORT=str(port))
    live = Request(f"http://127.0.0.1:{port}/health/live")
    eventually(lambda: deployment.call(live).status == 200)

    def called(name: str) -> None:
        with urlopen(Request(live.full_url, headers={"X-Request-Id": name})):
            pass

    def logged() -> list[str]:
        """The ids of our requests, in the order of their lines."""
        log = (deployment.folder / "serve.log").read_text()
        return [json.loads(line)["request_id"] for line in log.splitlines() if '"mine-' in line]

    called("mine-first")
    eventually(lambda: logged() == ["mine-first"], seconds=SECONDS + MARGIN_SECONDS)
    ids = [f"mine-{number}" for number in range(50)]
    for name in ids:
        called(name)
    kill(api, signal.SIGTERM)

    assert logged() == ["mine-first", *ids]
