"""The program ``wearon``: Ctrl-C, readers that go away, and the completion of shells."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from entrypoints.cli import main
from entrypoints.cli.output import ignore_errors_after_interrupt
from tests.support.cli import new_shop, wearon
from tests.support.examples import STORE

pytestmark = pytest.mark.processes

WEARON = Path(sys.executable).with_name("wearon")
SECONDS = 30.0


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        yield server


@contextmanager
def started(
    *arguments: str, env: dict[str, str], output: int | IO[str] = subprocess.PIPE
) -> "Iterator[subprocess.Popen[str]]":
    """The program, which is gone afterwards."""
    with subprocess.Popen(
        [str(WEARON), *arguments],
        env=os.environ | env,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "arguments", [("sessions", "list"), ("status", "--watch"), ("doctor",)], ids=" ".join
)
def test_ctrl_c_ends_a_command_that_waits(
    arguments: tuple[str, ...], silent: socket.socket
) -> None:
    """While it waits for a server: one line, no traceback, and the exit code of SIGINT."""
    url = f"postgresql://user:hunter2@127.0.0.1:{silent.getsockname()[1]}/wearon"
    env = {
        "DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0", "WEARON_DATABASE_SECONDS": "60"
    }  # fmt: skip
    with started(*arguments, env=env) as process, silent.accept()[0]:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)

    assert (process.returncode, errors) == (130, "Interrupted.\n")


@pytest.mark.parametrize("ends", ["during", "after"])
@pytest.mark.parametrize("is_interrupted", [True, False])
def test_errors_of_calls_in_flight_are_no_news_after_ctrl_c(
    caplog: pytest.LogCaptureFixture, ends: str, *, is_interrupted: bool
) -> None:
    """A connection that is lost because of Ctrl-C is not printed; any other one is."""

    kept: list[asyncio.Future[None]] = []

    async def command() -> None:
        ignore_errors_after_interrupt()
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lost.set_exception(ConnectionError("lost"))
        if ends == "after":
            kept.append(lost)
        if is_interrupted and (task := asyncio.current_task()):
            task.cancel()
        del lost  # Its error was never retrieved.
        await asyncio.sleep(0)

    with suppress(asyncio.CancelledError):
        asyncio.run(command())
    kept.clear()

    assert bool(caplog.records) is not is_interrupted


def test_ctrl_c_while_the_program_starts() -> None:
    """The imports are most of a short command's time."""
    code = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'rich_click': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from entrypoints.program import wearon\n"
        "wearon()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_ctrl_c_while_the_program_ends() -> None:
    """The interpreter may wait for a thread by then."""
    code = (
        "import atexit, signal, sys\n"
        "from entrypoints.program import wearon\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv = ['wearon', '--version']\n"
        "wearon()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
    assert done.stdout.startswith("wearon, version")


def test_ctrl_c_that_the_caller_ignores_stays_ignored() -> None:
    """A shell starts a program in the background like that."""
    code = (
        "import atexit, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from entrypoints.program import wearon\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv = ['wearon', '--version']\n"
        "wearon()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_answer_of_no_is_no_interruption() -> None:
    """A question that is not answered ends with exit code 1."""
    result = wearon("owners", "erase", "--store", STORE.id, "--reason", "asked to")

    assert result.exit_code == 1
    assert result.stderr.endswith("Aborted.\n")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_reader_that_goes_away_is_no_error(postgres: EmbeddedPostgres, option: list[str]) -> None:
    """`wearon sessions list | head -1` leaves no traceback."""
    shop = new_shop(postgres.url())
    read, write = os.pipe()
    os.close(read)
    with (
        os.fdopen(write, "w") as closed,
        started("stores", "list", *option, env=shop.env, output=closed) as process,
    ):
        _, errors = process.communicate(timeout=SECONDS)

    assert errors == ""


def test_bash_completes_commands() -> None:
    """The script can be sourced, and `wearon sess<TAB>` becomes `wearon sessions`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = (
        "set -e; source <(wearon completion bash)\n"
        "complete -p wearon\n"
        "COMP_WORDS=(wearon sess); COMP_CWORD=1; _wearon_completion wearon\n"
        'echo "${COMPREPLY[@]}"\n'
        "COMPREPLY=(); COMP_WORDS=(wearon sessions list --req); COMP_CWORD=3\n"
        "_wearon_completion wearon\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    path = os.pathsep.join([str(WEARON.parent), os.environ["PATH"]])

    done = subprocess.run(
        [bash, "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _wearon_completion wearon", "sessions", "--request-id",
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_asks_the_program(shell: str) -> None:
    """By the variable that it looks at."""
    result = wearon("completion", shell)

    assert result.exit_code == 0
    assert f"_WEARON_COMPLETE={shell}_complete" in result.stdout


def test_program_runs_the_command_line() -> None:
    """The same commands as `python -m entrypoints.cli`."""
    done = subprocess.run([str(WEARON), "--help"], capture_output=True, text=True, check=True)

    assert all(name in done.stdout for name in main.commands)
