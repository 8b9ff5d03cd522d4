"""A deployment with the console, and the people who look at it."""

import asyncio
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import UUID

from config.closing import close
from config.console import access, operators
from config.container import Container
from config.loading import load_settings
from domain.console_ports import Role
from domain.operators import Operator
from tests.system.deployment import CREDITS, OWNERS, Deployment, eventually, free_port, kill

VIEWER = "vera"
PASSWORD = "correct horse battery"
BY = Operator(actor="cli:test", reason="for the tests")
START_SECONDS = 60.0
UNREACHABLE = "unreachable"
"""Instead of a card's name: a link that nothing answers."""


@dataclass(slots=True, kw_only=True)
class Consoles:
    """API, a worker and two consoles, of which one is read-only."""

    deployment: Deployment
    url: str
    read_only_url: str
    developer_token: str
    viewer_link: str
    """Leads to the page where the viewer chooses her password, once."""
    worker: subprocess.Popen[bytes]
    unused_url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    _ended: dict[str, dict[str, Any]] = field(default_factory=dict)

    def link(self, url: str | None = None) -> str:
        """Signs in as an administrator."""
        return f"{url or self.url}/console/developer/{self.developer_token}"

    def ended(self, card: str) -> dict[str, Any]:
        """A session of the store with this test card, or ``UNREACHABLE``, which has ended. The same
        one each time."""
        if card not in self._ended:
            self._ended[card] = self._made(card)
        return self._ended[card]

    def _made(self, card: str) -> dict[str, Any]:
        origin = self.unused_url if card == UNREACHABLE else self.deployment.url
        picture = f"{origin}/samples/{card}.png"
        answer = self.deployment.submit("b2b", model_image_url=picture)
        session = self.deployment.wait_for(
            answer.data["session_id"], "completed", "failed", channel="b2b"
        )
        return session | {"request_id": answer.headers["x-request-id"]}

    def kill_worker(self) -> None:
        kill(self.worker, signal.SIGKILL)

    def start_worker(self) -> None:
        self.worker = self.deployment.start("worker")


@contextmanager
def running_consoles() -> Iterator[Consoles]:
    # Not tmp_path: if we are root, the servers run as a user who cannot enter it.
    folder = Path(tempfile.mkdtemp(prefix="wearon-test-"))
    folder.chmod(0o755)
    deployment = Deployment(folder)
    try:
        yield _started(deployment)
    finally:
        deployment.close()
        shutil.rmtree(folder)


def _started(deployment: Deployment) -> Consoles:
    """All processes start at once, and what they need is not prepared by commands: each would take
    a second."""
    ports = (free_port(), free_port())
    own = {"WEARON_CONSOLE_PORT": str(ports[0]), "WEARON_CONSOLE_SECRET": secrets.token_hex(32)}
    read_only = {"WEARON_CONSOLE_PORT": str(ports[1]), "WEARON_CONSOLE_READ_ONLY": "true"}
    deployment.start_servers()
    deployment.configure(**own)
    container = Container(settings=load_settings(deployment.environ))
    with ThreadPoolExecutor(1) as thread:  # The browser's driver has a loop in this one.
        invited = thread.submit(asyncio.run, _prepare(deployment, container)).result()
    deployment.api = deployment.start("serve")
    worker = deployment.start("worker")
    deployment.start("console")
    deployment.start("console", **read_only)
    url, read_only_url = (f"http://127.0.0.1:{port}" for port in ports)
    eventually(lambda: _is_up(url) and _is_up(read_only_url), seconds=START_SECONDS)
    eventually(lambda: deployment.get("/health/ready").status == 200, seconds=START_SECONDS)
    return Consoles(
        deployment=deployment,
        url=url,
        read_only_url=read_only_url,
        developer_token=access(container).developer_token(),
        viewer_link=f"{url}/console/link/{invited}",
        worker=worker,
    )


async def _prepare(deployment: Deployment, container: Container) -> str:
    """Tables, a user, a store with credits and a key, and a viewer. Returns the token of her
    link."""
    try:
        await container.migrate()()
        user, store = OWNERS
        await container.stores().create(store.id, name=store.id, by=BY)
        await container.grants().grant(store, CREDITS, note="test", by=BY)
        token = container.user_token()(
            UUID(user.id), now=container.clock()(), lifetime=timedelta(hours=1)
        )
        deployment.tokens = {"b2b": container.new_api_key(), "b2c": token}
        await container.key_issuer().register(deployment.tokens["b2b"], store, label="test")
        return (await operators(container).invite(VIEWER, Role.VIEWER, by=BY)).token
    finally:
        await close(container)


def _is_up(url: str) -> bool:
    try:
        with urlopen(f"{url}/console/login", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False
