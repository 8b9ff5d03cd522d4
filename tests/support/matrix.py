"""One principal of every kind over HTTP, each with resources of its own and a credential that
works, or that no longer does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt

from adapters.auth.user_tokens import mint_user_token
from domain.callers import Scope
from domain.credits import Channel, Owner
from domain.endpoints import DeliveryStatus
from domain.picture_ports import Picture
from tests.support.clock import START
from tests.support.examples import LEASE, OPERATOR, OTHER, STORE, USER
from tests.support.http import (
    GENERATIONS,
    PAGE,
    PUBLIC_URL,
    RULES,
    UPLOADS,
    Answer,
    Api,
    user_token,
)
from tests.support.images import encoded
from tests.support.shoppers import CLIENT_TOKENS, MODEL, OTHER_STORE
from tests.support.webhooks import a_result, added, an_attempt, an_outcome

ANONYMOUS = Owner(channel=Channel.B2C, id="3b0a5a9e-94ba-4a35-8a4f-7b4b5d7d7a33")
SUSPENDED_USER = Owner(channel=Channel.B2C, id="4c1b6bae-a5cb-4b46-9b5a-8c5c6e8e8b44")
SUSPENDED_STORE = Owner(channel=Channel.B2B, id="store-3")

SHOP = "https://m.shop.example"
OTHER_SHOP = "https://other.example"
STRANGE_PAGE = "https://strange.example"

OWNERS: dict[str, tuple[Owner, str]] = {
    "user": (USER, PAGE),
    "other_user": (OTHER, PAGE),
    "anonymous_user": (ANONYMOUS, PAGE),
    "suspended_user": (SUSPENDED_USER, PAGE),
    "store": (STORE, SHOP),
    "other_store": (OTHER_STORE, OTHER_SHOP),
    "suspended_store": (SUSPENDED_STORE, SHOP),
}
"""Owners with an account, and the page that may use their credential."""

SHOPPERS: dict[str, tuple[str, str]] = {
    "shopper": ("store", "anna"),
    "same_shopper": ("store", "anna"),
    "other_shopper": ("store", "ben"),
    "foreign_shopper": ("other_store", "anna"),
    "suspended_shopper": ("suspended_store", "anna"),
    "revoked_token": ("store", "anna"),
    "expired_token": ("store", "anna"),
}
"""The store and the shopper of each client token."""

REQUESTING = [*OWNERS, "shopper", "other_shopper", "foreign_shopper", "suspended_shopper"]
"""Each has a queued and a completed session. ``same_shopper`` is ``shopper``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """``token`` None sends no credential; ``page`` is the only origin that may use it."""

    token: str | None
    page: str | None = None


class World:
    """An API that knows every principal."""

    def __init__(self) -> None:
        self.api = Api()
        self.principals: dict[str, Principal] = {"none": Principal(token=None)}
        self.queued: dict[str, str] = {}
        self.final: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.endpoints: dict[str, str] = {}
        self.deliveries: dict[str, str] = {}
        self.key_id = ""
        self.picture_link = self.upload_link = ""

    async def open(self) -> "World":
        await self._add_owners()
        await self._add_shoppers()
        await self._add_services()
        await self._add_invalid()
        for number, name in enumerate(REQUESTING):
            await self._add_sessions(name, number)
        for owner in (SUSPENDED_USER, SUSPENDED_STORE):
            await self.api.service.accounts.suspend(owner, by=OPERATOR)
        await self._add_webhooks()
        await self._add_links()
        return self

    async def call(
        self,
        name: str,
        method: str,
        target: str,
        *,
        body: object = b"",
        origin: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """Call as a principal. Bytes are sent as a picture, anything else as JSON."""
        token = self.principals[name].token
        sent = [*headers]
        if token is not None:
            sent.append(("authorization", f"Bearer {token}"))
        if origin is not None:
            sent.append(("origin", origin))
        kind = None if body == b"" else "application/json"
        return await self.api.call(
            method,
            target,
            owner=None,
            headers=sent,
            body=body,
            content_type="image/jpeg" if isinstance(body, bytes) and body else kind,
        )

    def marks(self) -> dict[str, str]:
        """Texts that only some principals may read, and whose they are."""
        ids = {
            text: name
            for by_name in (
                self.queued,
                self.final,
                self.tokens,
                self.endpoints,
                self.deliveries,
            )
            for name, text in by_name.items()
        }
        links = {f"?{name}-{state}": name for name in REQUESTING for state in ("queued", "final")}
        notes = {f"note-{name}": name for name in OWNERS}
        hooks = {f"hooks-of-{name.replace('_', '-')}.example": name for name in OWNERS}
        return {**ids, **links, **notes, **hooks}

    def state(self) -> str:
        """All that requests may change: sessions, money, tasks, tokens, webhooks, stores, keys,
        stored objects and the audit log."""
        service = self.api.service
        return repr(
            (
                service.repo._rows,
                service.accounts._accounts,
                service.accounts.entries,
                service.queue.messages,
                service.tokens._tokens,
                service.repo.budgets,
                service.webhooks._endpoints,
                service.webhooks._deliveries,
                service.webhooks._thresholds,
                [row.endpoint.secrets.current for row in service.webhooks._endpoints.values()],
                self.api.stores._stores,
                self.api.keys._keys,
                self.api.service_keys._keys,
                self.api.storage._stored,
                service.audit_log.entries,
            )
        )

    def held_by_others(self, owner: Owner, sessions: set[str]) -> str:
        """The accounts and webhooks of all other owners, and all sessions except ``sessions``."""
        service = self.api.service
        accounts = service.accounts._accounts
        hooks = service.webhooks
        endpoints = [row for row in hooks._endpoints.values() if row.endpoint.owner != owner]
        theirs = {row.endpoint.id for row in endpoints}
        return repr(
            (
                endpoints,
                [row for row in hooks._deliveries.values() if row.delivery.endpoint_id in theirs],
                {key: low for key, low in hooks._thresholds.items() if key != owner},
                {key: row for key, row in service.repo._rows.items() if str(key) not in sessions},
                {key: account for key, account in accounts.items() if key != owner},
            )
        )

    async def _add_owners(self) -> None:
        self.api.service.origins.update({OTHER_SHOP})
        for number, (name, (owner, page)) in enumerate(OWNERS.items()):
            await self.api.service.accounts.grant(owner, 1_000 + number, note=f"note-{name}")
            if owner.channel is Channel.B2C:
                token = _anonymous_token() if owner == ANONYMOUS else user_token(owner)
            else:
                await self.api.administration.stores.create(
                    owner.id, name=f"Name of {name}", origins=[page]
                )
                token = await self.api.new_key(owner)
            self.principals[name] = Principal(token=token, page=page)

    async def _add_shoppers(self) -> None:
        for name, (store, shopper_id) in SHOPPERS.items():
            page = OWNERS[store][1]
            body = {"shopper_id": shopper_id, "origin": page, "pictures": 5}
            answer = await self.call(store, "POST", CLIENT_TOKENS, body=body)
            assert answer.status == 201, answer.body
            self.tokens[name] = answer.data["token_id"]
            self.principals[name] = Principal(token=answer.data["client_token"], page=page)
        budgets, expired = self.api.service.repo.budgets, UUID(self.tokens["expired_token"])
        budgets[expired] = replace(budgets[expired], expires_at=START - timedelta(seconds=1))
        await self.api.service.tokens.revoke(UUID(self.tokens["revoked_token"]), STORE)

    async def _add_services(self) -> None:
        for scope in Scope:
            token = await self.api.service_key(scope, label=f"label-{scope}")
            self.principals[scope.value] = Principal(token=token)

    async def _add_invalid(self) -> None:
        key = await self.api.new_key(STORE)
        self.key_id = str(next(reversed(self.api.keys._keys)))
        assert await self.api.keys.revoke(UUID(self.key_id))
        self.principals["revoked_key"] = Principal(token=key)
        await self.api.new_key(STORE)
        self.key_id = str(next(reversed(self.api.keys._keys)))
        service = await self.api.service_key(*Scope)
        await self.api.service_keys.revoke(next(reversed(self.api.service_keys._keys)), by=OPERATOR)
        self.principals["revoked_service"] = Principal(token=service)
        past = datetime.now(UTC) - timedelta(hours=2)
        expired = mint_user_token(
            UUID(USER.id), rules=RULES, now=past, lifetime=timedelta(minutes=1)
        )
        self.principals["expired_user"] = Principal(token=expired)

    async def _add_sessions(self, name: str, number: int) -> None:
        """A completed session with a picture, then a queued one. Their links name the owner."""
        ids = []
        for state in ("final", "queued"):
            body = {"model_image_url": f"{MODEL}?{name}-{state}"}
            page = self.principals[name].page
            answer = await self.call(name, "POST", GENERATIONS, body=body, origin=page)
            assert answer.status == 202, answer.body
            ids.append(answer.data["session_id"])
        self.final[name], self.queued[name] = ids
        session = await self.api.service.repo.claim(UUID(ids[0]), lease=LEASE)
        assert session is not None
        picture = await self.api.storage.save(
            session.object_prefix, Picture(data=b"picture %d" % number, media_type="image/png")
        )
        assert await self.api.service.repo.complete(session.id, attempt=1, picture=picture)

    async def _add_webhooks(self) -> None:
        """Each owner has an endpoint, and there a delivery that failed."""
        hooks = self.api.service.webhooks
        for name, (owner, _) in OWNERS.items():
            url = f"https://hooks-of-{name.replace('_', '-')}.example/"
            endpoint = await added(hooks, owner, url=url)
            delivery = await hooks.add_test(uuid4(), endpoint.id, owner)
            self.endpoints[name], self.deliveries[name] = str(endpoint.id), str(delivery.id)
        for turn in await hooks.claim(limit=len(OWNERS), window=8, lease=LEASE):
            failed = [
                an_outcome(due.id, status=DeliveryStatus.FAILED, attempt=an_attempt(500))
                for due in turn.due
            ]
            assert await hooks.settle(a_result(turn, *failed, failures=1))

    async def _add_links(self) -> None:
        seen = await self.call("user", "GET", f"{GENERATIONS}/{self.final['user']}")
        self.picture_link = seen.data["generated_image_url"].removeprefix(PUBLIC_URL)
        offer = await self.call("user", "POST", UPLOADS, body={"content_type": "image/jpeg"})
        self.upload_link = offer.data["upload_url"].removeprefix(PUBLIC_URL)


JPEG = encoded("JPEG")


def _anonymous_token() -> str:
    now = datetime.now(UTC)
    claims = {
        "sub": ANONYMOUS.id,
        "iss": RULES.issuer,
        "aud": RULES.audience,
        "exp": now + timedelta(hours=1),
        "is_anonymous": True,
    }
    assert RULES.secret is not None
    return jwt.encode(claims, RULES.secret, algorithm="HS256")
