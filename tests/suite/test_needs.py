"""A test has the markers that its declaration implies, and cannot use anything else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite.needs import marked, markers_of

REPOSITORY = Path(__file__).parents[2]

CULPRITS = """
import socket, subprocess, sys
from contextlib import suppress
import pytest
from adapters.embedded.valkey import SOCKET_NAME, EmbeddedValkey
from tests.support import servers

@pytest.mark.redis
def test_marked(valkey):
    connect(valkey)

def test_start():
    with servers.folder() as folder, EmbeddedValkey(folder / "valkey"):
        pass

def test_swallowed():
    with suppress(Exception), servers.valkey():
        pass

def test_connection(request):
    connect(request.getfixturevalue("valkey"))

def test_s3():
    with servers.s3():
        pass

def test_program():
    subprocess.run([sys.executable, "-m", "entrypoints.cli", "--version"])

def connect(server):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.sockets / SOCKET_NAME))
"""


@pytest.mark.parametrize(
    ("path", "fixtures", "parameters", "expected"),
    [
        ("tests/domain/test_credits.py", ["service"], [], set()),
        ("tests/adapters/test_plans.py", ["postgres"], [], {"postgres"}),
        ("tests/contracts/test_books.py", ["backend"], ["memory", 1], set()),
        ("tests/contracts/test_books.py", ["backend"], ["postgres", 1], {"postgres"}),
        ("tests/contracts/test_task_queue.py", ["queue_backend"], ["fakeredis"], set()),
        ("tests/contracts/test_task_queue.py", ["queue_backend"], ["valkey"], {"redis"}),
        ("tests/contracts/test_image_storage.py", ["storage"], ["s3 without locks"], {"s3"}),
        ("tests/adapters/test_pool.py", ["pool"], [], {"processes"}),
        ("tests/system/test_api.py", ["deployment"], [], {"postgres", "redis", "processes"}),
    ],
)
def test_markers_follow_from_the_declaration(
    path: str, fixtures: list[str], parameters: list[object], expected: set[str]
) -> None:
    """Folder or file, fixtures and parameters."""
    assert markers_of(Path(path).parts, fixtures, parameters) == expected


@pytest.mark.parametrize("backend", ["memory", "postgres"])
def test_collected_test_has_its_markers(request: pytest.FixtureRequest, backend: str) -> None:
    """Before the selection by ``-m``, and for each parameter."""
    assert marked(request.node) == ({"postgres"} if backend == "postgres" else set())


@pytest.mark.redis
def test_test_without_its_marker_fails(tmp_path: Path) -> None:
    """It starts no server and no program, and uses no server that another test has started; even if
    the code under test takes the refusal for an outage."""
    culprits = tmp_path / "test_culprits.py"
    culprits.write_text(CULPRITS)
    options = ["-c", f"{REPOSITORY}/pyproject.toml", "-p", "tests.conftest", "-rA", "--tb=no"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(culprits)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    outcomes = [line for line in done.stdout.splitlines() if "::" in line]
    failed = {line.partition("::")[2].partition(" ")[0] for line in outcomes if "FAILED" in line}
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert failed == {"test_start", "test_swallowed", "test_connection", "test_s3", "test_program"}
