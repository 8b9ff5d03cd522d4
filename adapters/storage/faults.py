"""Translation of obstore's errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError

from domain.errors import TryAgain


@contextmanager
def faults_translated() -> Iterator[None]:
    """Raises ``TryAgain`` for every failure of the storage."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise TryAgain("The picture storage does not answer") from error
