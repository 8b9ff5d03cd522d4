"""The users of the deployment: clients that record their answers, and an external consumer."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
from aiohttp import ClientError, ClientSession, ClientTimeout
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.credits import Owner
from tests.chaos.deployment import ACCOUNTS, EXTERNAL, HOT, MOODS, NO_DATABASE, PAGE, Stage

TASKS_KEY = "wearon:tasks:generation"
GARBAGE: tuple[Any, ...] = ([], {"version": 9}, {"session_id": "somebody's"}, {"session_id": None})
"""Messages that are not tasks."""
CLIENTS = 10
MAX_REQUESTS = 50_000
ANSWER_SECONDS = 10.0
NO_ANSWER = 0
GENERATIONS = "/api/v1/generations"
MAX_WAIT_SECONDS = 6
"""Shorter than ANSWER_SECONDS, so that a wait can end by itself."""
ACCEPTED = {200, 202}
"""Of a submission: with the final session after a wait, or before its end."""

Accepted: TypeAlias = Callable[[Owner, UUID], None]
"""Is told of each session that a client knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request for a picture, or NO_ANSWER."""

    request_id: str
    owner: Owner
    key: str | None
    status: int
    code: str | None = None
    session_id: UUID | None = None
    session_status: str | None = None
    replayed: bool = False
    waited: bool = False
    """Whether the request asked to wait for the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The answer to a status request or a cancellation, which ``caller`` sent."""

    session_id: UUID
    caller: Owner
    owner: Owner
    cancel: bool
    status: int
    session_status: str | None = None


@dataclass(slots=True)
class Journal:
    """All answers that clients got."""

    answers: list[Answer] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)


class Client:
    """Requests pictures, repeats requests, reads statuses and cancels."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        http: ClientSession,
        journal: Journal,
        random: Random,
        *,
        accepted: Accepted,
    ) -> None:
        self._name = name
        self._stage = stage
        self._http = http
        self._journal = journal
        self._random = random
        self._accepted = accepted
        self._requests = 0

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set() and len(self._journal.answers) < MAX_REQUESTS:
            await asyncio.sleep(self._random.uniform(0.1, 1.2))
            await self._request_picture()

    async def request_for_each(self) -> None:
        """One picture for each owner."""
        for owner in ACCOUNTS:
            await self._submit(owner, None, "fine")

    async def _request_picture(self) -> None:
        random = self._random
        owner = random.choice((HOT, HOT, HOT, *ACCOUNTS))
        if random.random() < 0.2:
            await self._submit_as_shopper(random.choice(MOODS))
            return
        key = f"{self._name}-{self._requests}" if random.random() < 0.5 else None
        mood = random.choice(MOODS)
        copies = random.choice((1, 1, 2, 3)) if key else 1
        answers = await self._submit_copies(owner, key, mood, copies)
        while key and random.random() < 0.5:
            await asyncio.sleep(random.choice((0.0, 0.3, 4.0)) * random.random())
            if random.random() < 0.1:
                await self._submit(owner, key, "another")
            answers += await self._submit_copies(owner, key, mood, 1)
        for session_id in {item.session_id for item in answers if item.session_id}:
            if random.random() < 0.2:
                await self._see(session_id, owner, owner, cancel=True)
            if random.random() < 0.5:
                await asyncio.sleep(random.random() * 2)
                caller = random.choice((owner, owner, *ACCOUNTS))
                await self._see(session_id, caller, owner, cancel=random.random() < 0.3)

    async def _submit_copies(
        self, owner: Owner, key: str | None, mood: str, count: int
    ) -> list[Answer]:
        """The same request ``count`` times concurrently."""
        return await asyncio.gather(*(self._submit(owner, key, mood) for _ in range(count)))

    async def _submit_as_shopper(self, mood: str) -> None:
        """With a client token, which counts its pictures. The store pays, and sees the session."""
        token = self._random.choice(self._stage.client_tokens)
        answer = await self._submit(HOT, None, mood, shopper=token)
        if answer.session_id is not None and self._random.random() < 0.3:
            await self._see(answer.session_id, HOT, HOT, cancel=True)

    async def _submit(
        self, owner: Owner, key: str | None, mood: str, *, shopper: str | None = None
    ) -> Answer:
        self._requests += 1
        request_id = f"{self._name}-{self._requests}"
        headers = {"X-Request-Id": request_id} | ({"Idempotency-Key": key} if key else {})
        if shopper is not None:
            headers |= {"Authorization": f"Bearer {shopper}", "Origin": PAGE}
        waits = self._random.random() < 0.2
        if waits:
            headers["Prefer"] = f"wait={self._random.randint(1, MAX_WAIT_SECONDS)}"
        request = {"model_image_url": f"{self._stage.picture_url}?{mood}"}
        status, body, replayed = await self._call("POST", "", owner, headers, request)
        data = body.get("data") or {}
        answer = Answer(
            request_id=request_id,
            owner=owner,
            key=key,
            status=status,
            code=(body.get("error") or {}).get("code"),
            session_id=UUID(data["session_id"]) if data else None,
            session_status=data.get("status"),
            replayed=replayed,
            waited=waits,
        )
        self._journal.answers.append(answer)
        if answer.session_id is not None:
            self._accepted(owner, answer.session_id)
        return answer

    async def _see(self, session_id: UUID, caller: Owner, owner: Owner, *, cancel: bool) -> None:
        method, path = ("POST", f"/{session_id}/cancel") if cancel else ("GET", f"/{session_id}")
        status, body, _ = await self._call(method, path, caller, {}, None)
        self._journal.sightings.append(
            Sighting(
                session_id=session_id,
                caller=caller,
                owner=owner,
                cancel=cancel,
                status=status,
                session_status=(body.get("data") or {}).get("status"),
            )
        )

    async def _call(
        self, method: str, path: str, owner: Owner, headers: dict[str, str], body: Any
    ) -> tuple[int, dict[str, Any], bool]:
        """Status, body, and whether the answer is a replay."""
        try:
            async with self._http.request(
                method,
                self._stage.url + GENERATIONS + path,
                json=body,
                headers={"Authorization": f"Bearer {self._stage.tokens[owner]}"} | headers,
            ) as response:
                answer = json.loads(await response.read())
                return response.status, answer, "Idempotency-Replayed" in response.headers
        except (ClientError, OSError, TimeoutError):
            return NO_ANSWER, {}, False


class ExternalConsumer:
    """Pops with plain BRPOP and writes the session's row with SQL. It knows no leases, attempts,
    refunds or cancellations, retries nothing, gives some sessions back, and dies now and then."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self._stage = stage
        self._random = random
        self.written = 0

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            redis = Redis.from_url(self._stage.redis_url, socket_timeout=5, protocol=2)
            try:
                async with self._stage.sql(EXTERNAL) as connection:
                    while not over.is_set() and await self._work(redis, connection):
                        pass
            except (RedisError, *NO_DATABASE):
                await asyncio.sleep(self._random.random())
            finally:
                await redis.aclose()

    async def _work(self, redis: Redis, sql: "asyncpg.Connection[asyncpg.Record]") -> bool:
        """Returns whether it is alive afterwards."""
        popped = await redis.brpop([TASKS_KEY], timeout=1)
        if popped is None:
            return True
        task = json.loads(popped[1])
        if self._dies() or task in GARBAGE:
            return False
        session_id = task["session_id"]
        self._stage.popped.append(popped[1])
        await self._write(sql, session_id, "status = 'processing'")
        await asyncio.sleep(self._random.choice((0.0, 0.5, 0.5, 8.0)) * self._random.random())
        if self._dies():
            return False
        chance = self._random.random()
        if chance < 0.1:
            await self._write(sql, session_id, "status = 'queued'")
        elif chance < 0.4:
            await self._write(sql, session_id, "status = 'failed'")
        else:
            picture = "generated_image_url = 'https://elsewhere.example/picture.png'"
            await self._write(sql, session_id, f"status = 'completed', {picture}")
        return True

    def _dies(self) -> bool:
        return self._random.random() < 0.1

    async def _write(
        self, sql: "asyncpg.Connection[asyncpg.Record]", session_id: str, change: str
    ) -> None:
        await sql.execute(
            f"UPDATE generation_sessions SET {change} WHERE id = $1",  # noqa: S608 - literals
            UUID(session_id),
        )
        self.written += 1


async def put_load_on(
    stage: Stage, journal: Journal, over: asyncio.Event, *, seed: int, accepted: Accepted
) -> int:
    """Run all users until ``over`` is set and the last answer has arrived. Returns how many rows
    the external consumer wrote."""
    timeout = ClientTimeout(total=ANSWER_SECONDS)
    async with ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as users:
        for client in _clients(stage, http, journal, seed, accepted):
            users.create_task(client.run(over))
        external = ExternalConsumer(stage, Random(f"external {seed}"))
        users.create_task(external.run(over))
    return external.written


async def request_for_each(stage: Stage, journal: Journal, *, accepted: Accepted) -> None:
    """One picture for each owner, without faults."""
    async with ClientSession(timeout=ClientTimeout(total=ANSWER_SECONDS)) as http:
        client = Client("calm", stage, http, journal, Random(0), accepted=accepted)
        await client.request_for_each()


def _clients(
    stage: Stage, http: ClientSession, journal: Journal, seed: int, accepted: Accepted
) -> Sequence[Client]:
    return [
        Client(
            f"client{number}",
            stage,
            http,
            journal,
            Random(f"client {number} {seed}"),
            accepted=accepted,
        )
        for number in range(CLIENTS)
    ]
