"""The worker's process: its settings, signals, logs and event loop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import structlog
import uvloop

from config.closing import close
from config.container import Container
from config.logging import buffer_access_logs, configure_logging, flush_logs
from config.settings import Settings
from domain.dispatch import Dispatcher
from domain.errors import SchemaMismatch, Unavailable
from entrypoints.gc_tuning import freeze_startup_objects
from entrypoints.metrics import Role, serving_metrics, show_known
from entrypoints.worker.dispatching import DispatchLog, session_data
from entrypoints.worker.loop import OneShotWorker, Worker
from entrypoints.worker.recovering import RecoveryLoop
from entrypoints.worker.reporting import Reporting
from entrypoints.worker.stop import Stop
from entrypoints.worker.tasks import WorkerLimits

log = structlog.get_logger(__name__)

SERVICE_NAME = "wearon-worker"
"""Of these processes in traces."""
POP_SECONDS = 1.0
"""How long a pop waits for a task, and so how long an idle worker takes to stop."""
FLUSH_SECONDS = 1.0
"""How long the log line of a finished task may wait in the buffer."""


def run_worker(
    settings: Settings,
    *,
    concurrency: int | None,
    recovery: bool,
    webhooks: bool = True,
    once: bool = False,
) -> bool:
    """Run a worker in this process until it has stopped. Returns what ``Worker.run`` does. Raises
    ``SchemaMismatch`` before any task is taken, and ``SettingsError``."""
    configure_logging(settings)
    container = Container(settings=settings, service_name=SERVICE_NAME)
    if not settings.drain_outlasts_attempt:
        log.warning(
            "drain_shorter_than_attempt",
            drain_seconds=settings.drain_seconds,
            attempt_seconds=settings.attempt_seconds,
        )
    show_known(Role.WORKER)
    with nullcontext() if once else serving_metrics(settings, Role.WORKER):
        return run_on(
            container, concurrency=concurrency, recovery=recovery, webhooks=webhooks, once=once
        )


def run_on(
    container: Container,
    *,
    concurrency: int | None,
    recovery: bool,
    webhooks: bool = True,
    once: bool = False,
) -> bool:
    """Run a worker on the container's adapters, with this process to itself."""
    buffer_access_logs()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_check_schema(container))
        worker = build_worker(
            container, concurrency=concurrency, recovery=recovery, webhooks=webhooks, once=once
        )
        freeze_startup_objects()
        return runner.run(flushing_logs(run_until_signalled(worker, lambda: close(container))))


async def _check_schema(container: Container) -> None:
    """Raises ``SchemaMismatch``: with another schema, no task could be worked on. A database that
    does not answer is waited for later, like at any other time."""
    try:
        if (schema := container.repositories().schema) is not None:
            await schema.check()
    except SchemaMismatch:
        await close(container)
        raise
    except Unavailable as error:
        log.warning("worker_waiting", cause=type(error).__name__, reason=str(error))


def run_recovery(settings: Settings, *, watch: bool) -> bool:
    """Run recovery without a worker: once, or with ``watch`` at its interval until a signal.
    Returns whether everything that was due was done."""
    configure_logging(settings)
    container = Container(settings=settings, service_name=SERVICE_NAME)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_check_schema(container))
        return runner.run(_recover(container, watch=watch))


async def _recover(container: Container, *, watch: bool) -> bool:
    settings = container.settings()
    stop = Stop(drain_seconds=settings.drain_seconds)
    recovery = RecoveryLoop(
        container.recovery(),
        interval_seconds=settings.recovery_seconds,
        random=container.random(),
        stop=stop,
    )
    _stop_on_signals(stop.request)
    work = recovery.run() if watch else recovery.run_once()
    try:
        return await stop.run([asyncio.create_task(work, name="recovery")])
    finally:
        await close(container)


def build_worker(
    container: Container,
    *,
    concurrency: int | None,
    recovery: bool,
    webhooks: bool = True,
    once: bool = False,
) -> Worker:
    """The worker that the settings ask for. A ``concurrency`` overrides theirs. With ``once`` it
    reports only if there is a budget, because the answer says what is left of it."""
    settings, budget = container.settings(), container.budget()
    kind = OneShotWorker if once else Worker
    return kind(
        queue=container.queue(),
        generation=container.generation(),
        recovery=container.recovery() if recovery else None,
        limits=WorkerLimits(
            concurrency=concurrency or settings.worker_concurrency,
            pop_seconds=POP_SECONDS,
            drain_seconds=settings.drain_seconds,
            recovery_seconds=settings.recovery_seconds,
        ),
        random=container.random(),
        start_limit=container.start_limit(),
        dispatcher=build_dispatcher(container) if webhooks else None,
        cancels=None if once else container.cancels(),
        books=container.books() if recovery and not once else None,
        reporting=build_reporting(container) if not once or budget is not None else None,
        budget=budget,
    )


def build_reporting(container: Container) -> Reporting:
    """Where and as what this process reports."""
    return Reporting.of_this_process(
        container.repositories().workers, worker_id=container.new_id()(), clock=container.clock()
    )


def build_dispatcher(container: Container) -> Dispatcher:
    """What delivers webhooks. Its HTTP client opens with the first delivery."""
    return container.new_dispatcher()(session_data=session_data, events=DispatchLog())


async def run_until_signalled(worker: Worker, close: Callable[[], Awaitable[None]]) -> bool:
    """Run ``worker`` until SIGTERM or SIGINT, then ``close``. A second signal ends its grace
    period. Returns what ``Worker.run`` does."""
    _stop_on_signals(worker.stop)
    try:
        return await worker.run()
    finally:
        await close()


def _stop_on_signals(stop: Callable[[], None]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop)


async def flushing_logs(work: Awaitable[bool]) -> bool:
    """Await ``work``, and flush the buffered log lines meanwhile. The line that says that the
    worker has stopped flushes the last ones."""

    async def flush() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            flush_logs()

    flushing = asyncio.create_task(flush())
    try:
        return await work
    finally:
        flushing.cancel()
