"""The console on adapters in memory, called as browsers and programs do."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import Any, TypeVar
from uuid import UUID, uuid4

from httpx import ASGITransport, AsyncClient, Response
from litestar import Litestar

from config.container import Container
from config.loading import load_settings
from domain.console_ports import Role
from domain.credits import Channel, Owner
from domain.operators import Operator
from domain.sessions import Failure, GenerationSession
from domain.tasks import UnreadableTask
from entrypoints.console.app import create_app
from entrypoints.console.server import services_of
from entrypoints.console.services import Services
from tests.support.examples import (
    FAULT,
    LEASE,
    MANY,
    OPERATOR,
    STORE,
    USAGE,
    USER,
    a_session,
    picture_of,
)

T = TypeVar("T")

BASE_URL = "http://127.0.0.1:8001"
PASSWORD = "correct horse battery"
REASON = "ticket 4711"
_SETTINGS = {
    "WEARON_ENVIRONMENT": "development",
    "WEARON_DATABASE": "memory",
    "WEARON_QUEUE": "memory",
    "WEARON_STORAGE": "memory",
    "WEARON_SIGNING_SECRET": "signs the links of pictures in tests",
    "WEARON_CONSOLE_SECRET": "signs the cookies of operators in tests",
}


class Visitor:
    """A browser of one operator, or of a visitor who has not signed in."""

    def __init__(self, app: Litestar, cookie: str | None = None) -> None:
        self.cookies = {} if cookie is None else {"wearon-console": cookie}
        self._transport = ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]

    def get(self, path: str, **headers: str) -> Response:
        return self._send("GET", path, {"accept": "text/html", **headers})

    def post(self, path: str, fields: Mapping[str, object], **headers: str) -> Response:
        texts = {name: str(value) for name, value in fields.items()}
        return self._send("POST", path, {"accept": "text/html", **headers}, texts)

    def ask(self, path: str) -> Response:
        """What a program gets."""
        return self._send("GET", path, {"accept": "application/json"})

    def json(self, path: str) -> Any:
        """The data of a page, for a program."""
        response = self.ask(path)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        fields: Mapping[str, str] | None = None,
    ) -> Response:
        async def send() -> Response:
            async with AsyncClient(
                transport=self._transport, base_url=BASE_URL, trust_env=False
            ) as client:
                return await client.request(method, path, headers=sent, data=fields)

        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = asyncio.run(send())
        for name, value in SimpleCookie(answer.headers.get("set-cookie", "")).items():
            self.cookies[name] = value.value
            if value["max-age"] == "0":
                del self.cookies[name]
        return answer

    def form_of(self, path: str) -> dict[str, str]:
        """The hidden fields of the last form of a page, as a browser sends them."""
        page = self.get(path)
        assert page.status_code == 200, page.text
        form = page.text.rpartition("<form")[2]
        return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form))

    def act(self, action: str, about: str = "", **fields: object) -> Response:
        """Open the form of an action and press its button."""
        form = self.form_of(f"/console/act/{action}?{about}")
        return self.post(f"/console/act/{action}", {**form, "reason": REASON, **fields})


class ConsoleOf:
    """A console, and the service behind it."""

    def __init__(self, **settings: str) -> None:
        self.container = Container(settings=load_settings(_SETTINGS | settings))
        self.services: Services = services_of(self.container)
        self.app = create_app(self.services)

    def visitor(self, role: Role | None = None) -> Visitor:
        """A new operator with this role, or somebody who is not signed in."""
        cookie = None if role is None else asyncio.run(self._cookie_of(role))
        return Visitor(self.app, cookie)

    async def _cookie_of(self, role: Role) -> str:
        """Of a new operator, who has the role's name."""
        repo = self.container.repositories().operators
        await repo.invite(
            f"a-{role}", role, link_sha256=role.ljust(64, "0"), lifetime=LEASE, by=OPERATOR
        )
        operator = await repo.get(f"a-{role}")
        assert operator is not None
        return self.services.access._cookie_of(operator)

    def do(self, work: Callable[[Container], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work(self.container)

        return asyncio.run(run())


async def filled(container: Container, text: str = "x") -> dict[str, UUID]:
    """A service with something on every page. ``text`` is in all that callers and operators may
    write. Returns the ids of the things by their names."""
    await container.stores().create(STORE.id, name=text, by=OPERATOR)
    accounts = container.accounts()
    by = Operator(actor=f"cli:{text}", reason=text)
    for owner in (STORE, USER):
        await accounts.grant(owner, 10, note=text, by=by)
    issued = await container.key_issuer().issue(STORE, label=text, by=by)
    sessions = container.sessions()

    async def created(owner: Owner, **changes: Any) -> GenerationSession:
        receipt = await sessions.create(a_session(owner=owner, **changes), max_active=MANY)
        session: GenerationSession = receipt.session
        return session

    queued = await created(USER, request_id="req_1", idempotency_key=text)
    prompt = {"prompt": text} if text != "x" else {}
    failed = await created(STORE, **prompt)
    await sessions.claim(failed.id, lease=LEASE)
    failure = Failure(code=text[:50], message=text)
    fault = replace(FAULT, worker=text[:100])
    await sessions.fail(failed.id, failure, attempt=1, fault=fault)
    done = await created(STORE)
    await sessions.claim(done.id, lease=LEASE)
    await sessions.complete(done.id, attempt=1, picture=picture_of(done.id, STORE), usage=USAGE)
    message = UnreadableTask(raw=text.encode(), reason=text, session_id=None)
    await container.queue().bury(message, reason=text)
    (letter,) = await container.queue().dead(limit=1)
    return {
        "queued": queued.id,
        "failed": failed.id,
        "done": done.id,
        "letter": letter.id,
        "key": issued.key.id,
    }


def pages_of(ids: Mapping[str, UUID]) -> list[str]:
    """Every page for looking."""
    return [
        "/console",
        "/console/sessions",
        "/console/sessions?status=failed&since=24h",
        *(f"/console/sessions/{ids[name]}" for name in ("queued", "failed", "done")),
        "/console/owners",
        f"/console/owners/{Channel.B2B}/{STORE.id}",
        f"/console/owners/{Channel.B2C}/{USER.id}",
        "/console/queue",
        f"/console/queue/{ids['letter']}",
        "/console/workers",
        "/console/pace",
        "/console/pace?span=24h",
        "/console/costs",
        "/console/costs?days=7",
        "/console/keys",
        f"/console/keys?store={STORE.id}",
        "/console/audit",
        f"/console/audit?subject={STORE}",
        "/console/find?q=nothing-has-this-id",
    ]


def new_action_id() -> str:
    return str(uuid4())
