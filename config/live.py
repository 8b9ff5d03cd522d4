"""Builds what tells waiting clients of new states."""

from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import assert_never

from adapters.changes.memory import InMemoryChanges
from adapters.changes.redis import CANCELLED, CHANGED, RedisChanges
from config import options, policies
from config.closing import Opened, closing
from config.services import Changes
from config.settings import Settings
from domain.changes import ChangeFeedPort, WatchReadPort
from domain.watching import Watching


def changes(settings: Settings, *, opened: Opened, channel: str = CHANGED) -> Changes:
    match settings.queue:
        case options.Queue.REDIS:
            return closing(opened, RedisChanges(**policies.redis(settings), channel=channel))
        case options.Queue.MEMORY:
            return InMemoryChanges()
        case unknown:
            assert_never(unknown)


def cancels(settings: Settings, *, opened: Opened) -> Changes:
    """The sessions whose cancellation was requested while they are processed."""
    return changes(settings, opened=opened, channel=CANCELLED)


def watching(
    settings: Settings,
    *,
    reads: WatchReadPort,
    feed: ChangeFeedPort,
    random: Random,
    clock: Callable[[], datetime],
) -> Watching:
    limits = policies.streams(settings)
    return Watching(reads=reads, feed=feed, limits=limits, random=random, clock=clock)
