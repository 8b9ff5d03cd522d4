"""The worker: takes tasks from the queue, works on them, and runs recovery beside them.

``loop`` is what runs, ``tasks`` what each of its slots does, ``recovering`` what runs beside them,
``stop`` how it all ends, and ``process`` the program around it.
"""

from entrypoints.worker.loop import OneShotWorker, Worker
from entrypoints.worker.process import (
    build_worker,
    run_on,
    run_recovery,
    run_until_signalled,
    run_worker,
)
from entrypoints.worker.tasks import WorkerLimits

__all__ = [
    "OneShotWorker",
    "Worker",
    "WorkerLimits",
    "build_worker",
    "run_on",
    "run_recovery",
    "run_until_signalled",
    "run_worker",
]
