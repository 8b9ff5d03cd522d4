"""``python -m tests.chaos SECONDS SEED [--kills]``: faults for that many seconds, chosen by that
seed; with ``--kills`` only kills, and more of them."""

import asyncio
import signal
import sys

from tests.chaos.run import Report, run


async def main(seconds: float, seed: int, *, only_kills: bool) -> Report:
    """Run until the end, Ctrl-C or SIGTERM; no process is left running."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(seconds=seconds, seed=seed, only_kills=only_kills)


if __name__ == "__main__":
    only_kills = "--kills" in sys.argv[3:]
    report = asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), only_kills=only_kills))
    print(report)  # noqa: T201
    sys.exit(1 if report.violations else 0)
