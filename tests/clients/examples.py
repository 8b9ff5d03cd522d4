"""The examples of the clients' READMEs."""

import os
import subprocess
import sys
from pathlib import Path

from tests.clients.drivers import PYTHON, TYPESCRIPT, require_node
from tests.docs.pages import Block, blocks


def example(folder: Path) -> Block:
    """The one block of code of a client's README."""
    (block,) = blocks((folder / "README.md").read_text("utf-8"))
    return block


def run_python(url: str, token: str, picture: bytes, folder: Path) -> list[str]:
    """What the Python example prints."""
    command = [sys.executable, "-Wignore", "-c", example(PYTHON).text]
    return _run(command, url, token, picture, folder)


def run_javascript(url: str, token: str, picture: bytes, folder: Path) -> list[str]:
    """What the JavaScript example prints, in a folder where the client is installed."""
    (folder / "example.mjs").write_text(example(TYPESCRIPT).text)
    return _run([require_node(), "example.mjs"], url, token, picture, folder)


def _run(command: list[str], url: str, token: str, picture: bytes, folder: Path) -> list[str]:
    (folder / "person.jpg").write_bytes(picture)
    settings = {"WEARON_URL": url, "WEARON_TOKEN": token, "PYTHONPATH": str(PYTHON / "src")}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()
