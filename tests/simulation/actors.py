"""The processes of a deployment, and an external consumer."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from uuid import UUID

from adapters.images.jobs import JobPictureGenerator, JobProducedNothing, Jobs
from adapters.images.limits import JobLimits
from adapters.sessions.watched_memory import InMemoryWatchReads
from domain.callers import Caller
from domain.credits import Owner
from domain.dispatch import Dispatcher
from domain.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    IllegalTransition,
    InsufficientCredits,
    Overloaded,
    ProviderUnavailable,
    RateLimited,
    Refused,
    TooManyActive,
    Unavailable,
    Unconfirmed,
)
from domain.generation import Generation, WorkPolicy
from domain.picture_ports import Generated, Picture, PictureFetcherPort, PictureRequest
from domain.ports import Receipt
from domain.recovery import Recovery, RecoveryPolicy
from domain.requests import TryOnRequest, item_key
from domain.sessions import GenerationSession, SessionStatus
from domain.submission import Submission, SubmissionPolicy
from domain.tasks import GenerationTask
from domain.watching import StreamLimits, Watching
from entrypoints.worker import Worker, WorkerLimits
from tests.simulation.limits import SIGNUP
from tests.simulation.processes import Process, database_error, queue_error, storage_error
from tests.simulation.streams import Follower
from tests.simulation.watched import PICTURE_LIFETIME, ProviderJob
from tests.simulation.world import BUSY, Answer, World
from tests.support.clock import loop_time
from tests.support.examples import NO_TOKENS, NO_WEBHOOKS, NO_WORKERS, a_request
from tests.support.images import A_PICTURE

STREAMS = StreamLimits(lifetime=timedelta(seconds=20))
INTERVAL_SECONDS = 1.0
RESTART_SECONDS = 0.5
SUBMISSION = SubmissionPolicy(max_active=8, signup=SIGNUP)
WORK = WorkPolicy(
    lease=timedelta(seconds=3),
    attempt_timeout=timedelta(seconds=10),
    backoff_base=timedelta(seconds=0.5),
    backoff_cap=timedelta(seconds=3),
    provider_patience=timedelta(seconds=60),
    storage_patience=timedelta(seconds=20),
    queue_ttl=timedelta(seconds=120),
)
PROVIDER = "simulated"
JOBS = JobLimits(total_seconds=9.5, first_pause_seconds=0.2, longest_pause_seconds=0.5)
RECOVERY = RecoveryPolicy(
    requeue_after=timedelta(seconds=5),
    external_timeout=timedelta(seconds=15),
    queue_ttl=WORK.queue_ttl,
    batch=3,
    picture_lifetime=PICTURE_LIFETIME,
    deletions=3,
    deletion_timeout=timedelta(seconds=2),
    delete_again_after=timedelta(seconds=5),
    blocked_again_after=timedelta(seconds=5),
)

STATUSES: Sequence[tuple[type[Exception], int]] = (
    (InsufficientCredits, 402),
    (IdempotencyKeyReused, 422),
    (TooManyActive, 429),
    (RateLimited, 429),
    (Forbidden, 403),
    (Unconfirmed, 409),
    (Overloaded, 503),
    (Unavailable, 503),
)


class Actor(ABC):
    """A program that is restarted whenever its process has died."""

    def __init__(self, world: World, name: str, random: Random) -> None:
        self.world = world
        self.name = name
        self.random = random
        self.process = Process(world, name)

    def start(self) -> None:
        self.process = Process(self.world, self.name)
        self.boot()

    @abstractmethod
    def boot(self) -> None:
        """Begin to work in the new ``process``."""

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)


class Api(Actor):
    """An API process."""

    def boot(self) -> None:
        repo = self.process.connect(self.world.repo, database_error)
        self._submission = Submission(
            sessions=repo,
            reads=repo,
            queue=self.process.connect(self.world.queue, queue_error),
            policy=SUBMISSION,
            new_id=self.new_id,
            clock=self.world.clock.now,
            announce_cancel=self.world.announce,
            changes=self.world.changes,
        )
        self.watching = Watching(
            reads=self.process.connect(InMemoryWatchReads(self.world.repo), database_error),
            feed=self.world.changes,
            limits=STREAMS,
            random=self.random,
            clock=self.world.clock.now,
        )
        self.process.run(self._background(self._submission))

    async def _background(self, submission: Submission) -> None:
        while True:
            for duty in (submission.confirm_pushed, submission.measure_queue):
                try:
                    await duty()
                except Unavailable:
                    continue
            await asyncio.sleep(INTERVAL_SECONDS)

    async def submit(self, request_id: str, caller: Caller | Owner, key: str | None) -> None:
        """Send a request, and record the answer that the client gets."""
        caller = caller if isinstance(caller, Caller) else Caller(owner=caller)
        request = a_request(caller=caller, request_id=request_id, idempotency_key=key)

        async def submit() -> Sequence[Receipt]:
            return [await self._submission.submit(request)]

        await self._send([request], submit())

    async def submit_batch(
        self,
        request_id: str,
        caller: Caller | Owner,
        keys: Sequence[str | None],
        batch_key: str | None = None,
    ) -> None:
        """Send a batch with an item for each key, and record the answer to each item. Check that
        no session is the answer to items which are not repetitions of each other."""
        caller = caller if isinstance(caller, Caller) else Caller(owner=caller)
        requests = [
            a_request(
                caller=caller,
                request_id=f"{request_id}-{number}",
                idempotency_key=key or (None if batch_key is None else item_key(batch_key, number)),
            )
            for number, key in enumerate(keys)
        ]
        answers = await self._send(requests, self._submission.submit_many(requests))
        bought: dict[UUID, str | int] = {}
        for number, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            asked = key or (number if batch_key is None else f"{batch_key}/{number}")
            if answer.session_id is not None:
                same = bought.setdefault(answer.session_id, asked) == asked
                self.world.require(same, f"{answer.session_id} is the answer to several items")

    async def _send(
        self,
        requests: Sequence[TryOnRequest],
        outcomes: Coroutine[None, None, Sequence[Receipt | Exception]],
    ) -> Sequence[Answer]:
        """Record the answers, and return them: none if the process is dead."""
        process = self.process
        if not process.alive:
            outcomes.close()
            return [Answer(one.request_id, one.caller.owner, one.stored_key, 0) for one in requests]
        submitting = process.run(outcomes)
        await asyncio.wait({submitting})
        answers: Sequence[Receipt | BaseException | None] = [None] * len(requests)
        if not submitting.cancelled():
            error = submitting.exception()
            answers = submitting.result() if error is None else [error] * len(requests)
        begin = len(self.world.answers)
        for request, answer in zip(requests, answers, strict=True):
            status, session_id = 0, None
            if isinstance(answer, Receipt):
                status, session_id = 202, answer.session.id
                is_its_own = answer.replayed or answer.session.request_id == request.request_id
                self.world.require(is_its_own, f"{request.request_id} is answered {answer}")
            elif isinstance(answer, Exception):
                status = next((code for kind, code in STATUSES if isinstance(answer, kind)), 0)
                if status == 0:
                    raise answer
            if process.has_died():
                status, session_id = 0, None
            self.world.answers.append(
                Answer(
                    request.request_id, request.caller.owner, request.stored_key, status, session_id
                )
            )
        return self.world.answers[begin:]

    async def follow(self, follower: Follower) -> None:
        """Serve the client a stream."""
        process = self.process
        if process.alive:
            await asyncio.wait({process.run(follower.stream(self.watching))})

    async def cancel(self, session: GenerationSession) -> bool:
        """Ask to cancel a session, and check the answer. False if none arrived."""
        process = self.process
        if not process.alive:
            return False
        cancelling = process.run(self._submission.cancel(session.id, session.owner))
        await asyncio.wait({cancelling})
        if cancelling.cancelled() or process.has_died():
            return False
        now = await self.world.repo.get(session.id, None)
        error = cancelling.exception()
        if isinstance(error, Unavailable):
            return False
        if isinstance(error, Conflict):
            self.world.require(now.status.is_final, f"{now.id}: 409, and it is {now.status}")
            return True
        answered = cancelling.result().cancel_requested_at
        is_recorded = answered is not None and answered == now.cancel_requested_at
        self.world.require(is_recorded, f"{now.id}: accepted, and not recorded")
        return True


class StaticFetcher(PictureFetcherPort):
    """Returns the same picture for every URL."""

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:  # noqa: ARG002
        return (A_PICTURE,) * len(urls)


@dataclass(slots=True, kw_only=True)
class Mood:
    """How a provider behaves: jobs take a random time and sometimes fail, in every way that there
    is. With ``steady_seconds``, they all take that time and succeed. Until ``busy_until``, on the
    loop's clock, no job begins."""

    random: Random
    steady_seconds: float | None = None
    busy_until: float = 0.0
    turned_away: int = 0

    def new_job(self) -> ProviderJob:
        """A new job, or an error instead."""
        if loop_time() < self.busy_until:
            self.turned_away += 1
            raise busy(0.0)
        if self.steady_seconds is not None:
            return ProviderJob(loop_time() + self.steady_seconds, has_picture=True)
        match self.random.randrange(10):
            case 0:
                raise busy(self.random.random())
            case 1:
                raise Refused("no")
            case 2:
                raise RuntimeError("a bug of the provider's client")
        seconds = self.random.choice((0.0, 0.1, 1.0, 4.0, 12.0)) * self.random.random()
        return ProviderJob(loop_time() + seconds, has_picture=self.random.random() < 0.9)

    def poll(self) -> None:
        """Raises if a poll fails."""
        if self.steady_seconds is None and self.random.random() < 0.05:
            raise busy(self.random.random())


def busy(retry_after_seconds: float) -> ProviderUnavailable:
    return ProviderUnavailable("busy", retry_after_seconds=retry_after_seconds, cause=BUSY)


class MoodyJobs(Jobs):
    """A process's view of the provider's jobs, which outlive the process."""

    def __init__(self, process: Process, mood: Mood) -> None:
        self._process = process
        self._jobs = process.world.repo.jobs
        self._mood = mood

    async def begin(self, request: PictureRequest) -> str:  # noqa: ARG002
        await self._process.proceed()
        job_id = str(len(self._jobs))
        self._jobs[f"{PROVIDER}:{job_id}"] = self._mood.new_job()
        await asyncio.sleep(self._process.world.fates.pause())
        await self._process.proceed()
        return job_id

    async def poll(self, job_id: str) -> Generated | None:
        await self._process.proceed()
        self._mood.poll()
        job = self._jobs[f"{PROVIDER}:{job_id}"]
        if job.produced_nothing:
            raise JobProducedNothing
        return Generated(picture=A_PICTURE) if job.has_ended else None

    async def cancel(self, job_id: str) -> None:
        await self._process.proceed()
        job = self._jobs[f"{PROVIDER}:{job_id}"]
        job.cancelled = not job.has_ended or job.cancelled


class WorkerProcess(Actor):
    """A worker with recovery beside it."""

    def __init__(self, world: World, name: str, random: Random, mood: Mood, slots: int = 2) -> None:
        super().__init__(world, name, random)
        self._mood = mood
        self._slots = slots

    def boot(self) -> None:
        repo = self.process.connect(self.world.repo, database_error)
        queue = self.process.connect(self.world.queue, queue_error)
        storage = self.process.connect(self.world.storage, storage_error)
        generation = Generation(
            sessions=repo,
            reads=repo,
            attempts=repo,
            queue=queue,
            fetcher=StaticFetcher(),
            generator=JobPictureGenerator(
                MoodyJobs(self.process, self._mood),
                name=PROVIDER,
                limits=JOBS,
                random=self.random,
            ),
            storage=storage,
            policy=WORK,
            random=self.random,
            new_id=self.new_id,
            changes=self.world.changes,
        )
        self.world.listeners[self.name] = generation.check_now
        self.worker = Worker(
            queue=queue,
            generation=generation,
            recovery=Recovery(
                sessions=repo,
                recovery_repo=repo,
                queue=queue,
                storage=storage,
                uploads=self.world.storage,
                tokens=NO_TOKENS,
                webhooks=NO_WEBHOOKS,
                workers=NO_WORKERS,
                policy=RECOVERY,
                new_id=self.new_id,
                clock=self.world.clock.now,
            ),
            limits=WorkerLimits(
                concurrency=self._slots,
                pop_seconds=1.0,
                drain_seconds=5.0,
                recovery_seconds=INTERVAL_SECONDS,
            ),
            random=self.random,
            dispatcher=self._dispatcher(),
        )
        self.process.run(self._work())

    def _dispatcher(self) -> Dispatcher | None:
        webhooks = self.world.webhooks
        return None if webhooks is None else webhooks.dispatcher(self.process, self.random)

    async def _work(self) -> None:
        await self.worker.run()
        self.process.kill()  # It has drained, and is restarted.


class ExternalConsumer(Actor):
    """Pops with plain BRPOP and writes the session's row with SQL. It knows no leases, attempts or
    refunds, and retries nothing."""

    def boot(self) -> None:
        self.process.run(self._consume())

    async def _consume(self) -> None:
        queue = self.process.connect(self.world.queue, queue_error)
        while True:
            try:
                task = await queue.pop(timeout_seconds=1.0)
                if isinstance(task, GenerationTask):
                    await self._work(task.session_id)
            except (Unavailable, IllegalTransition):
                continue

    async def _work(self, session_id: UUID) -> None:
        await self._write(session_id, status=SessionStatus.PROCESSING)
        await asyncio.sleep(self.random.random() * 3)
        chance = self.random.random()
        if chance < 0.1:
            await self._write(session_id, status=SessionStatus.QUEUED)
        elif chance < 0.4:
            if self.random.random() < 0.3:
                self.world.repo.unsound.add(session_id)
            await self._write(session_id, status=SessionStatus.FAILED)
        else:
            await self._write(
                session_id,
                status=SessionStatus.COMPLETED,
                generated_image_url="https://elsewhere.example/",
            )

    async def _write(self, session_id: UUID, **columns: object) -> None:
        async def update() -> None:
            self.world.repo.overwrite(session_id, **columns)
            if self.world.repo.has_failed(session_id):
                self.world.external_failures.add(session_id)

        await self.process.call("UPDATE", update, database_error)


async def keep_alive(actors: Sequence[Actor]) -> None:
    """Restart what has died, a little later."""
    while True:
        for actor in actors:
            if not actor.process.alive:
                actor.start()
        await asyncio.sleep(RESTART_SECONDS)
