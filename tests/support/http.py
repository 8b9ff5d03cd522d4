"""The HTTP API over an in-memory service, called like an ASGI server does, without a socket."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from typing import Any, cast
from urllib.parse import unquote
from uuid import UUID, uuid4

import msgspec
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.types import Message, Receive, Scope, Send

from adapters.auth.api_keys import (
    API_KEY_PREFIX,
    SERVICE_KEY_PREFIX,
    ServiceKeys,
    StoreKeys,
    key_sha256,
    new_api_key,
    new_service_key,
)
from adapters.auth.bearer import BearerAuthenticator, Verify
from adapters.auth.claims import JwtRules
from adapters.auth.client_tokens import CLIENT_TOKEN_PREFIX, ShopperTokens, new_client_token
from adapters.auth.memory import InMemoryServiceKeyRepo
from adapters.auth.user_tokens import UserTokens, mint_user_token
from adapters.erasure.memory import InMemoryErasureRepo
from adapters.images.headers import inspect_head
from adapters.images.inputs import is_own, upload_key
from adapters.images.samples import draw_sample
from adapters.sessions.watched_memory import InMemoryWatchReads
from adapters.storage.signing import UrlSigner
from adapters.stores.memory import InMemoryStoreRepo
from adapters.webhooks.inbox import InMemoryWebhookSender
from adapters.webhooks.secrets import new_webhook_secret
from domain import callers
from domain.account_ports import ServiceKey
from domain.accounts import CreditGrants, Owners
from domain.client_tokens import ClientTokens
from domain.credits import Channel, Owner
from domain.erasure import Erasure
from domain.keys import ApiKeyIssuer
from domain.links import LinkRules
from domain.ports import ApiKey
from domain.signup import NO_SIGNUP, CallerAccounts
from domain.stores import Stores
from domain.throttle import Throttle
from domain.uploads import ReceivingLimits, UploadPolicy, UploadReceiver, Uploads
from domain.views import SessionViews
from domain.watching import StreamLimits, Watching
from domain.webhooks import WebhookPolicy, Webhooks
from entrypoints.http.admin import Administration
from entrypoints.http.app import Services, create_app
from entrypoints.http.door import Door
from entrypoints.http.playground import Playground
from entrypoints.http.public import Check
from tests.support.clock import loop_time
from tests.support.examples import OPERATOR, USER
from tests.support.faults import FlakyApiKeyRepo, FlakyPictureStorage, flaky
from tests.support.service import Service

GENERATIONS = "/api/v1/generations"
BATCH = f"{GENERATIONS}/batch"
UPLOADS = "/api/v1/uploads"
MAX_UPLOADS = 3
MAX_SHOPPER_UPLOADS = 2
MAX_UPLOAD_BYTES = 100_000
PUBLIC_URL = "http://127.0.0.1:8000"
PAGE = "https://shop.example"
"""The origin of the web page that may use users' tokens."""
PLAYGROUND = Playground(samples_url=f"{PUBLIC_URL}/samples", picture_origins=(PUBLIC_URL,))
RULES = JwtRules(secret="a key for tests, long enough for HS256", issuer="us", audience="them")

_DOCUMENT: dict[str, Any] = {}
_UNDOCUMENTED = {
    *("/", "/playground", "/playground/{name}", "/samples/{name}"),
    *("/schema", "/schema/openapi.json", "/schema/assets/{name}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response. ``headers`` have lower-case names; ``route`` is None where none matched."""

    status: int
    headers: dict[str, str]
    body: bytes
    route: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        return self.json["data"]

    @property
    def error(self) -> tuple[int, str]:
        """Status and code."""
        return self.status, self.json["error"]["code"]

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


_SERVICES: ContextVar[Services] = ContextVar("services")
"""Of the ``Api`` that is being called."""


class _Called:
    """One of the services of the ``Api`` that is being called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(_SERVICES.get(), self._name), attribute)

    def __call__(self, *args: Any) -> Any:
        return getattr(_SERVICES.get(), self._name)(*args)

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(_SERVICES.get(), self._name))


@cache
def _application(max_body_bytes: int, playground: Playground | None) -> Litestar:
    """Shared by all ``Api`` objects: it takes longer to build than most tests to run."""
    services: Any = {field.name: _Called(field.name) for field in fields(Services)}
    services["playground"] = playground
    return create_app(
        Services(**services), max_body_bytes=max_body_bytes, max_upload_bytes=MAX_UPLOAD_BYTES
    )


class Api:
    """Checks every response: one X-Request-Id, no repeated header, what browsers need to know, the
    envelope in every JSON body, and a status that the OpenAPI document lists for the route.

    Users' tokens may be used from ``PAGE``, stores' keys from no page."""

    def __init__(
        self,
        *,
        max_body_bytes: int = 64 * 1024,
        users: Verify | None = None,
        playground: Playground | None = PLAYGROUND,
    ) -> None:
        self.service = Service()
        now = self.service.clock.now
        log = self.service.audit_log
        self.stores = InMemoryStoreRepo(accounts=self.service.accounts, log=log, clock=now)
        self.keys = flaky(FlakyApiKeyRepo(clock=now, stores=self.stores, log=log))
        self.service_keys = InMemoryServiceKeyRepo(clock=now, log=log)
        signer = UrlSigner(
            base_url=PUBLIC_URL, secret=b"secret", lifetime=timedelta(hours=1), clock=now
        )
        self.storage = flaky(FlakyPictureStorage(signer=signer))
        self.service.submission.links = LinkRules(is_own=lambda url: is_own(url, self.storage))
        callers_accounts = CallerAccounts(accounts=self.service.accounts, policy=NO_SIGNUP)
        self.uploads = Uploads(
            storage=self.storage,
            accounts=callers_accounts,
            tokens=self.service.tokens,
            policy=UploadPolicy(
                max_per_day=MAX_UPLOADS,
                max_per_shopper=MAX_SHOPPER_UPLOADS,
                max_bytes=MAX_UPLOAD_BYTES,
            ),
            new_id=uuid4,
            clock=now,
        )
        self.receiver = UploadReceiver(
            sink=self.storage,
            check_quota=self.uploads.check_quota,
            inspect=inspect_head,
            limits=ReceivingLimits(in_progress=2),
        )
        self.administration = self._administration()
        self.erasure = Erasure(
            repo=InMemoryErasureRepo(self.service.repo),
            sessions=self.service.repo,
            reads=self.service.repo,
            letters=self.service.queue,
            storage=self.storage,
            uploads=self.storage,
            webhooks=self.service.webhooks,
            upload_key=lambda url: upload_key(url, self.storage),
        )
        self.readiness: dict[str, Check] = {"database": _answers, "queue": _answers}
        self.door = Door(
            authenticate=BearerAuthenticator(
                keys={
                    API_KEY_PREFIX: StoreKeys(self.keys),
                    CLIENT_TOKEN_PREFIX: ShopperTokens(self.service.tokens, clock=now),
                    SERVICE_KEY_PREFIX: ServiceKeys(self.service_keys),
                },
                users=users or UserTokens(RULES, origins=frozenset({PAGE})),
            ),
            strangers=Throttle(None, name="requests", clock=loop_time),
            reads=Throttle(None, name="reads", clock=loop_time),
        )
        self.watching = Watching(
            reads=InMemoryWatchReads(self.service.repo),
            feed=self.service.changes,
            limits=StreamLimits(),
            random=Random(1),
            clock=now,
        )
        self._services = Services(
            submission=self.service.submission,
            views=SessionViews(reads=self.service.repo, storage=self.storage),
            watching=self.watching,
            sessions=self.service.repo,
            credits=self.service.accounts,
            accounts=callers_accounts,
            door=self.door,
            readiness=self.readiness,
            uploads=self.uploads,
            erasure=self.erasure,
            client_tokens=ClientTokens(
                tokens=self.service.tokens,
                accounts=self.service.accounts,
                reads=self.service.repo,
                new_secret=new_client_token,
                hash_secret=key_sha256,
                new_id=uuid4,
                clock=now,
            ),
            webhooks=self._webhooks(),
            files=self.storage,
            receiver=self.receiver,
            samples=draw_sample,
            playground=playground,
            clock=now,
            administration=self.administration,
        )
        self._application = _application(max_body_bytes, playground)
        self._tokens: dict[Owner, str] = {}

    def _webhooks(self) -> Webhooks:
        repo = self.service.webhooks
        return Webhooks(
            endpoints=repo,
            deliveries=repo,
            alerts=repo,
            audit_log=self.service.audit_log,
            check_address=InMemoryWebhookSender().check,
            new_secret=new_webhook_secret,
            new_id=uuid4,
            clock=self.service.clock.now,
            policy=WebhookPolicy(),
        )

    def _administration(self) -> Administration:
        accounts, now = self.service.accounts, self.service.clock.now
        stores = Stores(stores=self.stores, clock=now)
        owners = Owners(accounts=accounts, credit_repo=accounts, stores=stores)
        return Administration(
            grants=CreditGrants(accounts=accounts, owners=owners),
            owners=owners,
            stores=stores,
            keys=ApiKeyIssuer(
                api_keys=self.keys,
                stores=stores,
                new_secret=new_api_key,
                hash_secret=key_sha256,
                new_id=uuid4,
                clock=now,
            ),
        )

    @property
    def document(self) -> dict[str, Any]:
        """The OpenAPI document, which is the same for every ``Api``."""
        if not _DOCUMENT:
            schema = self._application.openapi_schema.to_schema()
            _DOCUMENT.update(msgspec.to_builtins(schema))
        return _DOCUMENT

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Method and path template of every route."""
        return [
            (method, route.path_format)
            for route in self._application.routes
            if isinstance(route, HTTPRoute)
            for method in sorted(route.methods - {"OPTIONS"})
        ]

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application, on the services of this object."""
        _SERVICES.set(self._services)
        await self._application(scope, receive, send)

    async def get(self, target: str, **options: Any) -> Answer:
        return await self.call("GET", target, content_type=None, **options)

    async def submit(self, **options: Any) -> Answer:
        return await self.call("POST", GENERATIONS, **options)

    async def cancel(self, session_id: object, **options: Any) -> Answer:
        return await self.call("POST", f"{GENERATIONS}/{session_id}/cancel", **options)

    async def call(
        self,
        method: str,
        target: str,
        *,
        owner: Owner | None = USER,
        headers: Sequence[tuple[str, str]] = (),
        body: object = b"",
        content_type: str | None = "application/json",
    ) -> Answer:
        """``target`` is path and query. The token of ``owner``, if any, is added. Bytes are sent
        unchanged, a list of them in chunks without a Content-Length, any other body as JSON."""
        chunks, sent = _encoded(body), [("host", "127.0.0.1:8000"), *headers]
        if owner is not None:
            sent.append(("authorization", f"Bearer {await self.token(owner)}"))
        if content_type is not None:
            sent.append(("content-type", content_type))
        if not isinstance(body, list):
            sent.append(("content-length", str(len(chunks[0]))))
        answer = await self._respond(_scope(method, target, sent), chunks)
        self._check(method, answer)
        check_browser_headers(answer, [value for name, value in sent if name == "origin"])
        return answer

    async def token(self, owner: Owner) -> str:
        """A user's JWT or a store's API key, the same in every call."""
        if owner not in self._tokens:
            is_user = owner.channel is Channel.B2C
            self._tokens[owner] = user_token(owner) if is_user else await self.new_key(owner)
        return self._tokens[owner]

    async def new_key(self, owner: Owner) -> str:
        key = new_api_key()
        await self.keys.add(
            ApiKey(
                id=uuid4(),
                owner=owner,
                key_sha256=key_sha256(key),
                label="test",
                created_at=self.service.clock.now(),
            )
        )
        return key

    async def service_key(self, *scopes: callers.Scope, label: str = "billing") -> str:
        """A new service key with these scopes."""
        secret = new_service_key()
        key = ServiceKey(
            id=uuid4(),
            key_sha256=key_sha256(secret),
            label=label,
            scopes=frozenset(scopes),
            created_at=self.service.clock.now(),
        )
        await self.service_keys.add(key, by=OPERATOR)
        return secret

    async def stream(self, target: str, *, owner: Owner = USER, **headers: str) -> "Stream":
        """A stream of events, after its head."""
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        credential = ("authorization", f"Bearer {await self.token(owner)}")
        sent = [("host", "127.0.0.1:8000"), credential, *given]
        stream = Stream(self, _scope("GET", target, sent))
        await stream.start()
        return stream

    async def _respond(self, scope: dict[str, Any], chunks: list[bytes]) -> Answer:
        sent: list[Any] = []
        answered = asyncio.Event()

        async def receive() -> Any:
            if not chunks:
                await answered.wait()
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Message) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                answered.set()

        await self.app(cast("Scope", scope), receive, send)
        names = [name.decode() for name, _ in sent[0]["headers"]]
        assert len(set(names)) == len(names), f"repeated header: {names}"
        return Answer(
            status=sent[0]["status"],
            headers={name.decode(): value.decode() for name, value in sent[0]["headers"]},
            body=b"".join(message["body"] for message in sent[1:]),
            route=scope.get("path_template") or _fast_path_route(scope),
        )

    def _check(self, method: str, answer: Answer) -> None:
        assert answer.headers["x-request-id"]
        if method == "HEAD":
            assert answer.body == b""
            method = "GET"
        elif answer.headers.get("content-type") == "application/json":
            assert answer.json.keys() == {"data", "error"}
        if answer.route not in {None, *_UNDOCUMENTED} and method != "OPTIONS":
            responses = self.document["paths"][answer.route][method.lower()]["responses"]
            assert str(answer.status) in responses, f"{answer.status} is not documented"


class Stream:
    """A response that is read while it is sent."""

    def __init__(self, api: Api, scope: dict[str, Any]) -> None:
        self._sent: asyncio.Queue[Any] = asyncio.Queue()
        self._left = asyncio.Event()
        self._text = ""
        self.status = 0
        self.headers: dict[str, str] = {}
        self._application = asyncio.create_task(self._run(api, scope))

    async def _run(self, api: Api, scope: dict[str, Any]) -> None:
        first: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if first:
                return first.pop()
            await self._left.wait()
            return {"type": "http.disconnect"}

        await api.app(cast("Scope", scope), receive, self._sent.put)

    async def start(self) -> None:
        message = await self._sent.get()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}

    async def event(self) -> tuple[int, dict[str, Any]] | str | None:
        """The id and the data of the next event, or the text of the next block that has none; None
        at the end."""
        while "\n\n" not in self._text:
            message = await self._sent.get()
            self._text += message["body"].decode()
            if not message["more_body"]:
                assert self._text == ""
                return None
        block, _, self._text = self._text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "data" not in fields:
            return block
        assert fields.keys() == {"id", "event", "data"}
        assert fields["event"] == "generation"
        return int(fields["id"]), json.loads(fields["data"])

    async def events(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        """The next ``count`` events, without the blocks in between."""
        found: list[tuple[int, dict[str, Any]]] = []
        while len(found) < count:
            event = await self.event()
            assert event is not None
            if not isinstance(event, str):
                found.append(event)
        return found

    async def close(self) -> None:
        """The client leaves."""
        self._left.set()
        await self._application


def check_browser_headers(answer: Answer, origins: list[str]) -> None:
    """Every response may be cached for one origin only, is nothing but what it says, and is for the
    page that asked, without its cookies."""
    headers = answer.headers
    assert "Origin" in headers["vary"].split(", ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "access-control-allow-credentials" not in headers
    allowed = headers.get("access-control-allow-origin")
    assert allowed in {None, *origins}
    assert ("access-control-expose-headers" in headers) is (allowed is not None)


def _fast_path_route(scope: dict[str, Any]) -> str | None:
    """The route that bypasses Litestar, which therefore does not note it in ``scope``."""
    path: str = scope["path"]
    return path if scope["method"] == "POST" and path in {GENERATIONS, BATCH} else None


async def _answers() -> None:
    """The check of a healthy dependency."""


def user_token(owner: Owner) -> str:
    return mint_user_token(
        UUID(owner.id), rules=RULES, now=datetime.now(UTC), lifetime=timedelta(hours=1)
    )


def _encoded(body: object) -> list[bytes]:
    if isinstance(body, list):
        return list(body)
    return [body if isinstance(body, bytes) else json.dumps(body).encode()]


def _scope(method: str, target: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8_000),
    }
