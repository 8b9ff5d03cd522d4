"""``python -m tests.soak TASKS``: that many tasks through a real API and a real worker."""

import asyncio
import sys

from tests.soak.run import run

if __name__ == "__main__":
    report = asyncio.run(run(tasks=int(sys.argv[1])))
    print(report)  # noqa: T201
    sys.exit(1 if report.violations else 0)
