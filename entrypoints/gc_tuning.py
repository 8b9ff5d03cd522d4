"""What a long-lived process asks of the garbage collector."""

import gc

COLLECT_EVERY = 50_000
"""Objects that may pile up before the garbage collector looks at them: those of some hundred
requests or tasks."""


def freeze_startup_objects() -> None:
    """Have the garbage collector look at what requests and tasks make, and seldom. What is there
    now stays to the end; to look through all of it again and again would stop everybody for tens of
    milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 100)
