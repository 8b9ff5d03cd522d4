"""The ``wearon`` command: tables, JSON, errors and exit codes."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import click
import pytest

from adapters.credits.memory import InMemoryCreditRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.queue.redis import TASKS_KEY, redis_client
from config.closing import close
from config.container import Container
from config.loading import load_settings
from config.options import Generator
from config.reference import env_example, variables
from config.settings import Settings
from domain.tasks import GenerationTask, UnreadableTask
from entrypoints import demo, dev
from entrypoints.cli import main
from tests.support.cli import Shop, new_shop, wearon
from tests.support.examples import (
    STORE,
    USER,
    a_session,
    a_task,
)

T = TypeVar("T")

NOWHERE = {
    "DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/nothing",
    "REDIS_URL": "redis://:hunter2@127.0.0.1:1/0",
}
NO_DATABASE = "Error: DATABASE_URL: The database does not answer: connection refused"
NO_REDIS = "Error: REDIS_URL: Redis queue unavailable: connection refused"
SECRETS = {
    "WEARON_JWT_SECRET": "signs the tokens of the users: 0123456789",
    "WEARON_SIGNING_SECRET": "signs the links to the pictures: 9876543210",
}
NO_LETTER = "Error: No such dead letter; it may have been requeued or discarded already\n"
IN_MEMORY = {
    "WEARON_ENVIRONMENT": "development",
    "WEARON_DATABASE": "memory",
    "WEARON_QUEUE": "memory",
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the environment in which the tests run."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    for name in os.environ:
        if name.startswith("WEARON_") or name in NOWHERE:
            monkeypatch.delenv(name)


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def test_credits_are_granted(shop: Shop) -> None:
    """A grant prints the new balance; the balance comes with its ledger entries, newest first, up
    to the limit."""
    granted = shop.run("credits", "grant", "--store", STORE.id, 40)
    again = shop.json("credits", "grant", "--store", STORE.id, 2, "--note", "a [bold] move")
    table = shop.run("credits", "balance", "--store", STORE.id)
    balance = shop.json("credits", "balance", "--store", STORE.id, "--limit", 1)

    assert granted.stdout == "b2b:store-1 now has 40 credit(s)\n"
    assert again["balance"] == 42
    first, header, *rows = table.stdout.splitlines()
    assert first == "b2b:store-1: 42 credit(s)"
    assert header.split() == [
        "ENTRY", "KIND", "AMOUNT", "SESSION", "REFERENCE", "NOTE", "WHEN", "(UTC)"
    ]  # fmt: skip
    assert [row.split()[1:3] for row in rows] == [["grant", "2"], ["grant", "40"]]
    assert "a [bold] move" in rows[0]
    assert "granted by an operator" in rows[1]
    assert balance["account"] == {
        "channel": "b2b",
        "owner_id": "store-1",
        "balance": 42,
        "total_granted": 42,
        "total_debited": 0,
        "total_refunded": 0,
        "total_adjusted": 0,
        "plan": "default",
        "suspended": False,
    }
    (entry,) = balance["entries"]
    assert (entry["kind"], entry["amount"], entry["note"]) == ("grant", 2, "a [bold] move")
    assert entry["created_at"].endswith("Z")


def test_users_and_stores_have_separate_accounts(shop: Shop) -> None:
    """--user and --store, even if the ids are the same."""
    shop.run("stores", "create", USER.id, "--name", "a store with the id of a user")
    shop.run("credits", "grant", "--user", USER.id, 7)
    shop.run("credits", "grant", "--store", USER.id, 2)

    user = shop.json("credits", "balance", "--user", USER.id)
    store = shop.run("credits", "balance", "--store", USER.id)

    assert user["account"]["balance"] == 7
    assert store.stdout.splitlines()[0] == f"b2b:{USER.id}: 2 credit(s)"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("credits", "grant", "5"), "Give --user UUID or --store ID."),
        (("credits", "balance"), "Give --user UUID or --store ID."),
        (
            ("credits", "balance", "--user", USER.id, "--store", "s"),
            "Give --user or --store, not both.",
        ),
        (
            ("sessions", "list", "--user", USER.id, "--store", "s"),
            "Give --user or --store, not both.",
        ),
        (("credits", "balance", "--user", "me"), "'--user': 'me' is not a valid UUID."),
        (("credits", "balance", "--store", "../etc"), "'--store': must be 1 to 128 of A-Z"),
        (("keys", "create", "--store", ""), "'--store': must be 1 to 128 of A-Z"),
        (("keys", "list", "--store", "a b"), "'--store': must be 1 to 128 of A-Z"),
        (("keys", "create"), "Missing option '--store'."),
        (("keys", "revoke", "wk_1"), "'KEY_ID': 'wk_1' is not a valid UUID."),
        (("sessions", "show", "1"), "'SESSION_ID': '1' is not a valid UUID."),
        (("sessions", "list", "--status", "done"), "'--status': 'done' is not one of 'queued',"),
        (("sessions", "list", "--limit", "0"), "'--limit': 0 is not in the range 1<=x<=1000."),
        (("credits", "grant", "--store", "s", "0"), "'AMOUNT': 0 is not in the range 1<="),
        (("credits", "grant", "--store", "s", "x"), "'AMOUNT': 'x' is not a valid integer range."),
        (("worker", "--concurrency", "0"), "'--concurrency': 0 is not in the range 1<=x<=1000."),
        (("dev", "--port", "0"), "'--port': 0 is not in the range 1<=x<=65535."),
        (("dead", "show", "1"), "'LETTER_ID': '1' is not a valid UUID."),
        (("dead", "list", "--limit", "0"), "'--limit': 0 is not in the range 1<=x<=1000."),
        (("dance",), "No such command 'dance'."),
    ],
)
def test_invalid_command_line(arguments: tuple[str, ...], problem: str) -> None:
    """Exit code 2, nothing on standard output, and a last line that names the problem."""
    result = wearon(*arguments, env=NOWHERE)

    assert (result.exit_code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert problem in last


def test_key_is_shown_once(shop: Shop) -> None:
    """When it is created; it works immediately, and no listing shows it again."""
    created = shop.run("keys", "create", "--store", STORE.id, "--label", "till 1")
    key, hint = created.stdout.splitlines()
    listed = shop.run("keys", "list")
    as_json = shop.run("keys", "list", "--json")

    assert shop.owner_of(key) == STORE
    assert "save the key now" in hint
    assert "till 1" in listed.stdout
    assert key not in listed.stdout + as_json.stdout


def test_keys_are_listed_by_store(shop: Shop) -> None:
    """Newest first, of one store or of all, including revoked ones."""
    first = shop.json("keys", "create", "--store", "store-1")
    second = shop.json("keys", "create", "--store", "store-2")
    shop.run("keys", "revoke", first["id"])

    of_all = shop.json("keys", "list")
    one = shop.json("keys", "list", "--store", "store-1")

    assert [key["id"] for key in of_all] == [second["id"], first["id"]]
    assert [(key["owner_id"], key["revoked_at"] is None) for key in one] == [("store-1", False)]


def test_revoked_key_stops_working(shop: Shop) -> None:
    """Revoking it again is an error."""
    created = shop.json("keys", "create", "--store", STORE.id)

    first = shop.run("keys", "revoke", created["id"])
    second = shop.run("keys", "revoke", created["id"])

    assert (first.exit_code, first.stdout) == (0, "Revoked.\n")
    assert shop.owner_of(created["key"]) is None
    assert second.exit_code == 1
    assert second.stderr == "Error: No such key, or it is already revoked.\n"


def test_verification_without_discrepancies(shop: Shop) -> None:
    """Exit code 0 with a queued, a completed and a refunded session."""
    shop.session(STORE)
    shop.completed()
    shop.failed()

    result = shop.run("credits", "verify")
    as_json = shop.json("credits", "verify")

    assert result.exit_code == 0
    assert result.stdout.startswith("No discrepancies")
    assert as_json == {"ok": True, "discrepancies": []}


def test_verification_with_a_discrepancy(shop: Shop) -> None:
    """A balance that is not the sum of its ledger is listed, and the exit code is 1, with --json
    too."""
    shop.session(STORE)
    shop.session(USER)
    shop.misbook(STORE, 5)

    result = shop.run("credits", "verify")
    as_json = shop.run("credits", "verify", "--json")

    (row,) = result.stdout.splitlines()[1:]
    assert row == "b2b:store-1  balance 5, but its ledger adds up to 0"
    assert (result.exit_code, as_json.exit_code) == (1, 1)
    assert json.loads(as_json.stdout) == {
        "ok": False,
        "discrepancies": [
            {"subject": "b2b:store-1", "problem": "balance 5, but its ledger adds up to 0"}
        ],
    }


def test_migration_is_repeatable(shop: Shop) -> None:
    """It changes nothing and succeeds; it needs only the database."""
    result = shop.run("migrate")
    as_json = shop.json("migrate")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "nothing to do\n", "")
    assert as_json == {"applied": []}


@pytest.fixture
def queue(valkey: EmbeddedValkey) -> dict[str, str]:
    """The environment of an empty queue."""

    async def flush() -> None:
        client = redis_client(valkey.url)
        await client.flushall()
        await client.aclose()

    asyncio.run(flush())
    return {"REDIS_URL": valkey.url}


def test_status_of_an_empty_queue(queue: dict[str, str]) -> None:
    """No tasks, no next session, no dead letters."""
    result = wearon("queue", "status", env=queue)

    assert result.stdout.splitlines()[1].split() == ["0", "-", "-", "0"]


def with_queue(env: dict[str, str], work: Callable[[Container], Awaitable[T]]) -> T:
    """Work with a container, as API and worker do."""

    async def with_container() -> T:
        container = Container(settings=load_settings(env))
        try:
            return await work(container)
        finally:
            await close(container)

    return asyncio.run(with_container())


def test_status_of_a_queue_with_tasks(queue: dict[str, str]) -> None:
    """The number of tasks, the next session and the number of dead letters."""
    first, second = a_session(), a_session()

    async def push(container: Container) -> None:
        for session in (first, second):
            await container.queue().push(GenerationTask.of(session, task_id=uuid4()))
        await container.queue().bury(a_task(), reason="unknown")

    with_queue(queue, push)
    table = wearon("queue", "status", env=queue)
    as_json = wearon("queue", "status", "--json", env=queue)

    cells = table.stdout.splitlines()[1].split()
    assert (cells[0], cells[1], cells[-1]) == ("2", str(first.id), "1")
    assert json.loads(as_json.stdout) == {
        "waiting": 2,
        "next_session_id": str(first.id),
        "next_created_at": "2026-01-01T12:00:00Z",
        "dead": 1,
    }


def buried(env: dict[str, str], raw: bytes, session_id: UUID | None = None) -> str:
    """The id of a new dead letter."""

    async def bury(container: Container) -> str:
        message = UnreadableTask(raw=raw, reason="version 9 is newer", session_id=session_id)
        await container.queue().bury(message, reason=message.reason)
        (letter,) = await container.queue().dead(limit=1)
        return str(letter.id)

    return with_queue(env, bury)


def tasks_in(env: dict[str, str]) -> list[bytes]:
    """The messages in the queue."""

    async def look() -> list[bytes]:
        client = redis_client(env["REDIS_URL"])
        raws = await client.lrange(TASKS_KEY, 0, -1)
        await client.aclose()
        return [raw for raw in raws if isinstance(raw, bytes)]

    return asyncio.run(look())


def dead_ids(env: dict[str, str]) -> list[str]:
    return [letter["id"] for letter in json.loads(wearon("dead", "list", "--json", env=env).stdout)]


def test_dead_letters_are_listed(queue: dict[str, str]) -> None:
    """Newest first, up to the limit, with reason and session."""
    session_id = uuid4()
    first, second = buried(queue, b"1", session_id), buried(queue, b"2")

    table = wearon("dead", "list", env=queue)
    as_json = json.loads(wearon("dead", "list", "--json", "--limit", "1", env=queue).stdout)

    header, *rows = table.stdout.splitlines()
    assert header.split() == ["ID", "SESSION", "BURIED", "(UTC)", "REASON"]
    assert [row.split()[:2] for row in rows] == [[second, "-"], [first, str(session_id)]]
    assert all(row.endswith("  version 9 is newer") for row in rows)
    (letter,) = as_json
    assert letter.pop("buried_at").endswith("Z")
    assert letter == {"id": second, "session_id": None, "reason": "version 9 is newer"}


def test_dead_letter_is_shown(queue: dict[str, str]) -> None:
    """With its text from the queue, control characters escaped."""
    session_id = uuid4()
    letter_id = buried(queue, '{"prompt": "Grüße \x1b[31m"}'.encode(), session_id)

    shown = wearon("dead", "show", letter_id, env=queue)
    as_json = json.loads(wearon("dead", "show", letter_id, "--json", env=queue).stdout)

    fields = dict(re.split(r"  +", line, maxsplit=1) for line in shown.stdout.splitlines())
    assert (fields["id"], fields["session_id"]) == (letter_id, str(session_id))
    assert fields["raw"] == '{"prompt": "Grüße \\x1b[31m"}'
    assert as_json["raw"] == '{"prompt": "Grüße \x1b[31m"}'
    assert (as_json["raw_base64"], as_json["session_id"]) == (None, str(session_id))


def test_dead_letter_that_is_not_utf_8_is_shown(queue: dict[str, str]) -> None:
    """Its bytes are escaped in the table and base64 in JSON."""
    letter_id = buried(queue, b"{\xff\xfe")

    shown = wearon("dead", "show", letter_id, env=queue)
    as_json = json.loads(wearon("dead", "show", letter_id, "--json", env=queue).stdout)

    assert shown.stdout.splitlines()[-1].split() == ["raw", "{\\xff\\xfe"]
    assert (as_json["raw"], as_json["raw_base64"]) == (None, "e//+")


@pytest.mark.parametrize("named", [False, True])
def test_dead_letter_is_requeued(shop: Shop, queue: dict[str, str], *, named: bool) -> None:
    """Unchanged, also if it names a session without a final status; only once."""
    session_id = shop.session().id if named else None
    letter_id = buried(queue, b"{\xff", session_id)

    first = wearon("dead", "requeue", letter_id, env=queue | shop.env)
    second = wearon("dead", "requeue", letter_id, env=queue | shop.env)

    assert (first.exit_code, first.stdout) == (0, "Requeued.\n")
    assert tasks_in(queue) == [b"{\xff"]
    assert dead_ids(queue) == []
    assert (second.exit_code, second.stderr) == (1, NO_LETTER)


def test_truncated_dead_letter(queue: dict[str, str]) -> None:
    """Of a huge message the beginning and the size are shown; it cannot be requeued."""
    letter_id = buried(queue, b"x" * 1_000_000)

    listed = wearon("dead", "list", env=queue)
    as_json = json.loads(wearon("dead", "show", letter_id, "--json", env=queue).stdout)
    requeued = wearon("dead", "requeue", letter_id, env=queue)

    assert listed.stdout.splitlines()[1].endswith("(truncated, had 1,000,000 bytes)")
    assert (as_json["size"], as_json["truncated"]) == (1_000_000, True)
    assert as_json["raw"] == "x" * 65_536
    assert requeued.exit_code == 1
    assert requeued.stderr == (
        f"Error: Of letter {letter_id} only the first 65,536 of 1,000,000 bytes were kept, so it"
        " cannot be requeued; discard it\n"
    )
    assert tasks_in(queue) == []
    assert dead_ids(queue) == [letter_id]


def test_dead_letter_without_a_session_needs_no_database(queue: dict[str, str]) -> None:
    """DATABASE_URL is not set; a letter that names a session needs it."""
    unnamed, named = buried(queue, b"1"), buried(queue, b"2", uuid4())

    requeued = wearon("dead", "requeue", unnamed, env=queue)
    failed = wearon("dead", "requeue", named, env=queue)

    assert (requeued.exit_code, tasks_in(queue)) == (0, [b"1"])
    assert (failed.exit_code, failed.stderr) == (1, missing("DATABASE_URL"))
    assert dead_ids(queue) == [named]


def test_dead_letter_of_an_unknown_session_is_requeued(shop: Shop, queue: dict[str, str]) -> None:
    """A worker will report that there is no such session."""
    letter_id = buried(queue, b"{", uuid4())

    assert wearon("dead", "requeue", letter_id, env=queue | shop.env).exit_code == 0

    assert tasks_in(queue) == [b"{"]


@pytest.mark.parametrize("status", ["failed", "completed"])
def test_dead_letter_of_a_final_session_is_not_requeued(
    shop: Shop, queue: dict[str, str], status: str
) -> None:
    """An error of one line; the letter stays."""
    session = shop.failed() if status == "failed" else shop.completed()
    letter_id = buried(queue, b"{", session.id)

    result = wearon("dead", "requeue", letter_id, env=queue | shop.env)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: Session {session.id} is already {status}: a worker would find nothing to do;"
        " discard the letter instead\n"
    )
    assert tasks_in(queue) == []
    assert dead_ids(queue) == [letter_id]


def test_dead_letter_is_discarded(queue: dict[str, str]) -> None:
    """Once; other letters stay."""
    kept, letter_id = buried(queue, b"{"), buried(queue, b"{")

    first = wearon("dead", "discard", letter_id, env=queue)
    second = wearon("dead", "discard", letter_id, env=queue)

    assert (first.exit_code, first.stdout) == (0, "Discarded.\n")
    assert dead_ids(queue) == [kept]
    assert (second.exit_code, second.stdout, second.stderr) == (1, "", NO_LETTER)


@pytest.mark.parametrize("command", ["show", "requeue", "discard"])
def test_unknown_dead_letter(queue: dict[str, str], command: str) -> None:
    """One line on standard error and exit code 1."""
    result = wearon("dead", command, uuid4(), env=queue)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", NO_LETTER)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("credits", "verify"),
            NO_DATABASE,
        ),
        (
            ("sessions", "list", "--json"),
            NO_DATABASE,
        ),
        (("migrate",), NO_DATABASE),
        (("queue", "status"), NO_REDIS),
        (("dead", "list"), NO_REDIS),
        (
            ("dead", "requeue", USER.id),
            NO_REDIS,
        ),
    ],
)
def test_unreachable_server(arguments: tuple[str, ...], line: str) -> None:
    """One line with the variable's name and without the password in it; exit code 1."""
    result = wearon(*arguments, env=NOWHERE)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{line}\n")


def test_missing_privilege(postgres: EmbeddedPostgres) -> None:
    """One sentence with the table, instead of a traceback."""
    sql = "DO $$ BEGIN CREATE ROLE poor; EXCEPTION WHEN duplicate_object THEN NULL; END $$"

    async def prepare() -> None:
        database = Database(postgres.url(), limits=DatabaseLimits())
        await database.fetch(sql)
        await database.fetch("GRANT poor TO CURRENT_USER")
        await database.close()

    asyncio.run(prepare())

    result = wearon(
        "sessions", "list", env={"DATABASE_URL": f"{postgres.url()}&options=-c%20role%3Dpoor"}
    )

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: DATABASE_URL: The database role lacks a privilege:"
        " 42501 permission denied for table generation_sessions\n"
    )


def missing(*names: str) -> str:
    """What is said when these variables are not set."""
    others = {"WEARON_JWT_SECRET": ", or WEARON_JWT_JWKS_URL"}
    lines = (
        f"{name}: must be set{others.get(name, '')}"
        " (or try `wearon dev`, which needs no settings)\n"
        for name in names
    )
    return "Error: " + "".join(lines)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (("serve",), ("DATABASE_URL", "REDIS_URL", "WEARON_JWT_SECRET", "WEARON_SIGNING_SECRET")),
        (
            ("worker",),
            ("DATABASE_URL", "REDIS_URL", "WEARON_SIGNING_SECRET", "WEARON_GENERATOR"),
        ),
        (("migrate",), ("DATABASE_URL",)),
        (("queue", "status"), ("REDIS_URL",)),
        (("dead", "list"), ("REDIS_URL",)),
        (("credits", "verify"), ("DATABASE_URL",)),
    ],
)
def test_missing_settings_are_named(command: tuple[str, ...], names: tuple[str, ...]) -> None:
    """All that the command needs at once, and no others."""
    result = wearon(*command)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", missing(*names))


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_missing_s3_settings_are_named(command: str) -> None:
    """Bucket and credentials, and no signing secret, because S3 signs the links."""
    jwt_secret = {"WEARON_JWT_SECRET": SECRETS["WEARON_JWT_SECRET"]}

    result = wearon(
        command, env=NOWHERE | {"WEARON_STORAGE": "s3", "WEARON_GENERATOR": "local"} | jwt_secret
    )

    assert (result.exit_code, result.stderr) == (
        1,
        missing("WEARON_S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    )


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_in_memory_adapters_are_rejected(command: str) -> None:
    """An API with a queue in its own memory would charge for tasks that no worker sees."""
    result = wearon(command, env=NOWHERE | SECRETS | IN_MEMORY)

    lines = result.stderr.removeprefix("Error: ").splitlines()
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in lines] == ["WEARON_DATABASE", "WEARON_QUEUE"]
    assert all("`wearon dev --in-memory`" in line for line in lines)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which another process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        yield port


@pytest.mark.parametrize("mode", [[], ["--in-memory"]])
def test_dev_on_a_taken_port(mode: list[str], taken_port: int, tmp_path: Path) -> None:
    """One line, before anything is started."""
    result = wearon("dev", "--port", taken_port, "--data-dir", tmp_path / "dev", *mode)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: --port: cannot listen on 127.0.0.1, port {taken_port}: Address already in use\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("127.0.0.1", "Address already in use"),
        ("192.0.2.1", "Cannot assign requested address"),
        ("no.such.host.invalid", "Name or service not known"),
    ],
)
def test_serve_on_an_unusable_address(
    host: str, problem: str, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taken port, a foreign address: one line instead of the server's traceback."""
    monkeypatch.setenv("WEARON_HOST", host)
    monkeypatch.setenv("WEARON_PORT", str(taken_port))

    result = wearon("serve", env=NOWHERE | SECRETS)

    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: WEARON_PORT: cannot listen on {host}, port {taken_port}: {problem}\n"
    )


@pytest.mark.parametrize("command", ["dev", "demo"])
def test_data_folder_that_cannot_be_created(command: str, tmp_path: Path) -> None:
    """One line with the folder's name."""
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"

    result = wearon(command, "--data-dir", folder, *port_of(command))

    assert result.exit_code == 1
    assert result.stderr == f"Error: --data-dir {folder}: Not a directory\n"


def test_data_folder_of_the_environment(tmp_path: Path) -> None:
    """The error names the variable that was set, not an option that was not given."""
    folder = tmp_path / "file" / "data"
    folder.parent.touch()

    result = wearon("dev", *port_of("dev"), env={"WEARON_DATA_DIR": str(folder)})

    assert result.stderr == f"Error: WEARON_DATA_DIR {folder}: Not a directory\n"


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("keys", "create"),
        ("sessions", "list"),
        ("credits", "balance"),
        ("credits", "grant", "1"),
        ("credits", "adjust", "1", "--reason", "a mistake"),
        ("owners", "show"),
        ("owners", "plan", "scale"),
        ("owners", "suspend", "--reason", "abuse"),
        ("owners", "resume"),
    ],
    ids=" ".join,
)
def test_unknown_owner(shop: Shop, command: tuple[str, ...]) -> None:
    """A mistyped id is an error that names similar stores; an empty table would pass for an answer,
    and a grant would be lost."""
    result = shop.run(*command, "--store", "stroe-1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: No store has the id stroe-1; similar: store-1, store-2\n"
    assert shop.json("audit", "list") == []


@pytest.mark.parametrize("command", [("sessions", "list"), ("credits", "balance")], ids=" ".join)
def test_unknown_user(shop: Shop, command: tuple[str, ...]) -> None:
    """A user without an account has nothing to show: most likely, the id is mistyped."""
    result = shop.run(*command, "--user", USER.id)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: b2c:{USER.id} is unknown: it has no account.\n"


def test_damaged_credentials(tmp_path: Path) -> None:
    """An unreadable identity file is named, and not replaced silently."""
    (tmp_path / "identity.json").write_text('{"user_id": 1}')

    result = wearon("dev", "--data-dir", tmp_path, *port_of("dev"))

    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {tmp_path}/identity.json is damaged: delete it to get new credentials\n"
    )


def test_dev_on_unreachable_servers(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """The given servers have to answer before anything is started; the error names the one that
    does not."""
    without_database = wearon("dev", "--data-dir", tmp_path, *port_of("dev"), env=NOWHERE)
    without_queue = wearon(
        "dev", "--data-dir", tmp_path, *port_of("dev"),
        env=NOWHERE | {"DATABASE_URL": postgres.url()},
    )  # fmt: skip

    assert without_database.stderr == f"{NO_DATABASE}\n"
    assert without_queue.stderr == f"{NO_REDIS}\n"
    assert (without_database.exit_code, without_queue.exit_code) == (1, 1)


def test_dev_with_an_unknown_setting(tmp_path: Path) -> None:
    """An error before any server is started."""
    result = wearon(
        "dev", "--data-dir", tmp_path, *port_of("dev"), env={"WEARON_LEASE_SECOND": "1"}
    )

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: WEARON_LEASE_SECOND: no such setting; did you mean")
    assert not (tmp_path / "postgres").exists()


def port_of(command: str) -> list[str]:
    """The option for a free port, if the command has one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return ["--port", str(probe.getsockname()[1])] if command == "dev" else []


def test_dev_s_environment() -> None:
    """Dev decides what runs where; other settings are kept if they are set and not empty."""
    identity = dev.new_identity()
    environ = {
        "WEARON_ENVIRONMENT": "production",
        "WEARON_HOST": "192.0.2.1",
        "WEARON_PUBLIC_URL": "https://wearon.example",
        "WEARON_JWT_SECRET": "",
        "WEARON_SIGNING_SECRET": "t" * 32,
        "WEARON_LOG_FORMAT": "json",
        "WEARON_LEASE_SECONDS": "5",
    }

    settings = load_settings(dev._environment(environ, identity, 8123))

    assert settings.environment == "development"
    assert (settings.host, settings.port) == ("127.0.0.1", 8123)
    assert settings.public_url == "http://127.0.0.1:8123"
    assert settings.jwt_secret == identity.jwt_secret
    assert settings.signing_secret == "t" * 32
    assert (settings.log_format, settings.lease_seconds) == ("json", 5)


def test_demo_ignores_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the service's servers; variables that are not ours are passed on."""
    for name, value in (NOWHERE | IN_MEMORY | {"WEARON_MISSPELT": "1", "THEIRS": "x"}).items():
        monkeypatch.setenv(name, value)

    environ = demo._environment("local", None)

    assert load_settings(environ) == Settings(generator=Generator.LOCAL)
    assert not environ.keys() & NOWHERE.keys()
    assert environ["THEIRS"] == "x"


def test_demo_respects_the_settings_of_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others; the command line overrides them."""
    for name, value in {
        "OPENAI_API_KEY": "sk-1",
        "WEARON_OPENAI_MODEL": "gpt-image-2",
        "WEARON_OPENAI_BASE_URL": "https://one.example",
        "WEARON_REPLICATE_MODEL": "google/nano-banana-2",
        "WEARON_LEASE_SECONDS": "5",
    }.items():
        monkeypatch.setenv(name, value)

    settings = load_settings(demo._environment("openai", "https://other.example/v1"))
    others = load_settings(demo._environment("replicate", "https://third.example"))

    assert settings == Settings(
        generator=Generator.OPENAI,
        openai_api_key="sk-1",
        openai_model="gpt-image-2",
        openai_base_url="https://other.example/v1",
    )
    assert others == Settings(
        generator=Generator.REPLICATE,
        openai_api_key="sk-1",
        replicate_model="google/nano-banana-2",
        replicate_base_url="https://third.example",
    )


def test_base_url_requires_an_external_provider(tmp_path: Path) -> None:
    """Otherwise it would have no effect."""
    result = wearon("demo", "--data-dir", tmp_path, "--base-url", "http://127.0.0.1:1")

    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: --base-url requires --provider openai or replicate."
    )


def test_provider_without_its_key(tmp_path: Path) -> None:
    """An error from every command that generates pictures, before it starts anything."""
    openai = {"WEARON_GENERATOR": "openai"}
    results = [
        wearon("worker", env=NOWHERE | SECRETS | openai),
        wearon("dev", "--data-dir", tmp_path, *port_of("dev"), env=openai),
        wearon("dev", "--in-memory", *port_of("dev"), env=openai),
        wearon("demo", "--data-dir", tmp_path, "--provider", "openai"),
    ]

    for result in results:
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: OPENAI_API_KEY: must be set")
    result = wearon("demo", "--data-dir", tmp_path, "--provider", "replicate")
    assert result.stderr.startswith("Error: REPLICATE_API_TOKEN: must be set")
    assert not (tmp_path / "postgres").exists()


def test_demo_accounts_are_topped_up() -> None:
    """At a start, only if no credits are left; the demo key is stored once."""
    identity = dev.new_identity()
    container = Container(
        settings=load_settings(IN_MEMORY | {"WEARON_STORAGE": "memory"} | SECRETS)
    )

    async def starts() -> tuple[int, int]:
        await dev._seed(container, identity)
        await dev._seed(container, identity)
        session = a_session(owner=identity.user)
        accounts = container.accounts()
        assert isinstance(accounts, InMemoryCreditRepo)
        accounts.debit(identity.user, dev.DEMO_CREDITS, session.id)
        accounts.debit(identity.store, 1, session.id)
        await dev._seed(container, identity)
        user = await container.accounts().account(identity.user)
        store = await container.accounts().account(identity.store)
        return user.balance, store.balance

    assert asyncio.run(starts()) == (dev.DEMO_CREDITS, dev.DEMO_CREDITS - 1)
    assert len(asyncio.run(container.api_keys().all(None))) == 1


def test_banner_names_the_data_folder(tmp_path: Path) -> None:
    """And how other commands find the stack; or says that no data is kept."""
    identity = dev.new_identity()
    stack = dev.Stack(url="http://127.0.0.1:8000", user_token="t", identity=identity, data_dir=None)

    in_memory = dev.banner(stack)
    on_disk = dev.banner(
        dev.Stack(
            url=stack.url,
            console_link="http://127.0.0.1:8001/console/developer/t",
            user_token="t",
            identity=identity,
            data_dir=tmp_path,
        )
    )

    assert "lost when it stops" in in_memory
    assert f"Data is stored in {tmp_path}" in on_disk
    assert f". {tmp_path}/env" in on_disk
    assert "Console, signed in: http://127.0.0.1:8001/console/developer/t\n" in on_disk
    assert "Console" not in in_memory
    for text in (in_memory, on_disk):
        assert text.count("curl -s http://127.0.0.1:8000/api/v1/generations") == 2
        assert identity.api_key in text
        assert "/schema" in text


def test_settings_are_listed() -> None:
    """Every variable: as a table, as JSON, and as an environment file."""
    table = wearon("settings")
    as_json = wearon("settings", "--json")
    as_file = wearon("settings", "--env")

    names = [variable.name for variable in variables()]
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == names
    assert [item["name"] for item in json.loads(as_json.stdout)] == names
    assert as_file.stdout == env_example()


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a command and all its subcommands."""
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", [*commands(main)], ids=" ".join)
def test_help_is_complete(path: tuple[str, ...]) -> None:
    """Every command, option and argument is described."""
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]

    result = wearon(*path, "--help")

    assert result.exit_code == 0
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert all(option in result.stdout for option in parameter.opts)
        else:
            assert parameter.human_readable_name in command.help
    for child in getattr(command, "commands", {}):
        assert child in result.stdout


def test_reading_commands_have_json() -> None:
    """All commands that print data."""
    acting = {
        "keys revoke",
        "tokens revoke",
        "services revoke",
        "operators revoke",
        "webhooks remove",
        "webhooks listen",
        "completion",
        "dead requeue",
        "dead discard",
    }
    groups = {
        "credits", "keys", "sessions", "queue", "dead", "stores", "owners", "services", "audit",
        "storage", "tokens", "operators",
    }  # fmt: skip

    without = {
        " ".join(path)
        for path in commands(main)
        if path and "--json" not in wearon(*path, "--help").stdout
    }

    assert without == {"serve", "worker", "recover", "console", "dev", "demo"} | acting | groups


def test_worker_s_exit_codes_are_documented() -> None:
    """In its help, for scripts that start it."""
    explained = wearon("worker", "--help").stdout.partition("Exit codes:")[2]

    lines = [line.split() for line in explained.splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["0", "1", "2", "75"]


@pytest.mark.processes
def test_api_imports_no_unused_libraries() -> None:
    """The HTTP client of workers and the generator of examples took a quarter of the start time."""
    code = (
        "import os, sys\n"
        "from config.container import Container\n"
        "from config.loading import load_settings\n"
        "from entrypoints.http.server import application\n"
        "application(Container(settings=load_settings(os.environ)))\n"
        "print(*sys.modules)\n"
    )
    environ = os.environ | {
        "DATABASE_URL": "postgresql://127.0.0.1/none",
        "REDIS_URL": "redis://127.0.0.1",
        **SECRETS,
    }

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )

    imported = set(done.stdout.split())
    assert {"litestar", "adapters.queue.redis"} <= imported
    assert not {"aiohttp", "faker", "polyfactory", "adapters.embedded"} & imported


@pytest.mark.processes
def test_help_imports_no_heavy_libraries() -> None:
    """Each of them would cost more than the help itself."""
    heavy = {"asyncio", "asyncpg", "litestar", "msgspec", "PIL", "redis", "structlog", "uvicorn"}
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported:', *sys.modules))\n"
        "from entrypoints.cli import main\n"
        "main(['--help'])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    help_text, _, imported = done.stdout.partition("imported:")
    assert "wearon turns virtual try-on requests into pictures" in help_text
    assert "entrypoints.cli.operate" in imported.split()
    assert not heavy & set(imported.split())
