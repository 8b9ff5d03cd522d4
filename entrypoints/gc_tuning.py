"""The garbage collector of a long-lived process."""

import gc

COLLECT_EVERY = 50_000
"""New objects between two collections: those of a few hundred requests or tasks."""


def freeze_startup_objects() -> None:
    """Exclude the current objects from collections, and collect the others rarely. The objects made
    at startup stay until the end; scanning them again and again would pause the process for tens of
    milliseconds each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 100)
