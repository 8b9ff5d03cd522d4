"""What every test may use."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from tests.support import servers

# The same examples in every run, so that a red build is red for everybody; no deadline, because
# what shares its processors with other tests has no steady pace.
settings.register_profile("wearon", deadline=None, derandomize=True)
settings.load_profile("wearon")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL with our tables, shared by the tests of one process: empty them first."""
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 service, shared by the tests of one process: each makes a bucket of its own."""
    with servers.s3() as url:
        yield url


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """A Valkey, shared by the tests of one process: flush it first."""
    with servers.valkey() as server:
        yield server
