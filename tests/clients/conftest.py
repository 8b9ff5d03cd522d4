"""The three clients, and the server that they call."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.drivers import (
    TSC,
    TYPESCRIPT,
    AsyncDriver,
    Driver,
    NodeDriver,
    SyncDriver,
    missing_for_node,
    node_driver,
    require_node,
)
from tests.clients.fake import FakeApi, fake_api


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as server:
        yield server


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the TypeScript client as an installed package, type-checked and built."""
    require_node()
    folder = tmp_path_factory.mktemp("typescript")
    package = folder / "node_modules" / "wearon-client"
    command = [str(TSC), "--outDir", str(package / "dist")]
    done = subprocess.run(command, cwd=TYPESCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    shutil.copy(TYPESCRIPT / "package.json", package)
    return folder


@pytest.fixture(scope="session")
def node(built: Path) -> Iterator[NodeDriver]:
    with node_driver(built / "node_modules" / "wearon-client" / "dist") as driver:
        yield driver


@pytest.fixture(params=["sync", "async", "node"])
def client(request: pytest.FixtureRequest) -> Driver:
    """Each client in turn."""
    match request.param:
        case "sync":
            return SyncDriver()
        case "async":
            return AsyncDriver()
        case _:
            driver: Driver = request.getfixturevalue("node")
            return driver


@pytest.fixture
def clients(request: pytest.FixtureRequest) -> list[Driver]:
    """All clients that run here."""
    in_python: list[Driver] = [SyncDriver(), AsyncDriver()]
    return in_python if missing_for_node() else [*in_python, request.getfixturevalue("node")]
