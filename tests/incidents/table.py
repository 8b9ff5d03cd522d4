"""The incidents of a night: how each is provoked and ended, and what must then name its cause."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from domain.alarms import AlarmCode
from tests.incidents.night import PATIENCE_SECONDS, Night
from tests.support.provider import Reply, error, hangs, says
from tests.system.deployment import USER_ID, eventually

QUEUE = "wearon:tasks:generation"
SESSIONS = 6
"""More than have to fail in a row until a circuit opens."""
ALL_NIGHT = 1_000
"""More calls than the provider gets in a night."""
DISK_BYTES = 16_777_216


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The sentence that named the cause, and the command's exit code."""

    sentence: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """The block of ``provoke`` begins when the cause is there, and ends with the cause's end.
    ``look`` is asked again and again until a command names the cause. ``settings`` are the
    workers'."""

    name: str
    provoke: Callable[[Night], AbstractContextManager[None]]
    look: Callable[[Night], Sighting | None]
    code: AlarmCode | None
    """The alarm that the console must show as well; None if there is none."""
    settings: Mapping[str, str] = field(default_factory=dict)
    calm_seconds: float = 60.0
    """After the cause's end, no alarm may be left after this."""
    needs_mount: bool = False


def alarm(code: AlarmCode, *words: str) -> Callable[[Night], Sighting | None]:
    """``wearon status`` shows the alarm, and its sentence has all ``words``."""

    def look(night: Night) -> Sighting | None:
        shown = night.status()
        for each in shown.report["alarms"]:
            if each["code"] == code and all(word in each["sentence"] for word in words):
                return Sighting(sentence=each["sentence"], exit_code=shown.exit_code)
        return None

    return look


def lost_leases(night: Night) -> Sighting | None:
    """``wearon status`` counts the attempts that ended with their worker and has the dead letter of
    their session, whose page names the cause of each attempt."""
    shown = night.status()
    causes: dict[str, int] = shown.snapshot.get("recent_causes", {})
    cause = next((each for each in causes if each.startswith("lost lease ")), None)
    if cause is None or AlarmCode.DEAD_LETTERS not in shown.codes:
        return None
    page = night.deployment.wearon("sessions", "show", night.noted["session"]).stdout
    assert page.count(f": {cause}") == causes[cause], page
    sentence = shown.report["alarms"][shown.codes.index(AlarmCode.DEAD_LETTERS)]["sentence"]
    return Sighting(sentence=f"{cause} ({causes[cause]}); {sentence}", exit_code=shown.exit_code)


def found_by_request_id(night: Night) -> Sighting | None:
    """``wearon find`` shows the session, its refund, and whether the customer was charged."""
    found = night.deployment.wearon("find", night.noted["request"], check=False)
    lines = found.stdout.splitlines()
    if not lines or not lines[0].startswith(night.noted["session"]):
        return None
    if not any(" refund  +1 " in line for line in lines):
        return None
    assert lines[-1] == "  net 0: the customer was not charged", found.stdout
    return Sighting(sentence=f"{lines[0]}; {lines[-1].strip()}", exit_code=found.returncode)


@contextmanager
def provider_says(reply: Reply, night: Night) -> Iterator[None]:
    """While sessions wait."""
    night.provider.replies.extend([reply] * ALL_NIGHT)
    night.submit(SESSIONS)
    yield
    night.provider.replies.clear()


@contextmanager
def provider_gone(night: Night) -> Iterator[None]:
    """Its connections are refused."""
    night.close_provider()
    night.submit(SESSIONS)
    yield
    night.open_provider()


@contextmanager
def redis_gone(night: Night) -> Iterator[None]:
    night.deployment.valkey.stop()
    try:
        yield
    finally:
        night.deployment.valkey.start()


@contextmanager
def redis_full(night: Night) -> Iterator[None]:
    """It answers reads and rejects writes."""
    with closing(night.deployment.redis()) as redis:
        redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            redis.config_set("maxmemory", 0)


@contextmanager
def database_gone(night: Night) -> Iterator[None]:
    night.deployment.postgres.stop()
    try:
        yield
    finally:
        night.deployment.postgres.start()


@contextmanager
def workers_dead(night: Night) -> Iterator[None]:
    """All of them, with signal 9, and a session waits."""
    night.kill_worker()
    night.submit()
    yield
    night.start_worker()


@contextmanager
def storage_in_the_way(night: Night) -> Iterator[None]:
    """A file where the pictures' folder should be, as where a mount is missing."""
    folder = night.deployment.folder / "data" / "pictures"
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.touch()
    yield
    folder.unlink()
    kept.rename(folder)


@contextmanager
def storage_full(night: Night) -> Iterator[None]:
    with small_disk(night) as disk:
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            file.write(b"\0" * DISK_BYTES)  # The disk takes a part of it.
            file.write(b"\0")
        assert shutil.disk_usage(disk).free == 0
        yield
        filler.unlink()


@contextmanager
def storage_read_only(night: Night) -> Iterator[None]:
    with small_disk(night) as disk:
        assert succeeds("mount", "-o", "remount,ro", str(disk))
        yield


@contextmanager
def small_disk(night: Night) -> Iterator[Path]:
    """A disk in memory, mounted where API and worker keep what they store."""
    folder = night.deployment.folder / "data"
    size = f"size={DISK_BYTES},mode=755"
    assert succeeds("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder))
    try:
        yield folder
    finally:
        assert succeeds("umount", "--lazy", str(folder))


def may_mount(folder: Path) -> bool:
    """Whether this machine lets us mount a disk there."""
    if not succeeds("mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(folder)):
        return False
    return succeeds("umount", str(folder))


def succeeds(program: str, *arguments: str) -> bool:
    """False too if the machine has no such program."""
    found = shutil.which(program)
    if found is None:
        return False
    command = [found, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_SECONDS)
    return done.returncode == 0


@contextmanager
def letter_that_is_no_task(night: Night) -> Iterator[None]:
    """Another program pushed it."""
    with closing(night.deployment.redis()) as redis:
        redis.lpush(QUEUE, '{"not": "a task"}')
    yield
    discard_letters(night)


@contextmanager
def deadly_task(night: Night) -> Iterator[None]:
    """Each worker that takes it dies, until its attempts are spent."""
    night.provider.replies.extend([hangs] * ALL_NIGHT)
    (session_id,) = night.submit()
    night.noted["session"] = session_id
    for attempt in (1, 2, 3):
        eventually(partial(is_attempted, night, attempt), seconds=PATIENCE_SECONDS)
        night.kill_worker()
        night.start_worker()
    yield
    night.provider.replies.clear()
    discard_letters(night)


def is_attempted(night: Night, attempt: int) -> bool:
    session = night.deployment.session(night.noted["session"])
    return bool(session["status"] == "processing" and session["attempt"] == attempt)


def discard_letters(night: Night) -> None:
    """As an operator does."""
    letters = json.loads(night.deployment.wearon("dead", "list", "--json").stdout)
    for letter in letters:
        night.deployment.wearon("dead", "discard", letter["id"])


@contextmanager
def throttled(night: Night) -> Iterator[None]:
    """More sessions than the provider's limit lets begin. An operator raises the limit."""
    night.submit(SESSIONS)
    yield
    night.kill_worker(signal.SIGTERM)
    night.start_worker(WEARON_PROVIDER_PER_MINUTE="1000")


@contextmanager
def books_edited(night: Night) -> Iterator[None]:
    """Somebody gives credits by hand, without a ledger entry, and takes them back."""
    change = """
        UPDATE credit_accounts SET balance = balance + $1, total_granted = total_granted + $1
        WHERE channel = 'b2c' AND owner_id = $2"""
    night.deployment.sql(change, 7, str(USER_ID))
    yield
    night.deployment.sql(change, -7, str(USER_ID))


@contextmanager
def credit_asked_for(night: Night) -> Iterator[None]:
    """A session failed, and its customer quotes the request's id."""
    night.provider.replies.append(says(400, error("moderation_blocked", type_="user_error")))
    answer = night.accepted()
    night.noted["request"] = answer.headers["x-request-id"]
    night.noted["session"] = answer.data["session_id"]
    yield


REJECTED = says(401, error("invalid_api_key"))
BROKEN = says(500, error("server_error", type_="server_error"))

KEY_REJECTED = Incident(
    name="provider 401",
    provoke=partial(provider_says, REJECTED),
    code=AlarmCode.CIRCUIT_OPEN,
    look=alarm(AlarmCode.CIRCUIT_OPEN, "provider 401 invalid_api_key"),
)
REDIS_GONE = Incident(
    name="Redis gone",
    provoke=redis_gone,
    code=AlarmCode.REDIS_UNAVAILABLE,
    look=alarm(AlarmCode.REDIS_UNAVAILABLE, "No answer from Redis at "),
)
REDIS_FULL = Incident(
    name="Redis out of memory",
    provoke=redis_full,
    code=AlarmCode.REDIS_REJECTS_WRITES,
    look=alarm(AlarmCode.REDIS_REJECTS_WRITES, "OOM"),
)
NO_TASK = Incident(
    name="poison: no task",
    provoke=letter_that_is_no_task,
    code=AlarmCode.DEAD_LETTERS,
    look=alarm(AlarmCode.DEAD_LETTERS, "the newest: Object missing required field"),
)
CREDIT_ASKED_FOR = Incident(
    name="credit asked for by request id",
    provoke=credit_asked_for,
    code=None,
    look=found_by_request_id,
)

INCIDENTS = (
    Incident(
        name="provider 500",
        provoke=partial(provider_says, BROKEN),
        code=AlarmCode.CIRCUIT_OPEN,
        look=alarm(AlarmCode.CIRCUIT_OPEN, "provider 500 server_error"),
    ),
    KEY_REJECTED,
    Incident(
        name="provider refused",
        provoke=provider_gone,
        code=AlarmCode.CIRCUIT_OPEN,
        look=alarm(AlarmCode.CIRCUIT_OPEN, "provider connection refused"),
    ),
    REDIS_GONE,
    REDIS_FULL,
    Incident(
        name="PostgreSQL gone",
        provoke=database_gone,
        code=AlarmCode.DATABASE_UNAVAILABLE,
        look=alarm(AlarmCode.DATABASE_UNAVAILABLE, "No answer from PostgreSQL at "),
    ),
    Incident(
        name="workers dead",
        provoke=workers_dead,
        code=AlarmCode.NO_WORKER,
        look=alarm(AlarmCode.NO_WORKER, "No worker has reported for ", "1 session waiting"),
    ),
    Incident(
        name="storage full",
        provoke=storage_full,
        code=AlarmCode.STORAGE,
        look=alarm(AlarmCode.STORAGE, "storage no space left on device"),
        needs_mount=True,
    ),
    Incident(
        name="storage read-only",
        provoke=storage_read_only,
        code=AlarmCode.STORAGE,
        look=alarm(AlarmCode.STORAGE, "storage read-only file system"),
        needs_mount=True,
    ),
    Incident(
        name="storage in the way",
        provoke=storage_in_the_way,
        code=AlarmCode.STORAGE,
        look=alarm(AlarmCode.STORAGE, "storage file exists"),
    ),
    NO_TASK,
    Incident(
        name="poison: kills its worker",
        provoke=deadly_task,
        code=AlarmCode.DEAD_LETTERS,
        look=lost_leases,
    ),
    Incident(
        name="throttled",
        provoke=throttled,
        code=AlarmCode.THROTTLED,
        look=alarm(AlarmCode.THROTTLED, "1 of 1 worker waits for the provider's limit"),
        settings={"WEARON_PROVIDER_PER_MINUTE": "1"},
    ),
    Incident(
        name="books edited by hand",
        provoke=books_edited,
        code=AlarmCode.BOOKS_WRONG,
        look=alarm(AlarmCode.BOOKS_WRONG, "discrepancy in the books"),
    ),
    CREDIT_ASKED_FOR,
)
SAMPLE = (CREDIT_ASKED_FOR, REDIS_FULL, REDIS_GONE, NO_TASK, KEY_REJECTED)
"""Those that take a few seconds; the last one leaves sessions that wait a little longer."""
