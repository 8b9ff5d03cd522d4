"""Use cases run on in-memory adapters and on time that waits for nobody."""

from typing import Any

import pytest

from tests.support.clock import VirtualTimeLoop
from tests.support.service import Service


@pytest.fixture(scope="package")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()
