"""``python -m tests.chaos.worker worker``: the ``wearon worker`` of this environment. It counts in
a file, which outlives a kill, and has short turns at webhook endpoints: after a kill, an endpoint
waits for the lease of the turn that was cut off, and with the lease of production, each run would
end with a minute of waiting."""

import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from config.cells import OWN_CELLS
from config.container import Container, replace
from config.loading import load_settings
from config.logging import configure_logging
from domain.dispatch import DispatchPolicy
from entrypoints.metrics import Role, show_known
from entrypoints.worker.process import run_on

POLICY = DispatchPolicy(lease=timedelta(seconds=12))
"""The lease is longer than ``SendLimits.seconds``."""


def main() -> int:
    settings = load_settings(os.environ)
    configure_logging(settings)
    OWN_CELLS.share(Path(gettempdir()))
    show_known(Role.WORKER)
    container = Container(settings=settings)
    new_dispatcher = partial(container.new_dispatcher(), policy=POLICY)
    replace(container.new_dispatcher, new_dispatcher)
    return 0 if run_on(container, concurrency=None, recovery=True) else 1


if __name__ == "__main__":
    sys.exit(main())
