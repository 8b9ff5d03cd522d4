"""Mutants of the guards of clients that wait for new states."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from domain.changes import NEVER_READ, Change
from domain.errors import DatabaseUnavailable
from domain.sessions import GenerationSession
from domain.watches import Watch
from domain.watching import ROUND_SECONDS, Watching
from tests.simulation.replacing import Mutant, instead


def nothing_is_read_after_a_break() -> AbstractContextManager[None]:
    """What was published while the feed was broken is left to the rounds."""
    hear = Watching._hear

    def heedless(self: Watching, changes: Sequence[Change]) -> None:
        if changes:
            hear(self, changes)

    return instead((Watching, "_hear", heedless))


def rounds_read_no_session() -> AbstractContextManager[None]:
    """A change that is not published is not told."""

    async def go_round(self: Watching) -> None:
        with suppress(DatabaseUnavailable):
            await self._find_new()
        self._wake_due(asyncio.get_running_loop().time())
        await asyncio.sleep(ROUND_SECONDS)

    return instead((Watching, "_go_round", go_round))


def rounds_find_no_new_session() -> AbstractContextManager[None]:
    """A stream of all an owner's sessions learns of new ones only if a change is published."""

    async def find_new(_: Watching) -> None:
        return

    return instead((Watching, "_find_new", find_new))


def what_is_skipped_is_not_followed() -> AbstractContextManager[None]:
    """A stream of all an owner's sessions forgets those that were unfinished when it began."""
    skip_current = Watching._skip_current

    async def skip(self: Watching, watch: Watch) -> None:
        await skip_current(self, watch)
        for session_id in tuple(self._sessions):
            self._unfollow(watch, session_id)

    return instead((Watching, "_skip_current", skip))


def a_failed_read_is_not_repeated() -> AbstractContextManager[None]:
    """A read that fails loses its sessions: no round, and no later change, reads them."""
    fail_unread = Watching._fail_unread

    def forget(self: Watching, session_ids: Any, error: Exception) -> None:
        session_ids = list(session_ids)
        fail_unread(self, session_ids, error)
        for session_id in session_ids:
            self._sessions.pop(session_id, None)

    return instead((Watching, "_fail_unread", forget))


def streams_go_backwards() -> AbstractContextManager[None]:
    """A state is told whatever the client has: a read that was overtaken, or a repeated one."""
    offer = Watch.offer

    def any_state(self: Watch, session: GenerationSession) -> None:
        self._revisions[session.id] = NEVER_READ
        offer(self, session)

    return instead((Watch, "offer", any_state))


def everybody_may_see_a_session() -> AbstractContextManager[None]:
    """Another owner's sessions are told to who names them."""
    return instead((Watch, "may_see", lambda *_: True))


def the_end_is_not_told() -> AbstractContextManager[None]:
    """A stream goes on after the last state of its last session."""
    return instead((Watch, "is_over", False))


WATCH_MUTANTS: Sequence[Mutant] = (
    nothing_is_read_after_a_break,
    rounds_read_no_session,
    rounds_find_no_new_session,
    what_is_skipped_is_not_followed,
    a_failed_read_is_not_repeated,
    streams_go_backwards,
    everybody_may_see_a_session,
    the_end_is_not_told,
)
