"""Commands that run something: the API, a worker, a migration, or all of it at once."""

import os
import socket
from pathlib import Path

import rich_click as click

from entrypoints.cli.output import json_option, print_json, print_table, run


@click.command()
def serve() -> None:
    """Run the HTTP API until SIGTERM, then finish the requests in flight."""
    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.http.server import serve_http  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared("jwt_secret", *settings.for_storage)
    _require_free(settings.host, settings.port, "WEARON_PORT")
    serve_http(settings)


def _require_free(host: str, port: int, option: str) -> None:
    """Raise now, in words, what would end as a traceback of the server's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise click.ClickException(
            f"{option}: cannot listen on {host}, port {port}: {error.strerror}"
        ) from error


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1_000),
    help="Tasks at once.  [default: WEARON_WORKER_CONCURRENCY]",
)
@click.option("--no-recovery", is_flag=True, help="Leave recovery to other workers.")
@click.option("--once", is_flag=True, help="Do what waits now, then end: for cron jobs and tests.")
@click.pass_context
def worker(
    context: click.Context, concurrency: int | None, *, no_recovery: bool, once: bool
) -> None:
    """Take tasks and make pictures until SIGTERM, then finish what is in hand.

    Recovery (lost tasks, dead workers, missing refunds) runs beside it. At least one worker must
    run it; any number may.

    What is not finished WEARON_DRAIN_SECONDS after SIGTERM or Ctrl-C goes back to the queue for
    another worker; a second signal gives it back at once.

    With --once, recovery runs once, then tasks are taken until each of the slots has found the
    queue empty; nothing is waited for, neither new tasks nor sessions that wait for another
    attempt.

    \b
    Exit codes:
      0   it was told to stop and came to rest; with --once: or took all that waited
      1   it failed: a setting, or an error that nobody expects, which is in the log
      2   the command line cannot be understood
      75  with --once: work may be left, since the database or Redis did not answer, recovery
          failed, or the generator turned everybody away; try again later
    """
    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.worker import run_worker  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared(*settings.for_storage, *settings.for_generator)
    done = run_worker(settings, concurrency=concurrency, recovery=not no_recovery, once=once)
    if not done:
        context.exit(os.EX_TEMPFAIL)


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Bring the database's tables up to date. Safe to repeat, and to run twice at once."""
    applied = run(lambda container: container.migrate()())
    if as_json:
        print_json({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to do")


@click.command("settings")
@click.option("--env", "as_env", is_flag=True, help="Print a file to fill in: `.env.example`.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print `docs/settings.md`.")
@json_option
def list_settings(*, as_env: bool, as_markdown: bool, as_json: bool) -> None:
    """List the environment variables with their defaults, allowed values and descriptions."""
    from config.reference import env_example, markdown_page, variables  # noqa: PLC0415

    if as_env:
        click.echo(env_example(), nl=False)
    elif as_markdown:
        click.echo(markdown_page(), nl=False)
    elif as_json:
        print_json(variables())
    else:
        print_table(
            ("VARIABLE", "DEFAULT", "DESCRIPTION"),
            [
                (item.name, item.default or None, f"{item.description} ({item.allowed})")
                for item in variables()
            ],
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
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=".wearon",
    show_default=True,
    envvar="WEARON_DATA_DIR",
    help="Where data is kept.",
)
@click.option("--in-memory", is_flag=True, help="One process, no server; all is gone at exit.")
def dev(port: int, data_dir: Path, *, in_memory: bool) -> None:
    """Start everything on this machine: PostgreSQL, Redis, API, worker, a demo user and store.

    DATABASE_URL and REDIS_URL are used where they are set, and so are the settings that do not
    say what runs where. A second start finds the first one's data.
    """
    from entrypoints import dev as development  # noqa: PLC0415

    _require_free("127.0.0.1", port, "--port")
    if in_memory:
        development.run_in_memory(port)
    else:
        development.run_stack(port, data_dir)


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=".wearon/demo",
    show_default=True,
    help="Where data is kept.",
)
@click.option(
    "--provider",
    type=click.Choice(["local", "openai", "replicate"]),
    default="local",
    show_default=True,
    help="Who makes the pictures; others than `local` are paid for by OPENAI_API_KEY or"
    " REPLICATE_API_TOKEN.",
)
@click.option("--base-url", metavar="URL", help="Where the provider is, or one like it.")
def demo(data_dir: Path, provider: str, base_url: str | None) -> None:
    """Two try-ons, a user's and a store's, from the HTTP request to the picture.

    Brings its own servers, on free ports, and stops them: no settings are needed or heeded, but
    those of the provider that is asked for (WEARON_OPENAI_..., WEARON_REPLICATE_...).
    """
    from entrypoints.demo import run_demo  # noqa: PLC0415

    if base_url is not None and provider == "local":
        raise click.UsageError("--base-url is for --provider openai or replicate.")
    run_demo(data_dir, provider, base_url)
