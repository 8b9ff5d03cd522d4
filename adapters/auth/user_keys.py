"""The identity provider's current keys, fetched in the background."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

import structlog

from adapters.auth.jwks import InvalidKeySet, KeySet, SigningKey, parse_key_set
from adapters.auth.jwks_client import Fetched, FetchFailed
from domain.causes import Cause, CauseKind
from domain.errors import UserKeysUnavailable

REFETCH_SECONDS = 5.0
"""Unknown keys cause at most one fetch in this time, however many callers send them."""
WAIT_SECONDS = 3.0
"""How long a caller waits for the fetch that its key caused."""
MIN_REFRESH_SECONDS = 10.0
"""A ``max-age`` below this is raised to it."""

_RETRY_SECONDS = 5.0
_MAX_RETRY_SECONDS = 60.0
_NOT_FETCHED = "not fetched yet"
_NONE = KeySet()

log = structlog.get_logger(__name__)

Fetch: TypeAlias = Callable[[], Awaitable[Fetched]]
"""Raises ``FetchFailed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """``refresh_seconds`` is the pause between fetches, unless the answer's ``max-age`` is shorter.
    While fetches fail, the last keys are used for ``keep_seconds``."""

    algorithms: Collection[str]
    refresh_seconds: float = 300.0
    keep_seconds: float = 86_400.0


class UserKeys:
    """The keys of one process. ``run`` fetches them; a key that the latest answer no longer has is
    gone at once."""

    def __init__(
        self, fetch: Fetch, rules: KeyRules, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._fetch = fetch
        self._rules = rules
        self._clock = clock
        self._set = _NONE
        self._fetched_at = 0.0
        self._max_age: float | None = None
        # Why the last fetch failed; None after a success.
        self._problem: str | None = _NOT_FETCHED
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None
        self._refetch_at = 0.0

    @property
    def algorithms(self) -> Collection[str]:
        return self._rules.algorithms

    async def find(self, *, kid: str | None, algorithm: str) -> SigningKey | None:
        """The key with the id ``kid``, or without an id the only one for ``algorithm``. An unknown
        one causes a fetch, if the last one is long enough ago.

        Raises ``UserKeysUnavailable`` if the key is unknown and the keys cannot be fetched: it may
        be a new one.
        """
        key = self._usable.find(kid=kid, algorithm=algorithm)
        if key is None:
            await self._refetch()
            key = self._usable.find(kid=kid, algorithm=algorithm)
        if key is None and (problem := self._uncertainty) is not None:
            raise _unavailable(problem)
        return key

    def holds(self, key: SigningKey) -> bool:
        """Whether tokens that ``key`` signed are still accepted."""
        return key in self._usable.keys

    async def check(self) -> None:
        """Raises ``UserKeysUnavailable`` if no key is usable: none was ever loaded, the kept ones
        are too old, or the set is empty."""
        if not self._usable.keys:
            raise _unavailable(self._problem or "the key set has no usable key")

    async def run(self) -> None:
        """Fetch the keys again and again, until cancelled."""
        while True:
            await asyncio.wait({self._started_fetch()})
            await asyncio.sleep(self._pause())

    async def close(self) -> None:
        """Cancel the fetch in flight."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    @property
    def _usable(self) -> KeySet:
        is_too_old = self._clock() - self._fetched_at > self._rules.keep_seconds
        return _NONE if is_too_old else self._set

    @property
    def _uncertainty(self) -> str | None:
        """Why an unknown key may exist nevertheless."""
        return self._problem or (None if self._fetching is None else "the fetch takes long")

    async def _refetch(self) -> None:
        """Wait for the fetch in flight, or for a new one if that is allowed."""
        if self._fetching is not None or self._clock() >= self._refetch_at:
            await asyncio.wait({self._started_fetch()}, timeout=WAIT_SECONDS)

    def _started_fetch(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_once())
        return self._fetching

    async def _fetch_once(self) -> None:
        try:
            fetched = await self._fetch()
            self._accept(parse_key_set(fetched.body, algorithms=self._rules.algorithms), fetched)
        except (FetchFailed, InvalidKeySet) as error:
            self._keep(str(error))
        except Exception as error:
            log.exception("user_keys_crashed")
            self._keep(type(error).__name__)
        finally:
            self._fetching = None
            self._refetch_at = self._clock() + REFETCH_SECONDS

    def _accept(self, found: KeySet, fetched: Fetched) -> None:
        if self._problem is not None or found != self._set:
            kids = [str(key.kid)[:40] for key in found.keys]
            log.info("user_keys_loaded", kids=kids)
        if found.ignored and found.ignored != self._set.ignored:
            log.warning("user_keys_ignored", reasons=list(found.ignored))
        self._set, self._fetched_at = found, self._clock()
        self._max_age = fetched.max_age_seconds
        self._problem, self._failures = None, 0

    def _keep(self, problem: str) -> None:
        """The last keys stay in use. Repeated failures of one kind are logged once."""
        if problem != self._problem:
            log.warning("user_keys_not_fetched", cause=str(Cause(CauseKind.USER_KEYS, problem)))
        self._problem = problem
        self._failures += 1

    def _pause(self) -> float:
        refresh = self._rules.refresh_seconds
        if self._failures:
            # The exponent is bounded, and its cap is reached long before that.
            retry: float = _RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
            return min(retry, _MAX_RETRY_SECONDS, refresh)
        if self._max_age is None:
            return refresh
        return min(refresh, max(self._max_age, MIN_REFRESH_SECONDS))


def _unavailable(problem: str) -> UserKeysUnavailable:
    cause = Cause(CauseKind.USER_KEYS, problem)
    return UserKeysUnavailable("The keys of users' tokens are not available", cause=cause)
