"""One deployment for all system tests of a process. Its API runs; each test starts its workers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.deployment import Deployment


@pytest.fixture(scope="session")
def running() -> Iterator[Deployment]:
    """Open from the first test that uses it until the last one has ended."""
    # Not tmp_path: if we are root, the servers run as a user who cannot enter it.
    folder = Path(tempfile.mkdtemp(prefix="wearon-test-"))
    folder.chmod(0o755)
    deployment = Deployment(folder)
    try:
        deployment.open()
        yield deployment
    finally:
        deployment.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def deployed(running: Deployment) -> Iterator[Deployment]:
    """The deployment as it was opened, whatever the tests of other files did."""
    running.clear()
    with running.started():
        yield running


@pytest.fixture
def deployment(deployed: Deployment) -> Iterator[Deployment]:
    """The deployment, without the processes that other tests started."""
    with deployed.started():
        yield deployed
