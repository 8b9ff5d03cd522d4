"""The commands of the README and of docs/deployment.md run as they are written, on a real stack.

That every fenced block of the two pages is accounted for is shown in ``test_pages``.
"""

import asyncio
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.docs.pages import ROOT, Block, Step, blocks, pages, steps
from tests.docs.terminal import Ran, Terminal, looks_like, needs_programs
from tests.system.deployment import free_port

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.processes,
    needs_programs,
]

README, DEPLOYMENT = "README.md", "docs/deployment.md"
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
PORT = "127.0.0.1:8000"
"""Where the pages have the API; in the test it gets a free port."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What ``wearon dev`` runs. ``folder`` is where a reader would have the repository."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def wait_until_ready(self) -> None:
        """It has said what to do with it."""
        log = self.folder / "dev.log"
        deadline = time.monotonic() + READY_SECONDS
        while "Ctrl-C stops" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def urls(self) -> dict[str, str]:
        """DATABASE_URL and REDIS_URL, as ``wearon dev`` leaves them to other commands."""
        lines = (self.folder / ".wearon" / "env").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines)
        return {name: shlex.split(values[name])[0] for name in ("DATABASE_URL", "REDIS_URL")}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """It comes up while the first commands run, so use it after ``wait_until_ready``."""
    # Not tmp_path: where we are root, the servers run as a user who cannot enter that.
    folder = Path(tempfile.mkdtemp(prefix="wearon-test-"))
    folder.chmod(0o755)
    (folder / ".venv").symlink_to(sys.prefix)
    port = free_port()
    arguments = ("dev", "--port", str(port), "--data-dir", ".wearon")
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "entrypoints.cli", *arguments],
            cwd=folder,
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Stack(folder, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            shutil.rmtree(folder)


def run_page(page: str, run: Callable[[Step], Ran], errors: Callable[[], str]) -> None:
    """Run every command of the page; fail at the first one that does not do what the page says."""
    for block in blocks(pages()[page]):
        if block.language != "console":
            continue
        for step in steps(block):
            ran = run(step)
            where = f"{page}:{step.line}: {step.command}"
            assert ran.exit_code == 0, f"{where}\nexit code {ran.exit_code}\n{ran}\n{errors()}"
            if step.output:
                assert looks_like(step.output, ran.output), f"{where}\n{ran.output}\n{errors()}"


def recipe(target: str) -> str:
    """The command behind ``make TARGET``, of the targets that a reader may run here."""
    found = re.search(
        rf"^{target}:.*\n\t@\$\(RUN\) (wearon .+)$",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert found, f"no way to run `make {target}`"
    return found[1]


def test_readme_commands(stack: Stack) -> None:
    """Each command of the README succeeds in the order of the page, and its output has the shape
    that the page shows. `make demo` and `make dev` run what they run, without their environment's
    setup."""
    with Terminal(stack.folder) as terminal:

        def run(step: Step) -> Ran:
            command = step.command.replace(PORT, f"127.0.0.1:{stack.port}")
            if command.startswith("make "):
                command = recipe(shlex.split(command, comments=True)[1])
            if command == "wearon dev":
                stack.wait_until_ready()
                return Ran(0, "")
            return terminal.run(command)

        run_page(README, run, terminal.errors)


def test_deployment_commands(stack: Stack) -> None:
    """Each command of docs/deployment.md succeeds in the order of the page, in production settings,
    on a database and a Redis of its own."""
    stack.wait_until_ready()
    folder = stack.folder / "deployment"
    folder.mkdir()
    port = free_port()
    urls = stack.urls()
    settings = settings_blocks()[0] | {
        "DATABASE_URL": asyncio.run(with_new_database(urls["DATABASE_URL"])),
        "REDIS_URL": urls["REDIS_URL"] + "?db=1",
        "WEARON_DATA_DIR": str(folder / "data"),
        "WEARON_PORT": str(port),
    }
    (folder / "wearon.env").write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    )
    with Terminal(folder) as terminal:
        run_page(
            DEPLOYMENT,
            lambda step: terminal.run(step.command.replace(PORT, f"127.0.0.1:{port}")),
            terminal.errors,
        )


async def with_new_database(url: str) -> str:
    """The URL of an empty database beside the one that ``url`` names."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE DATABASE deployment")
    finally:
        await connection.close()
    return url.replace("@/wearon?", "@/deployment?")


def test_settings_of_deployment_load(stack: Stack) -> None:
    """The settings of the page are accepted, with secrets of one's own: the least that production
    needs, which the commands run with, and each further block on top of it."""
    stack.wait_until_ready()
    least, *further = settings_blocks()

    for block in further:
        loaded = subprocess.run(
            [sys.executable, "-P", "-m", "entrypoints.cli", "queue", "status"],
            env=least | block | stack.urls(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert loaded.returncode == 0, loaded.stderr

    assert further


def settings_blocks() -> list[dict[str, str]]:
    """The blocks of environment variables, in the order of the page. Production refuses the samples
    of secrets, so a reader's own take their place."""
    return [
        dict(with_own_secret(line) for line in block.text.splitlines())
        for block in ini_blocks()
        if "[Service]" not in block.text
    ]


def with_own_secret(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    is_secret = name.startswith("WEARON_") and name.endswith("_SECRET")
    return name, secrets.token_hex(32) if is_secret else value


def ini_blocks() -> list[Block]:
    return [block for block in blocks(pages()[DEPLOYMENT]) if block.language == "ini"]
