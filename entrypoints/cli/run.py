"""Commands that run the API, a worker, a migration, or everything at once."""

import os
import socket
from pathlib import Path

import rich_click as click
from click.core import ParameterSource

from entrypoints.cli.output import json_option, print_json, print_table, run


@click.command()
def serve() -> None:
    """Run the HTTP API until SIGTERM, then finish the requests in flight."""
    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.http.server import serve_http  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared(*settings.for_users, *settings.for_storage)
    _require_free(settings.host, settings.port, "WEARON_PORT")
    serve_http(settings)


def _require_free(host: str, port: int, option: str) -> None:
    """Fail with one line instead of the server's traceback."""
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
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    help="The port of /metrics.  [default: WEARON_METRICS_PORT]",
)
def console(*, metrics_port: int | None) -> None:
    """Run the operators' console until SIGTERM, on a port of its own.

    Outside development it needs an operator: see `wearon operators add`. It serves plain HTTP: let
    a proxy with TLS stand in front, unless only this machine reaches it.
    """
    from msgspec.structs import replace  # noqa: PLC0415

    from config.console import access  # noqa: PLC0415
    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.console.server import serve_console  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared("console_secret", *settings.for_storage)
    if metrics_port is not None:
        settings = replace(settings, metrics_port=metrics_port)
    _require_free(settings.console_host, settings.console_port, "WEARON_CONSOLE_PORT")
    run(lambda container: access(container).require_operators())
    serve_console(settings)


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1_000),
    help="The number of concurrent tasks.  [default: WEARON_WORKER_CONCURRENCY]",
)
@click.option("--no-recovery", is_flag=True, help="Leave recovery to other workers.")
@click.option(
    "--no-webhooks", is_flag=True, help="Leave the delivery of webhooks to other workers."
)
@click.option(
    "--once", is_flag=True, help="Process the waiting tasks, then exit: for cron jobs and tests."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    help="The port of /metrics; not with --once.  [default: WEARON_METRICS_PORT]",
)
@click.pass_context
def worker(
    context: click.Context,
    concurrency: int | None,
    *,
    metrics_port: int | None,
    no_recovery: bool,
    no_webhooks: bool,
    once: bool,
) -> None:
    """Process tasks until SIGTERM, then finish the tasks in progress.

    Recovery (lost tasks, dead workers, missing refunds) and the delivery of webhooks run in the
    same process. At least one worker has to run each of them; any number may.

    Tasks that are not finished WEARON_DRAIN_SECONDS after SIGTERM or Ctrl-C are requeued for
    another worker; a second signal requeues them immediately.

    With --once, recovery runs once, then tasks are processed until every slot has found the queue
    empty, then webhooks are delivered. New tasks and sessions between two attempts are not waited
    for.

    \b
    Exit codes:
      0   stopped cleanly on a signal (tasks finished or requeued); with
          --once, also: the queue was empty
      1   failed: an invalid setting, or an unexpected error (see the log)
      2   invalid command line
      75  with --once: tasks may be left, because the database or Redis did
          not answer, recovery failed, or the provider rejected every
          request (circuit open); try again later
    """
    from msgspec.structs import replace  # noqa: PLC0415

    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.worker import run_worker  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared(*settings.for_storage, *settings.for_generator)
    if metrics_port is not None:
        settings = replace(settings, metrics_port=metrics_port)
    done = run_worker(
        settings,
        concurrency=concurrency,
        recovery=not no_recovery,
        webhooks=not no_webhooks,
        once=once,
    )
    if not done:
        context.exit(os.EX_TEMPFAIL)


@click.command()
@click.option("--watch", is_flag=True, help="Go on at WEARON_RECOVERY_SECONDS until SIGTERM.")
@click.pass_context
def recover(context: click.Context, *, watch: bool) -> None:
    """Run recovery without a worker: refund, requeue, expire, and delete old pictures.

    For deployments whose tasks are worked on by other programs. It takes no task. Any number of
    processes may run it, beside any number of workers, which run it too.

    \b
    Exit codes:
      0   everything that was due is done, or stopped by a signal
      1   failed: an invalid setting, or an unexpected error (see the log)
      75  something is left, because the database, Redis or the picture
          storage did not answer; try again later
    """
    from config.loading import load_settings  # noqa: PLC0415
    from entrypoints.worker import run_recovery  # noqa: PLC0415

    settings = load_settings(os.environ)
    settings.require_shared(*settings.for_storage)
    if not run_recovery(settings, watch=watch):
        context.exit(os.EX_TEMPFAIL)


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Migrate the database to the current schema. Safe to repeat and to run concurrently.

    A table's lock is waited for two seconds at a time, because all other work on the table waits
    behind it. Who holds the lock is printed on standard error.

    The group roles of docs/database.md are created, and privileges that no role should have are
    revoked. What this role may not do is printed on standard error, for an administrator.
    """
    applied = run(
        lambda container: container.migrate()(report=lambda line: click.echo(line, err=True))
    )
    if as_json:
        print_json({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to do")


@click.command("settings")
@click.option(
    "--env", "as_env", is_flag=True, help="Print a template of an environment file: `.env.example`."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print `docs/settings.md`.")
@json_option
def list_settings(*, as_env: bool, as_markdown: bool, as_json: bool) -> None:
    """List the environment variables with defaults, allowed values and descriptions."""
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
    help="The API's port on 127.0.0.1.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=".wearon",
    show_default=True,
    envvar="WEARON_DATA_DIR",
    help="The folder for all data.",
)
@click.option(
    "--in-memory", is_flag=True, help="One process without servers; all data is lost at exit."
)
@click.pass_context
def dev(context: click.Context, port: int, data_dir: Path, *, in_memory: bool) -> None:
    """Start a development stack: PostgreSQL, Redis, API, worker, console, a demo user and store.

    DATABASE_URL and REDIS_URL are used if they are set, and so are all settings except those that
    decide what runs where. The data is kept for the next start.
    """
    from entrypoints import dev as development  # noqa: PLC0415

    _require_free("127.0.0.1", port, _given_as(context, "port"))
    if in_memory:
        development.run_in_memory(port)
    else:
        folder = development.make_folder(data_dir, option=_given_as(context, "data_dir"))
        development.run_stack(port, folder)


def _given_as(context: click.Context, name: str) -> str:
    """What an option's value came from: its variable, or else the option itself."""
    option = next(option for option in context.command.params if option.name == name)
    is_variable = context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
    return str(option.envvar) if is_variable else option.opts[0]


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=".wearon/demo",
    show_default=True,
    help="The folder for all data.",
)
@click.option(
    "--provider",
    type=click.Choice(["local", "openai", "replicate"]),
    default="local",
    show_default=True,
    help="The picture generator; `openai` and `replicate` charge the owner of OPENAI_API_KEY or"
    " REPLICATE_API_TOKEN.",
)
@click.option("--base-url", metavar="URL", help="The URL of the provider, or of a compatible one.")
def demo(data_dir: Path, provider: str, base_url: str | None) -> None:
    """Run two try-ons, a user's and a store's, from the HTTP request to the picture.

    Starts its own servers on free ports and stops them. All settings are ignored except those of
    the chosen provider (WEARON_OPENAI_..., WEARON_REPLICATE_...).
    """
    from entrypoints.demo import run_demo  # noqa: PLC0415

    if base_url is not None and provider == "local":
        raise click.UsageError("--base-url requires --provider openai or replicate.")
    run_demo(data_dir, provider, base_url)
