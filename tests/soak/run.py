"""A run: many tasks through an API, one worker, a fake provider and a picture server."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from statistics import linear_regression

from aiohttp import ClientSession, ClientTimeout, web

from tests.support import servers
from tests.support.images import encoded
from tests.support.processes import children, resident_kb
from tests.support.provider import KEY, FakeProvider, edited, provider, says
from tests.system.deployment import STORE_ID, Deployment, eventually, free_port, kill

CONCURRENCY = 8
MAX_ACTIVE = 100
"""How many sessions may be active at a time."""
GRANTED = 100
"""Credits that the store has from the beginning."""
WARM_UP = 500
JUNK_SHARE = 0.1
"""The share of submissions whose picture is junk, so that their sessions fail."""
JUNK_BYTES = 1_000_000
LOOK_SECONDS = 0.5
SAY_SECONDS = 10.0
STALL_SECONDS = 60.0
"""After this time without a session that becomes final, the rest counts as lost."""
FINAL = ("completed", "failed")
GENERATIONS = "/api/v1/generations"
SETTINGS = {
    "WEARON_GENERATOR": "openai",
    "OPENAI_API_KEY": KEY,
    "WEARON_LEASE_SECONDS": "30",
    "WEARON_RECOVERY_SECONDS": "2",
    "WEARON_REQUEUE_AFTER_SECONDS": "15",
    "WEARON_PROVIDER_PER_MINUTE": "100000",
}
"""The defaults again, instead of the short times of the system tests; except for the provider's
limit, which is never reached."""
CRASHES = ("_crashed", "unexpected_error", "Traceback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Resident memory when ``final`` sessions were final: the worker's, and the sum over the child
    processes that decode its pictures."""

    seconds: float
    final: int
    worker_kb: int
    children_kb: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:7.1f} s, {self.final:6d} final:"
            f" worker {self.worker_kb:7d} kB, its processes {self.children_kb:7d} kB"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened."""

    submitted: int
    sessions: Counter[str]
    lost: int
    samples: Sequence[Sample]
    violations: Sequence[str]

    def __str__(self) -> str:
        warm = self.warm()
        shown = {
            "start": next((sample for sample in self.samples if sample.final), warm[0]),
            "after warm-up": warm[0],
            "middle": warm[len(warm) // 2],
            "end": warm[-1],
        }
        ended = {status: self.sessions[status] for status in FINAL}
        lines = [f"{name:14s}{sample}" for name, sample in shown.items()]
        lines += [
            f"slope after warm-up, per 1,000 tasks: worker {self.slope('worker_kb'):+.0f} kB,"
            f" its processes {self.slope('children_kb'):+.0f} kB",
            f"tasks: submitted {self.submitted},"
            f" {', '.join(f'{status} {count}' for status, count in ended.items())},"
            f" lost {self.lost}; {shown['end'].final / shown['end'].seconds:.1f} per second",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*lines, *self.violations])

    def warm(self) -> Sequence[Sample]:
        """The samples after the warm-up; of a short run, those of its second half."""
        begin = min(WARM_UP, self.submitted // 2)
        return [sample for sample in self.samples if sample.final >= begin] or self.samples[-1:]

    def slope(self, what: str) -> float:
        """Kilobytes gained per thousand tasks after the warm-up, by least squares."""
        warm = self.warm()
        done = [sample.final / 1_000 for sample in warm]
        if len(set(done)) < 2:
            return 0.0
        return linear_regression(done, [getattr(sample, what) for sample in warm]).slope


async def run(*, tasks: int) -> Report:
    """Submit ``tasks`` to the API and wait until all are final, or none becomes final any more."""
    async with AsyncExitStack() as stack:
        fake = await _provider(stack, tasks)
        pictures_url = await stack.enter_async_context(_pictures())
        deployment = Deployment(stack.enter_context(servers.folder()))
        stack.callback(deployment.close)
        # Not in a thread: a process dies with the thread that starts it.
        deployment.start_servers()
        deployment.prepare(WEARON_OPENAI_BASE_URL=fake.url, **SETTINGS)
        if tasks > GRANTED:
            deployment.wearon("credits", "grant", "--store", STORE_ID, str(tasks - GRANTED))
        deployment.start("serve")
        await asyncio.to_thread(eventually, lambda: deployment.get("/health/ready").status == 200)
        return await _Soak(deployment, fake, pictures_url, tasks).run()


async def _provider(stack: AsyncExitStack, tasks: int) -> FakeProvider:
    """A provider with prepared answers, so that most of the time is the worker's."""
    fake = await stack.enter_async_context(provider())
    picture = json.dumps(edited("jpeg"))
    fake.replies = [says(200, picture)] * (2 * tasks)
    return fake


class _Soak:
    def __init__(
        self, deployment: Deployment, fake: FakeProvider, pictures_url: str, tasks: int
    ) -> None:
        self._deployment = deployment
        self._fake = fake
        self._pictures_url = pictures_url
        self._tasks = tasks
        self._samples: list[Sample] = []
        self._accepted = 0
        self._junk = 0
        self._refused: Counter[int] = Counter()
        self._random = Random(1)

    async def run(self) -> Report:
        worker = self._deployment.start("worker", "--concurrency", str(CONCURRENCY))
        headers = {"Authorization": f"Bearer {self._deployment.tokens['b2b']}"}
        timeout = ClientTimeout(total=30)
        async with ClientSession(self._deployment.url, headers=headers, timeout=timeout) as client:
            await self._work(client, worker.pid)
        violations = [
            f"the API answered {status}, {n} times" for status, n in self._refused.items()
        ]
        if worker.poll() is not None:
            violations.append("the worker ended by itself")
        exit_code = await asyncio.to_thread(kill, worker, signal.SIGTERM)
        if exit_code != 0:
            violations.append(f"the worker ended with exit code {exit_code}")
        return await asyncio.to_thread(self._audited, violations)

    async def _work(self, client: ClientSession, worker_pid: int) -> None:
        began = said = moved = time.monotonic()
        while True:
            async with client.get(f"{GENERATIONS}/stats") as answer:
                stats = (await answer.json())["data"]
            now = time.monotonic()
            final = sum(stats[status] for status in FINAL)
            if not self._samples or final > self._samples[-1].final:
                moved = now
            self._samples.append(_sample(now - began, final, worker_pid))
            self._fake.calls.clear()
            if now - said > SAY_SECONDS:
                said = now
                print(self._samples[-1], flush=True)  # noqa: T201
            if final >= self._tasks or now - moved > STALL_SECONDS:
                return
            wanted = min(self._tasks - self._accepted, MAX_ACTIVE - stats["active"])
            await asyncio.gather(*[self._submit(client) for _ in range(wanted)])
            await asyncio.sleep(LOOK_SECONDS)

    async def _submit(self, client: ClientSession) -> None:
        """Submit a picture, sometimes with an outfit, or junk."""
        is_junk = self._random.random() < JUNK_SHARE
        name = "junk" if is_junk else "model"
        body = {"model_image_url": f"{self._pictures_url}/{name}.png?{self._accepted}"}
        if self._random.random() < 0.2:
            body["outfit_image_url"] = f"{self._pictures_url}/model.png"
        async with client.post(GENERATIONS, json=body) as answer:
            if answer.status == 202:
                self._accepted += 1
                self._junk += is_junk
            else:
                self._refused[answer.status] += 1

    def _audited(self, violations: list[str]) -> Report:
        """The report, from the database's content."""
        rows = self._deployment.sql(
            "SELECT status, count(*) FROM generation_sessions GROUP BY status"
        )
        sessions = Counter({row["status"]: row["count"] for row in rows})
        lost = self._accepted - sum(sessions[status] for status in FINAL)
        redis = self._deployment.redis()
        waiting = redis.llen("wearon:tasks:generation")
        redis.close()
        verified = self._deployment.wearon("credits", "verify", check=False)
        if self._accepted < self._tasks:
            violations.append(f"submitted {self._accepted} of {self._tasks}")
        if lost:
            violations.append(f"{lost} tasks lost; sessions: {dict(sessions)}")
        if sessions["failed"] != self._junk:
            violations.append(f"{sessions['failed']} sessions failed, not {self._junk}")
        if waiting:
            violations.append(f"{waiting} tasks are still in the queue")
        if verified.returncode != 0:
            violations.append(verified.stdout + verified.stderr)
        return Report(
            submitted=self._accepted,
            sessions=sessions,
            lost=lost,
            samples=self._samples,
            violations=[*violations, *self._crashes()],
        )

    def _crashes(self) -> list[str]:
        """The lines of the worker's log that show unexpected errors."""
        log = (self._deployment.folder / "worker.log").read_text(errors="replace")
        return [line for line in log.splitlines() if any(word in line for word in CRASHES)]


def _sample(seconds: float, final: int, pid: int) -> Sample:
    return Sample(
        seconds=seconds,
        final=final,
        worker_kb=resident_kb(pid),
        children_kb=sum(resident_kb(child) for child in children(pid)),
    )


@asynccontextmanager
async def _pictures() -> AsyncIterator[str]:
    """The URL of a server of ``model.png``, a small picture, and ``junk.png``, which is not one."""
    files = {"model": encoded("PNG", size=(192, 256)), "junk": bytes(JUNK_BYTES)}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=files[request.match_info["name"]], content_type="image/png")

    app = web.Application()
    app.router.add_get("/{name:model|junk}.png", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
