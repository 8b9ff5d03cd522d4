"""A service at rest, with one worker and a provider, for an incident to befall it."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.provider import KEY, FakeProvider, provider_in_thread
from tests.system.deployment import Answer, Deployment, eventually, kill

PATIENCE_SECONDS = 90.0
"""No step of an incident may take longer, on a machine with other work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What ``wearon status --json`` printed, and its exit code."""

    report: dict[str, Any]
    exit_code: int

    @property
    def codes(self) -> list[str]:
        return [alarm["code"] for alarm in self.report["alarms"]]

    @property
    def snapshot(self) -> dict[str, Any]:
        """Empty if the database does not answer."""
        return self.report["snapshot"] or {}


@dataclass(slots=True, kw_only=True)
class Night:
    """``begun`` starts one. The provider listens on the same port all night."""

    deployment: Deployment
    settings: dict[str, str]
    """The workers'."""
    provider: FakeProvider = field(init=False)
    worker: subprocess.Popen[bytes] = field(init=False)
    noted: dict[str, str] = field(default_factory=dict)
    """What an incident keeps for its look, such as the id of a session."""
    _port: int | None = None
    _provider: ExitStack = field(default_factory=ExitStack)

    @classmethod
    @contextmanager
    def begun(cls, deployment: Deployment, **settings: str) -> Iterator["Night"]:
        """Nothing of an earlier night is left, and ``wearon status`` shows a worker and no
        alarm."""
        deployment.clear()
        deployment.sql("TRUNCATE attempt_faults")
        night = cls(deployment=deployment, settings=settings)
        with deployment.started(), night._provider:
            night.open_provider()
            night.start_worker()
            eventually(night.is_calm, seconds=PATIENCE_SECONDS)
            yield night

    def open_provider(self) -> None:
        self.provider = self._provider.enter_context(provider_in_thread(port=self._port))
        self._port = urlsplit(self.provider.url).port

    def close_provider(self) -> None:
        """From now on, its connections are refused."""
        self._provider.close()

    def start_worker(self, **settings: str) -> None:
        """In place of the earlier one, if there was one. ``settings`` are kept for later ones."""
        self.settings.update(settings)
        self.worker = self.deployment.start(
            "worker",
            WEARON_GENERATOR="openai",
            OPENAI_API_KEY=KEY,
            WEARON_OPENAI_BASE_URL=f"http://127.0.0.1:{self._port}",
            **self.settings,
        )

    def kill_worker(self, signum: signal.Signals = signal.SIGKILL) -> None:
        kill(self.worker, signum)

    def submit(self, number: int = 1) -> list[str]:
        """The ids of new sessions."""
        return [self.accepted().data["session_id"] for _ in range(number)]

    def accepted(self) -> Answer:
        """The answer to a new submission. It is repeated while the API sends a 503, as it does for
        a moment after an outage."""

        def look() -> Answer | None:
            answer = self.deployment.submit()
            return answer if answer.status == 202 else None

        answer = eventually(look, seconds=PATIENCE_SECONDS)
        assert answer is not None
        return answer

    def wait_for_rest(self) -> None:
        """No session waits or is worked on, so the next call of the provider is not for it."""
        unfinished = "SELECT FROM generation_sessions WHERE status IN ('queued', 'processing')"
        eventually(lambda: not self.deployment.sql(unfinished), seconds=PATIENCE_SECONDS)

    def status(self) -> Shown:
        done = self.deployment.wearon("status", "--json", check=False)
        return Shown(report=json.loads(done.stdout), exit_code=done.returncode)

    def is_calm(self) -> bool:
        """No alarm is left, not even a warning, and a worker reports."""
        shown = self.status()
        return not shown.codes and bool(shown.snapshot["workers"])

    def ready(self) -> str:
        """The answer of ``/health/ready``."""
        answer = self.deployment.get("/health/ready")
        error = (answer.body.get("error") or {}).get("message", "")
        return f"{answer.status} {error}".rstrip()
