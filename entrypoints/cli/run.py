"""Commands that run something: the API, a worker, a migration, or all of it at once."""

import os
from pathlib import Path

import rich_click as click

from entrypoints.cli.output import json_option, print_json, run


@click.command()
def serve() -> None:
    """Run the HTTP API until SIGTERM."""
    from config.settings import load_settings  # noqa: PLC0415
    from entrypoints.http.server import serve_http  # noqa: PLC0415

    serve_http(load_settings(os.environ))


@click.command()
@click.option("--concurrency", type=click.IntRange(1, 1_000), help="Tasks at once.")
@click.option("--no-recovery", is_flag=True, help="Leave recovery to other workers.")
def worker(concurrency: int | None, *, no_recovery: bool) -> None:
    """Take tasks and make pictures until SIGTERM, then finish what is in hand.

    Recovery (lost tasks, dead workers, missing refunds) runs beside it. At least one worker must
    run it; any number may.
    """
    from config.settings import load_settings  # noqa: PLC0415
    from entrypoints.worker import run_worker  # noqa: PLC0415

    run_worker(load_settings(os.environ), concurrency=concurrency, recovery=not no_recovery)


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Bring the database's tables up to date. Safe to repeat, and to run twice at once."""
    applied = run(lambda container: container.migrate())
    if as_json:
        print_json({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to do")


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where data is kept.  [default: .wearon]",
)


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=8000,
    show_default=True,
    envvar="WEARON_PORT",
    help="Where the API listens on 127.0.0.1.",
)
@data_dir_option
@click.option("--in-memory", is_flag=True, help="One process, no server; all is gone at exit.")
def dev(port: int, data_dir: Path | None, *, in_memory: bool) -> None:
    """Start everything on this machine: PostgreSQL, Redis, API, worker, a demo user and store.

    `DATABASE_URL` and `REDIS_URL` are used where they are set. A second start finds the first
    one's data.
    """
    from entrypoints import dev as development  # noqa: PLC0415

    if in_memory:
        development.run_in_memory(port)
    else:
        development.run_stack(port, data_dir or Path(".wearon"))


@click.command()
@data_dir_option
def demo(data_dir: Path | None) -> None:
    """Two try-ons, a user's and a store's, from the HTTP request to the picture."""
    from entrypoints.demo import run_demo  # noqa: PLC0415

    run_demo(data_dir or Path(".wearon/demo"))
