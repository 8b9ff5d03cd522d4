"""The operators' console, and somebody who looks at its overview."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from domain.alarms import AlarmCode
from tests.incidents.night import PATIENCE_SECONDS
from tests.support.pages import call
from tests.system.deployment import Deployment, eventually, free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """A running console, and the cookie of an operator who has signed in."""

    base: str
    cookie: str

    @classmethod
    @contextmanager
    def started(cls, deployment: Deployment) -> Iterator["Console"]:
        port = free_port()
        settings = {
            "WEARON_CONSOLE_PORT": str(port),
            "WEARON_CONSOLE_SECRET": secrets.token_hex(32),
        }
        added = deployment.wearon("operators", "add", "night", "--role", "viewer", "--json")
        link = json.loads(added.stdout)["link"].rpartition("/")[2]
        base = f"http://127.0.0.1:{port}"
        with deployment.started():
            deployment.start("console", **settings)
            eventually(lambda: _is_up(base), seconds=PATIENCE_SECONDS)
            url = f"{base}/console/link/{link}"
            _, _, cookie = call(url, fields={"password": secrets.token_hex(16)})
            yield cls(base=base, cookie=cookie)

    def shows(self, code: AlarmCode) -> bool:
        """Whether its first page has the alarm."""
        status, text, _ = call(f"{self.base}/console", self.cookie)
        if status != 200:
            return False
        return code in [alarm["code"] for alarm in json.loads(text)["data"]["alarms"]]


def _is_up(base: str) -> bool:
    try:
        return call(f"{base}/console/login")[0] == 200
    except OSError:
        return False
