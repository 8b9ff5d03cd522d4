"""The owners' webhook endpoints: a server in this process that verifies and records each message.
Some of the endpoints fail, until ``recover``."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from aiohttp import ClientSession, web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from adapters.webhooks.sender import SendLimits
from domain.credits import Channel, Owner
from tests.chaos.deployment import HOT, QUIET, SHOPPING_USER, Stage
from tests.chaos.worker import POLICY
from tests.support.proxy import HOST
from tests.system.deployment import free_port

ENDPOINTS = {
    "healthy": HOT,
    "rotated": HOT,
    "refusing": QUIET,
    "closing": QUIET,
    "slow": SHOPPING_USER,
}
"""What each endpoint is like, and whose it is. The fourth owner has none."""
FAILING = 0.3
HANGING = 0.05
MAX_FAILURES = 2
"""Of one message, so that its next attempt is soon."""
MAX_IN_A_ROW = POLICY.open_after
"""Failures of an endpoint, so that its circuit opens for its first pause only."""
RETRY_AFTER_SECONDS = 2
LATE_SECONDS = (0.5, 3.0)
HANG_SECONDS = SendLimits().seconds + 1
FROZEN_SECONDS = 8.0
"""A process that began a turn may be frozen for so long before it signs."""
OLD_TURN_SECONDS = POLICY.lease.total_seconds() + FROZEN_SECONDS
"""For so long after a rotation, turns that began before it may sign with the old secret only."""
CIRCUIT_SECONDS = 5.0
"""The first pause of a circuit, and a look for what is due."""
LONGEST_RETRY_SECONDS = POLICY.first_retry.total_seconds() * 4 ** (MAX_FAILURES - 1)
DELIVERY_SECONDS = (
    POLICY.lease.total_seconds() + HANG_SECONDS + LONGEST_RETRY_SECONDS + CIRCUIT_SECONDS
)
"""After the last fault, and the end of the session, a message arrives within this time: a turn was
cut off, then an attempt hangs, then the message waits for the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What an endpoint received. ``accepted``: it answered 200."""

    endpoint: str
    id: str
    type: str
    data: dict[str, Any] = field(repr=False)
    signed_at: datetime
    verified_by: frozenset[int]
    """The numbers of the endpoint's secrets, oldest first, that verify it."""
    accepted: bool

    @property
    def session_id(self) -> UUID:
        return UUID(self.data["session_id"])


@dataclass(slots=True)
class Hook:
    """An endpoint."""

    name: str
    owner: Owner
    id: str = ""
    secrets: list[str] = field(default_factory=list)
    """Those that it was given, oldest first."""
    rotated_at: datetime | None = None
    failures: int = 0
    """The last ones, one after the other."""
    failed: Counter[str] = field(default_factory=Counter)
    """How often each message failed."""


class Receiver:
    def __init__(self, stage: Stage, *, seed: int) -> None:
        self.hooks = {name: Hook(name, owner) for name, owner in ENDPOINTS.items()}
        self.messages: list[Message] = []
        self.failures: Counter[str] = Counter()
        """What the endpoints did instead of accepting a message."""
        self._stage = stage
        self._random = Random(f"receiver {seed}")
        self._is_recovered = False
        self._port = free_port()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/{name}", self._receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, self._port).start()
            async with ClientSession() as http:
                for hook in self.hooks.values():
                    await self._create(http, hook)
            yield
        finally:
            await runner.cleanup()

    def recover(self) -> None:
        """From now on, every endpoint accepts every message."""
        self._is_recovered = True

    async def rotate(self) -> None:
        """A new secret for one endpoint. What happens between the database and this command is no
        fault of this run: with an unknown outcome, the secret would be lost."""
        hook = self.hooks["rotated"]
        done = await self._stage.blocking(
            self._stage.deployment.wearon,
            *("webhooks", "rotate", hook.id, "--json"),
            *("--store" if hook.owner.channel is Channel.B2B else "--user", hook.owner.id),
            DATABASE_URL=self._stage.deployment.postgres.url(),
        )
        hook.secrets.append(json.loads(done.stdout)["secret"])
        hook.rotated_at = datetime.now(UTC)

    async def _create(self, http: ClientSession, hook: Hook) -> None:
        headers = {"Authorization": f"Bearer {self._stage.tokens[hook.owner]}"}
        asked = {"url": f"http://{HOST}:{self._port}/{hook.name}"}
        url = f"{self._stage.url}/api/v1/webhooks"
        async with http.post(url, json=asked, headers=headers) as response:
            made = (await response.json())["data"]
            hook.id, hook.secrets = made["endpoint_id"], [made["secret"]]

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        hook, body = self.hooks[request.match_info["name"]], await request.read()
        headers = dict(request.headers)
        answer = await self._answer(hook, request)
        accepted = answer is not None and answer.status == 200
        message = json.loads(body)
        self.messages.append(
            Message(
                endpoint=hook.name,
                id=headers["webhook-id"],
                type=message["type"],
                data=message["data"],
                signed_at=datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC),
                verified_by=_verified_by(hook, body, headers),
                accepted=accepted,
            )
        )
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        return answer

    async def _answer(self, hook: Hook, request: web.Request) -> web.Response | None:
        """None closes the connection without an answer."""
        id_ = request.headers["webhook-id"]
        failure = self._failure(hook, id_)
        if failure is None:
            hook.failures = 0
            if hook.name == "slow" and not self._is_recovered and self._random.random() < FAILING:
                await asyncio.sleep(self._random.uniform(*LATE_SECONDS))
            return web.Response(text="thanks")
        hook.failures += 1
        hook.failed[id_] += 1
        self.failures[failure] += 1
        if failure == "closed":
            return None
        if failure == "hung":
            await asyncio.sleep(HANG_SECONDS)
            return None
        retry_after = {"Retry-After": str(RETRY_AFTER_SECONDS)} if failure == "429" else {}
        return web.Response(status=int(failure), headers=retry_after)

    def _failure(self, hook: Hook, message_id: str) -> str | None:
        if (
            self._is_recovered
            or hook.failures >= MAX_IN_A_ROW
            or hook.failed[message_id] >= MAX_FAILURES
        ):
            return None
        chance = self._random.random()
        match hook.name:
            case "refusing" if chance < FAILING:
                return self._random.choice(("500", "429"))
            case "closing" if chance < FAILING:
                return "closed"
            case "slow" if chance < HANGING:
                return "hung"
        return None


def _verified_by(hook: Hook, body: bytes, headers: dict[str, str]) -> frozenset[int]:
    return frozenset(
        number for number, secret in enumerate(hook.secrets) if _verifies(secret, body, headers)
    )


def _verifies(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True
