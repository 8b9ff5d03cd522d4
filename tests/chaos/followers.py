"""Clients that wait for the ends of sessions: streams, which they resume after a break, and
requests that wait. They check what one client can know, ``told`` the rest, by the database."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from domain.credits import Owner
from domain.sessions import FINAL_REVISION
from tests.chaos.deployment import ACCOUNTS, HOT, PAGE, Stage
from tests.chaos.load import ANSWER_SECONDS, GENERATIONS, MAX_WAIT_SECONDS

FINAL = {"completed", "failed"}
COME_AGAIN = {429, 503}
SILENT_SECONDS = 60.0
"""A client that hears nothing for so long resumes. Longer than between two pings, so that no client
resumes because of an end that its stream missed."""
PAUSE_SECONDS = (0.1, 1.5)
"""Before a client resumes."""
CLOSE_SECONDS = 10.0
"""After the end a stream closes within this time: longer than a process is frozen."""
MAX_FOLLOWERS = 300
LEAVING = 0.2
"""The share of connections that their client closes, to come again."""
NAMED = 4
"""The sessions that a stream of several names."""
NETWORK = (ClientError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token a client has: an owner's, or that of a shopper of a store."""

    owner: Owner
    token: str = field(repr=False)
    shopper_id: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.token}"}
        return headers | ({"Origin": PAGE} if self.shopper_id else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A state of a session that a client was told. A request that waits tells no ``revision``."""

    caller: Caller
    session_id: UUID
    revision: int | None
    status: str
    error_code: str | None
    at: datetime

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


@dataclass(slots=True, kw_only=True)
class Listening:
    """An unbroken stream of all sessions of its caller."""

    caller: Caller
    since: datetime
    is_open: bool = True
    newest: dict[UUID, int] = field(default_factory=dict)


@dataclass(slots=True)
class Told:
    """All that these clients were told."""

    counts: Counter[str] = field(default_factory=Counter)
    states: list[State] = field(default_factory=list)
    listenings: list[Listening] = field(default_factory=list)
    missed: list[tuple[str, UUID]] = field(default_factory=list)
    """The clients, and the sessions whose ends they never saw."""
    problems: dict[tuple[str, UUID | None], None] = field(default_factory=dict)

    def complain(self, rule: str, session_id: UUID | None = None) -> None:
        self.problems[rule, session_id] = None

    def state(self, caller: Caller, data: dict[str, Any], revision: int | None) -> State:
        """Record a state."""
        state = State(
            caller=caller,
            session_id=UUID(data["session_id"]),
            revision=revision,
            status=data["status"],
            error_code=data["error_code"],
            at=datetime.now(UTC),
        )
        if revision is not None and (revision == FINAL_REVISION) != state.is_final:
            self.complain(f"{state.status} has the revision {revision}", state.session_id)
        self.states.append(state)
        return state


async def events(response: ClientResponse) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """The events of a stream, each with its id; what broke off is none."""
    fields: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield int(fields["id"]), json.loads(fields["data"])
            fields = {}


class Client:
    """Waits for the ends of sessions of its caller, until it has seen them all."""

    def __init__(
        self,
        caller: Caller,
        session_ids: Sequence[UUID],
        *,
        url: str,
        http: ClientSession,
        random: Random,
        told: Told,
    ) -> None:
        self.caller = caller
        self.unfinished = dict.fromkeys(session_ids)
        self._session_ids = session_ids
        self._url = url
        self._http = http
        self._random = random
        self._told = told
        self._newest: dict[UUID, int] = {}
        self._is_refused = False

    async def follow_one(self) -> None:
        """A stream of one session, which resumes after the last event."""
        (session_id,) = self._session_ids
        path = f"{GENERATIONS}/{session_id}/events"

        async def connect() -> None:
            newest = self._newest.get(session_id)
            resume = {} if newest is None else {"Last-Event-ID": str(newest)}
            await self._stream(path, resume, above=self._newest)

        await self._until_told("a stream", connect)
        while not (self._is_refused or await self._is_complete(path)):
            await self._pause()

    async def follow_several(self) -> None:
        """A stream of several sessions. To resume is to ask for those that are not final yet, whose
        current states come once more."""

        async def connect() -> None:
            ids = ",".join(map(str, self.unfinished))
            await self._stream(
                "/api/v1/events", {}, above={}, not_below=self._newest, params={"ids": ids}
            )

        await self._until_told("a stream of several", connect)

    async def wait(self) -> None:
        """Requests that wait for the end, one after the other."""
        (session_id,) = self._session_ids

        async def ask() -> None:
            prefer = f"wait={self._random.randint(1, MAX_WAIT_SECONDS)}"
            timeout = ClientTimeout(total=ANSWER_SECONDS)
            async with self._http.get(
                f"{self._url}{GENERATIONS}/{session_id}",
                headers=self.caller.headers | {"Prefer": prefer},
                timeout=timeout,
            ) as response:
                if self._is_answered(response):
                    state = self._told.state(self.caller, (await response.json())["data"], None)
                    self._told.counts[f"waits {'ended' if state.is_final else 'unended'}"] += 1
                    self._check_session(state)

        await self._until_told("a wait", ask)

    async def intrude(self) -> None:
        """Ask for a stream of another owner's session."""
        (session_id,) = self._session_ids
        status = 0
        while status in {0, *COME_AGAIN}:
            status = await self._status(f"{GENERATIONS}/{session_id}/events", {})
            await self._pause()
        self._told.counts["intruders refused"] += status == 404
        if status != 404:
            self._told.complain(f"a stream of another's session answers {status}", session_id)

    async def follow_all(self) -> None:
        """The stream of all sessions of the caller, again and again. It does not resume."""
        while not self._is_refused:
            listening: list[Listening] = []
            try:
                await self._listen(listening)
            except NETWORK:
                self._told.counts["connections broken or refused"] += 1
            for ended in listening:
                ended.is_open = False
            await self._pause()

    async def _listen(self, begun: list[Listening]) -> None:
        url = f"{self._url}/api/v1/events"
        async with self._http.get(url, headers=self.caller.headers) as response:
            if not self._is_answered(response):
                return
            self._told.counts["streams of all opened"] += 1
            listening = Listening(caller=self.caller, since=datetime.now(UTC))
            self._told.listenings.append(listening)
            begun.append(listening)
            async for revision, data in events(response):
                state = self._told.state(self.caller, data, revision)
                self._check_order(state, revision, above=listening.newest)
                listening.newest[state.session_id] = revision
                self._told.counts["ends seen in streams of all"] += state.is_final

    async def _until_told(self, what: str, connect: Callable[[], Awaitable[None]]) -> None:
        try:
            while self.unfinished and not self._is_refused:
                try:
                    await connect()
                except NETWORK:
                    self._told.counts["connections broken or refused"] += 1
                if self.unfinished:
                    await self._pause()
        finally:
            self._told.missed += [(what, session_id) for session_id in self.unfinished]

    async def _stream(
        self,
        path: str,
        headers: dict[str, str],
        *,
        above: dict[UUID, int],
        not_below: dict[UUID, int] | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        """One connection."""
        resumed = bool(self._newest)
        closing = asyncio.timeout(None)
        try:
            async with (
                closing,
                self._http.get(
                    self._url + path, headers=self.caller.headers | headers, params=params
                ) as response,
            ):
                if self._is_answered(response):
                    self._told.counts[f"streams {'resumed' if resumed else 'opened'}"] += 1
                    await self._read(response, closing, above=above, not_below=not_below)
        finally:
            if closing.expired():
                self._told.complain("a stream stays open after the end")

    async def _read(
        self,
        response: ClientResponse,
        closing: asyncio.Timeout,
        *,
        above: dict[UUID, int],
        not_below: dict[UUID, int] | None,
    ) -> None:
        leaves = self._random.random() < LEAVING
        async for revision, data in events(response):
            state = self._told.state(self.caller, data, revision)
            self._check_session(state)
            self._check_order(state, revision, above=above, not_below=not_below)
            above[state.session_id] = self._newest[state.session_id] = revision
            self._told.counts["ends seen in streams"] += state.is_final
            if not self.unfinished:
                closing.reschedule(asyncio.get_running_loop().time() + CLOSE_SECONDS)
            elif leaves:
                return
        if not self.unfinished:
            self._told.counts["streams closed after the end"] += 1

    def _is_answered(self, response: ClientResponse) -> bool:
        if response.status == 200:
            return True
        if response.status not in COME_AGAIN:
            self._is_refused = True
            rule = f"{response.url.path_qs} was answered {response.status}"
            self._told.complain(rule, self._session_ids[0] if self._session_ids else None)
        return False

    def _check_session(self, state: State) -> None:
        if state.session_id not in self._session_ids:
            self._told.complain("told of a session that was not named", state.session_id)
        if state.is_final:
            self.unfinished.pop(state.session_id, None)

    def _check_order(
        self,
        state: State,
        revision: int,
        *,
        above: dict[UUID, int],
        not_below: dict[UUID, int] | None = None,
    ) -> None:
        newest = above.get(state.session_id)
        lowest = (not_below or {}).get(state.session_id, 0) if newest is None else newest + 1
        if revision < lowest:
            rule = f"the revision {revision} came after {max(lowest - 1, newest or 0)}"
            self._told.complain(rule, state.session_id)

    async def _is_complete(self, path: str) -> bool:
        """Whether the stream says that nothing more will come."""
        status = await self._status(path, {"Last-Event-ID": str(FINAL_REVISION)})
        self._told.counts["streams complete"] += status == 204
        if status not in {0, 204, *COME_AGAIN}:
            self._is_refused = True
            self._told.complain(f"{status} after the end", self._session_ids[0])
        return status == 204

    async def _status(self, path: str, headers: dict[str, str]) -> int:
        """0 without an answer."""
        headers = self.caller.headers | headers
        timeout = ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with self._http.get(
                self._url + path, headers=headers, timeout=timeout
            ) as response:
                return response.status
        except NETWORK:
            return 0

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))


class Followers:
    """Clients for a share of the accepted sessions, and one for each owner that follows all."""

    def __init__(self, stage: Stage, *, seed: int) -> None:
        self.told = Told()
        self._stage = stage
        self._random = Random(f"followers {seed}")
        self._together: dict[Owner, list[UUID]] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Task[None]] = []
        self._http: ClientSession | None = None

    async def open(self) -> None:
        timeout = ClientTimeout(total=None, sock_read=SILENT_SECONDS)
        self._http = ClientSession(timeout=timeout, connector=TCPConnector(limit=0))
        callers = [Caller(owner, self._stage.tokens[owner]) for owner in ACCOUNTS]
        callers.append(Caller(HOT, self._stage.client_tokens[0], "shopper-0"))
        for caller in callers:
            client = self._client(caller, [])
            self._listeners.append(asyncio.create_task(client.follow_all()))

    def accepted(self, owner: Owner, session_id: UUID) -> None:
        """A client knows this session."""
        if len(self._clients) >= MAX_FOLLOWERS:
            return
        caller = Caller(owner, self._stage.tokens[owner])
        share = self._random.random()
        if share < 0.4:
            self._begin(self._client(caller, [session_id]).follow_one())
        elif share < 0.6:
            self._begin(self._client(caller, [session_id]).wait())
        elif share < 0.9:
            together = self._together.setdefault(owner, [])
            if session_id not in together:
                together.append(session_id)
            if len(together) == NAMED:
                self._begin(self._client(caller, self._together.pop(owner)).follow_several())
        else:
            stranger = self._random.choice([other for other in ACCOUNTS if other != owner])
            caller = Caller(stranger, self._stage.tokens[stranger])
            self._begin(self._client(caller, [session_id]).intrude())

    async def all_listen(self, seconds: float) -> None:
        """Wait until every stream of all sessions is open, at most so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._listening() < len(self._listeners):
            if loop.time() > deadline:
                self.told.complain("a stream of all sessions does not open")
                return
            await asyncio.sleep(PAUSE_SECONDS[0])

    def _listening(self) -> int:
        return len({one.caller for one in self.told.listenings if one.is_open})

    async def finish(self, seconds: float) -> None:
        """Wait for the clients so long; then none is left."""
        if self._clients:
            await asyncio.wait(self._clients, timeout=seconds)
        late = len(self._clients)
        tasks = [*self._clients, *self._listeners]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                self.told.complain(f"a client ended with {result!r}")
        if late:
            self.told.complain(f"{late} clients still wait")
        if self._http is not None:
            await self._http.close()

    def _client(self, caller: Caller, session_ids: Sequence[UUID]) -> Client:
        assert self._http is not None
        return Client(
            caller,
            session_ids,
            url=self._stage.url,
            http=self._http,
            random=Random(self._random.random()),
            told=self.told,
        )

    def _begin(self, work: "Awaitable[None]") -> None:
        task = asyncio.ensure_future(work)
        self._clients.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Future[None]") -> None:
        self._clients.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.told.complain(f"a client ended with {error!r}")
