"""Finding what an operator was given: an id, a key, or whatever a customer quotes."""

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from domain.account_ports import ServiceKeyRepoPort, StoreRepoPort
from domain.client_tokens import ClientTokenRepoPort
from domain.credits import Channel, CreditAccount, Owner
from domain.errors import InvalidInput, NotFound
from domain.operator_ports import OperatorReadPort, SessionFilter
from domain.ports import ApiKeyRepoPort, CreditRepoPort
from domain.sessions import GenerationSession

MAX_HITS = 20
_CREDENTIAL = re.compile(r"w[kca]_")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What was found: a session, an owner, or a service key, which has only a ``note``."""

    session: GenerationSession | None = None
    owner: Owner | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """At most ``MAX_HITS``, and the names of all that was searched."""

    hits: list[Hit]
    tried: list[str]


Search = Callable[[], Awaitable[list[Hit]]]


class Finder:
    """Searches by the form of a text. ``hash_secret`` is applied to a key or token before anything
    is asked, and the text of one is in no result. Raises ``DatabaseUnavailable``."""

    def __init__(
        self,
        *,
        reads: OperatorReadPort,
        accounts: CreditRepoPort,
        stores: StoreRepoPort,
        api_keys: ApiKeyRepoPort,
        client_tokens: ClientTokenRepoPort,
        service_keys: ServiceKeyRepoPort,
        hash_secret: Callable[[str], str],
    ) -> None:
        self._reads = reads
        self._accounts = accounts
        self._stores = stores
        self._api_keys = api_keys
        self._client_tokens = client_tokens
        self._service_keys = service_keys
        self._hash_secret = hash_secret

    async def find(self, text: str, *, since: datetime | None = None) -> Found:
        """The first search that finds something ends it. ``since`` is how far back a request id
        that is not ours is searched; None is a day."""
        tried: list[str] = []
        for name, search in self._searches(text.strip(), since):
            tried.append(name)
            if hits := await search():
                return Found(hits=hits, tried=tried)
        return Found(hits=[], tried=tried)

    def _searches(self, text: str, since: datetime | None) -> Iterator[tuple[str, Search]]:
        if _CREDENTIAL.match(text):
            yield self._credential(text)
            return
        if (identity := _uuid(text)) is not None:
            yield "session id", lambda: self._session(identity)
            yield "user id", lambda: self._user(identity)
        if _REQUEST_ID.fullmatch(text):
            yield "request id", lambda: self._request(text, since)
        if (store := _store(text)) is not None:
            yield "store id", lambda: self._store(store)

    def _credential(self, text: str) -> tuple[str, Search]:
        digest = self._hash_secret(text)
        searches: dict[str, tuple[str, Search]] = {
            "wk_": ("API key", lambda: self._api_key(digest)),
            "wc_": ("client token", lambda: self._client_token(digest)),
            "wa_": ("service key", lambda: self._service_key(digest)),
        }
        return searches[text[:3]]

    async def _session(self, identity: UUID) -> list[Hit]:
        try:
            file = await self._reads.session_file(identity)
        except NotFound:
            return []
        return [Hit(session=file.session)]

    async def _user(self, identity: UUID) -> list[Hit]:
        """A user without an account has nothing here."""
        user = Owner(channel=Channel.B2C, id=str(identity))
        account = await self._accounts.account(user)
        return [] if account == CreditAccount(owner=user) else [Hit(owner=user)]

    async def _request(self, text: str, since: datetime | None) -> list[Hit]:
        which = SessionFilter(request_id=text, since=since)
        sessions = await self._reads.sessions(which, limit=MAX_HITS)
        return [Hit(session=session) for session in sessions]

    async def _store(self, store: Owner) -> list[Hit]:
        return [] if await self._stores.get(store.id) is None else [Hit(owner=store)]

    async def _api_key(self, digest: str) -> list[Hit]:
        """Also a revoked one, if it is among the newest keys."""
        keys = [key for key in await self._api_keys.all(None) if key.key_sha256 == digest]
        if not keys:
            caller = await self._api_keys.caller_of(digest)
            return [] if caller is None else [Hit(owner=caller.owner, note="API key")]
        (key,) = keys[:1]
        state = "" if key.revoked_at is None else f", revoked {key.revoked_at:%Y-%m-%d %H:%M} UTC"
        return [Hit(owner=key.owner, note=f"API key {key.id} {key.label!r}{state}")]

    async def _client_token(self, digest: str) -> list[Hit]:
        token = await self._client_tokens.find(digest)
        if token is None:
            return []
        note = f"client token {token.id} of shopper {token.shopper_id!r}"
        return [Hit(owner=token.store, note=note)]

    async def _service_key(self, digest: str) -> list[Hit]:
        service = await self._service_keys.service_of(digest)
        return [] if service is None else [Hit(note=f"service key {service.label!r}")]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _store(text: str) -> Owner | None:
    try:
        return Owner(channel=Channel.B2B, id=text)
    except InvalidInput:
        return None
