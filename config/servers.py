"""The servers of development and the demo: those that the environment names, or embedded servers
that stop with this process."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.processes import EmbeddedUnavailable
from adapters.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedUnavailable", "servers"]


@contextmanager
def servers(environ: Mapping[str, str], data_dir: Path) -> Iterator[dict[str, str]]:
    """The variables that name a running PostgreSQL and Redis. Those that ``environ`` does not name
    are started.

    Raises ``EmbeddedUnavailable``, which says what to install.
    """
    with ExitStack() as stack:
        urls = {name: environ.get(name, "") for name in ("DATABASE_URL", "REDIS_URL")}
        if not urls["DATABASE_URL"]:
            postgres = stack.enter_context(EmbeddedPostgres(data_dir / "postgres"))
            urls["DATABASE_URL"] = postgres.url()
        if not urls["REDIS_URL"]:
            urls["REDIS_URL"] = stack.enter_context(EmbeddedValkey(data_dir / "valkey")).url
        yield urls
