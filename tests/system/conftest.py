"""One deployment per test file; its API runs, workers are each test's own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.deployment import Deployment, kill


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployment]:
    # Not tmp_path: where we are root, the servers run as a user who cannot enter that.
    folder = Path(tempfile.mkdtemp(prefix="wearon-test-"))
    folder.chmod(0o755)
    deployment = Deployment(folder)
    try:
        deployment.open()
        yield deployment
    finally:
        deployment.close()
        shutil.rmtree(folder)


@pytest.fixture
def deployment(deployed: Deployment) -> Iterator[Deployment]:
    """The deployment, without workers before and after, and with its servers up."""
    api = deployed.processes[0]
    yield deployed
    for process in deployed.processes:
        if process is not api:
            kill(process)
