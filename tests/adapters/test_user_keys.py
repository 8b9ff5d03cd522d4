"""UserKeys: rotation, floods, outages and readiness; and which keys of a set are used."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from adapters.auth.jwks import MAX_KEYS, parse_key_set
from adapters.auth.jwks_client import Fetched
from adapters.auth.user_keys import REFETCH_SECONDS, KeyRules, UserKeys
from domain.errors import UserKeysUnavailable
from tests.support.tokens import ALGORITHMS, FakeProvider, es256, key_set, rs256

pytestmark = pytest.mark.anyio

OLD, NEW = es256("old").named("old"), es256("new").named("new")
KEEP = 1_000.0


class Keys:
    """``UserKeys`` with their provider and their clock."""

    def __init__(self, *published: object) -> None:
        self.time = 100.0
        self.provider = FakeProvider(*published)
        self.keys = UserKeys(
            self.provider,
            KeyRules(algorithms=ALGORITHMS, keep_seconds=KEEP),
            clock=lambda: self.time,
        )

    async def knows(self, kid: str) -> bool:
        return await self.keys.find(kid=kid, algorithm="ES256") is not None

    async def fetch(self) -> None:
        await self.keys._started_fetch()

    async def is_ready(self) -> bool:
        try:
            await self.keys.check()
        except UserKeysUnavailable:
            return False
        return True


async def test_new_key_is_accepted_after_one_fetch() -> None:
    """A key that the provider added since the last fetch."""
    keys = Keys(OLD)
    await keys.knows("old")
    keys.provider.publish(OLD, NEW)
    keys.time += REFETCH_SECONDS

    assert await keys.knows("new")
    assert keys.provider.fetches == 2


async def test_removed_key_is_gone_with_the_next_fetch() -> None:
    """Not before, because nobody told us; and a key of the same id with other numbers is another
    one."""
    keys = Keys(OLD)
    old = await keys.keys.find(kid="old", algorithm="ES256")
    assert old is not None
    held = [keys.keys.holds(old)]
    for published in (OLD, es256("x").named("old"), OLD, NEW):
        keys.provider.publish(published)
        held.append(keys.keys.holds(old))
        await keys.fetch()
        held.append(keys.keys.holds(old))

    assert held == [True, True, True, True, False, False, True, True, False]


async def test_flood_of_unknown_keys_causes_one_fetch() -> None:
    """For all callers together, and again only after the pause; each of them is answered."""
    keys = Keys(OLD)
    answers = await asyncio.gather(*(keys.knows(f"unknown {number}") for number in range(500)))
    first = keys.provider.fetches
    keys.time += REFETCH_SECONDS - 0.1
    answers += await asyncio.gather(*(keys.knows(f"other {number}") for number in range(500)))
    within_the_pause = keys.provider.fetches
    keys.time += 0.1
    answers += await asyncio.gather(*(keys.knows(f"last {number}") for number in range(500)))

    assert answers == [False] * 1_500
    assert (first, within_the_pause, keys.provider.fetches) == (1, 1, 2)


async def test_known_key_causes_no_fetch() -> None:
    """Even long after the last one: that is the task of ``run``."""
    keys = Keys(OLD)
    await keys.knows("old")
    keys.time += KEEP - 1

    assert await keys.knows("old")
    assert keys.provider.fetches == 1


async def test_cancelled_caller_cancels_no_fetch() -> None:
    """Others may wait for it."""
    keys = Keys(OLD)
    leaving = asyncio.create_task(keys.knows("old"))
    staying = asyncio.create_task(keys.knows("old"))
    await asyncio.sleep(0)

    leaving.cancel()

    assert await staying
    assert keys.provider.fetches == 1


async def test_unknown_key_during_an_outage_is_no_rejection() -> None:
    """The key may be a new one, so the caller should try again: 503, and no 401."""
    keys = Keys(OLD)
    await keys.knows("old")
    keys.provider.problem = "status 500"
    keys.time += REFETCH_SECONDS

    for _ in range(2):
        with pytest.raises(UserKeysUnavailable) as unavailable:
            await keys.knows("new")
        assert str(unavailable.value.cause) == "user keys status 500"
    assert await keys.knows("old")
    assert keys.provider.fetches == 2


async def test_keys_are_kept_for_a_bounded_time() -> None:
    """While they cannot be fetched; after that they are neither accepted nor ready."""
    keys = Keys(OLD)
    old = await keys.keys.find(kid="old", algorithm="ES256")
    assert old is not None
    keys.provider.problem = "status 500"
    keys.time += KEEP
    at_the_end = (keys.keys.holds(old), await keys.knows("old"), await keys.is_ready())
    keys.time += 0.1

    assert at_the_end == (True, True, True)
    assert not keys.keys.holds(old)
    assert not await keys.is_ready()
    with pytest.raises(UserKeysUnavailable):
        await keys.knows("old")


async def test_readiness() -> None:
    """Not before a key was loaded, and not with a set that has none."""
    keys = Keys()
    keys.provider.problem = "status 500"
    ready = [await keys.is_ready()]
    await keys.fetch()
    ready.append(await keys.is_ready())
    keys.provider.problem = None
    await keys.fetch()
    ready.append(await keys.is_ready())
    keys.provider.publish(OLD)
    await keys.fetch()
    ready.append(await keys.is_ready())
    keys.provider.problem = "status 500"
    await keys.fetch()
    ready.append(await keys.is_ready())

    assert ready == [False, False, False, True, True]


async def test_each_change_is_logged_once() -> None:
    """The first success, each new reason for a failure, the end of an outage, and other keys."""
    keys = Keys(OLD)
    with capture_logs() as logs:
        for problem in (None, None, "status 500", "status 500", "cut off", None, None):
            keys.provider.problem = problem
            await keys.fetch()
        keys.provider.publish(NEW, {"kty": "oct"})
        await keys.fetch()
        await keys.fetch()

    told = [log.get("kids") or log.get("cause") or log.get("reasons") for log in logs]
    assert told == [
        ["old"],
        "user keys status 500",
        "user keys cut off",
        ["old"],
        ["new"],
        ["key 2: its type is not supported: oct"],
    ]
    assert [log["log_level"] for log in logs] == [
        "info", "warning", "warning", "info", "info", "warning",
    ]  # fmt: skip


async def test_unexpected_error_ends_nothing() -> None:
    """It is logged with its traceback, and the next fetch is tried."""

    async def crashes() -> Fetched:
        raise RuntimeError("a bug")

    keys = UserKeys(crashes, KeyRules(algorithms=ALGORITHMS))
    with capture_logs() as logs, pytest.raises(UserKeysUnavailable):
        await keys.find(kid="old", algorithm="ES256")

    assert [log["event"] for log in logs] == ["user_keys_crashed", "user_keys_not_fetched"]


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    """They are cancelled at the end."""
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_keys_are_fetched_in_the_background(tasks: list[asyncio.Task[None]]) -> None:
    """Again and again, without any caller, also after a failure."""
    provider = FakeProvider(OLD)
    provider.problem = "status 500"
    keys = UserKeys(provider, KeyRules(algorithms=ALGORITHMS, refresh_seconds=0.001))
    tasks.append(asyncio.create_task(keys.run()))

    await until(lambda: provider.fetches >= 3)
    provider.problem = None
    await until(lambda: bool(keys._usable.keys))
    provider.publish(NEW)
    await until(lambda: keys._usable.find(kid="new", algorithm="ES256") is not None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("max_age", "failures", "pause"),
    [
        (None, 0, 300),
        (60, 0, 60),
        (0, 0, 10),
        (86_400, 0, 300),
        (60, 1, 5),
        (60, 2, 10),
        (60, 3, 20),
        (60, 5, 60),
        (60, 5_000, 60),
    ],
)
async def test_pause_between_fetches(max_age: int | None, failures: int, pause: float) -> None:
    """The setting's, or a shorter ``max-age`` within bounds; after failures a growing one."""
    keys = UserKeys(FakeProvider(OLD), KeyRules(algorithms=ALGORITHMS, refresh_seconds=300))

    keys._max_age, keys._failures = max_age, failures

    assert keys._pause() == pause


async def test_max_age_is_that_of_the_last_answer() -> None:
    """A shorter one is respected from its answer on."""
    keys = Keys(OLD)
    keys.provider.max_age = 30
    await keys.fetch()
    before = keys.keys._pause()
    keys.provider.max_age = None
    await keys.fetch()

    assert (before, keys.keys._pause()) == (30, 300)


ES, RSA = es256("es"), rs256("rsa")
UNUSABLE = {
    "no object": ([], "Expected `object`, got `array`"),
    "no type": ({"kid": "x"}, "Object missing required field `kty`"),
    "unknown type": ({"kty": "AKP"}, "its type is not supported: AKP"),
    "kid a number": (ES.jwk | {"kid": 1}, "Expected `str | null`, got `int` - at `$.kid`"),
    "kid too long": (ES.named("k" * 257), "its kid is too long"),
    "for encryption": (ES.named("x", use="enc"), "it is not for signatures (use)"),
    "only signs": (ES.named("x", key_ops=["sign"]), "it is not for verification (key_ops)"),
    "other algorithm": (RSA.named("x", alg="RS512"), "its algorithm (alg) is not that of its type"),
    "symmetric": ({"kty": "oct", "k": "AAAA"}, "its type is not supported: oct"),
    "other curve": (
        ES.named("x", crv="secp256k1"),
        "its type is not supported: EC secp256k1",
    ),
    "number missing": (ES.named("x", y=None), "its numbers are not valid"),
    "number cut": (ES.named("x", x=ES.jwk["x"][:-4]), "its numbers are not valid"),
    "number no base64": (ES.named("x", x="!"), "its numbers are not valid"),
    "not on the curve": (ES.named("x", y=ES.jwk["x"]), "its numbers are not valid"),
    "RSA of 1024 bits": (
        rs256("small", 1_024).named("x"),
        "RSA keys must have 2048 to 8192 bits",
    ),
    "RSA with an even exponent": (RSA.named("x", e="Ag"), "its numbers are not valid"),
}


@pytest.mark.parametrize(("key", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_key_is_ignored(key: object, reason: str) -> None:
    """With a reason for the log; the other keys of the set are used."""
    found = parse_key_set(key_set(key, OLD), algorithms=ALGORITHMS)

    assert [each.kid for each in found.keys] == ["old"]
    assert found.ignored == (f"key 1: {reason}",)


def test_private_members_are_not_read() -> None:
    """A provider that publishes a private key by mistake gives us no means to sign."""
    leaked = OLD | {"d": "AAAA", "k": "AAAA", "p": "AAAA"}

    assert parse_key_set(key_set(leaked), algorithms=ALGORITHMS) == parse_key_set(
        key_set(OLD), algorithms=ALGORITHMS
    )


def test_first_key_of_an_id_is_used() -> None:
    """Keys without an id are no duplicates."""
    nameless = [es256("a").named(None), es256("b").named(None)]
    found = parse_key_set(key_set(OLD, NEW | {"kid": "old"}, *nameless), algorithms=ALGORITHMS)

    assert [key.kid for key in found.keys] == ["old", None, None]
    assert found.find(kid="old", algorithm="ES256") == found.keys[0]
    assert found.ignored == ("key 2: an earlier key has its kid",)


def test_algorithms_are_those_of_the_settings() -> None:
    """A key for another one is ignored."""
    found = parse_key_set(key_set(OLD, RSA.named("rsa")), algorithms=("RS256",))

    assert [key.algorithm for key in found.keys] == ["RS256"]
    assert found.ignored == ("key 1: ES256 is not an accepted algorithm",)


def test_number_of_keys_is_bounded() -> None:
    """The first ones are used."""
    keys = [OLD | {"kid": str(number)} for number in range(MAX_KEYS + 3)]

    found = parse_key_set(key_set(*keys), algorithms=ALGORITHMS)

    assert len(found.keys) == MAX_KEYS
    assert found.ignored == (f"3 keys after the first {MAX_KEYS}",)
