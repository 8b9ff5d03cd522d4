"""What every test may use, and how the suite is run."""

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.suite import needs

if TYPE_CHECKING:
    from adapters.embedded.postgres import EmbeddedPostgres
    from adapters.embedded.valkey import EmbeddedValkey

# The same examples in every run, so that a red build is red for everybody; no deadline, because
# a test that shares its processors with others has no steady pace.
settings.register_profile("wearon", deadline=None, derandomize=True)
settings.register_profile("quick", parent=settings.get_profile("wearon"), max_examples=20)
settings.load_profile("wearon")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="a fifth of the examples of each property, one simulated seed of 25, and of the "
        "planned faults one at a time",
    )
    parser.addoption(
        "--patient",
        action="store_true",
        help="also the tests that wait for half a minute until a process counts as gone",
    )
    parser.addoption(
        "--fuzz-examples",
        type=int,
        help="how many requests are drawn from the OpenAPI document for each operation",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        settings.load_profile("quick")
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    needs.GUARD.watch(patch)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--patient"):
        items[:] = [item for item in items if item.get_closest_marker("patient") is None]
    for item in items:
        needs.mark(item)
    if hasattr(config, "workerinput"):  # one of several processes
        from tests.suite.schedule import rank  # noqa: PLC0415 - imports xdist

        items.sort(key=lambda item: rank(item.nodeid))


def pytest_collection_finish() -> None:
    """Keep the tests and all modules out of garbage collections, of which each would look through
    them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.suite.schedule import UnitScheduling  # noqa: PLC0415 - imports xdist

    config.option.loadscopereorder = False
    return UnitScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    log_plainly()
    with needs.GUARD.only(needs.marked(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with needs.GUARD.only(needs.marked(item)):
        yield


def log_plainly() -> None:
    """Spare what is logged unconfigured its coloured tracebacks: one takes longer than a test."""
    structlog: Any = sys.modules.get("structlog")
    if structlog is not None and structlog.configure.__name__ != _configure_uncached.__name__:
        structlog.configure = partial(_configure_uncached, structlog.configure)
        structlog.configure.__name__ = _configure_uncached.__name__
    if structlog is not None and not structlog.is_configured():
        plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def _configure_uncached(configure: Callable[..., None], **options: Any) -> None:
    """Loggers of our modules would keep the configuration of the first test that used them."""
    configure(**{**options, "cache_logger_on_first_use": False})


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether a sample is enough for a test of thousands of runs."""
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> "Iterator[EmbeddedPostgres]":
    """A PostgreSQL with our tables, shared by the tests of one process: empty them first."""
    from tests.support import servers  # noqa: PLC0415 - imports the drivers

    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 service, shared by the tests of one process: each makes a bucket of its own."""
    from tests.support import servers  # noqa: PLC0415 - imports the drivers

    with servers.s3() as url:
        yield url


@pytest.fixture(scope="session")
def valkey() -> "Iterator[EmbeddedValkey]":
    """A Valkey, shared by the tests of one process: flush it first."""
    from tests.support import servers  # noqa: PLC0415 - imports the drivers

    with servers.valkey() as server:
        yield server
