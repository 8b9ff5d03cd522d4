"""No log lines: a run has thousands, and formatting them takes longer than the run."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()
