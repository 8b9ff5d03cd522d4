"""The ``wearon`` command. Heavy imports wait until a command runs, so that help is quick."""

import rich_click as click

from entrypoints.cli.dead import dead_group
from entrypoints.cli.operate import credits_group, keys_group, queue_group, sessions_group
from entrypoints.cli.output import CommandGroup
from entrypoints.cli.run import demo, dev, list_settings, migrate, serve, worker

click.rich_click.COMMAND_GROUPS = {
    "wearon": [
        {"name": "Try it", "commands": ["demo", "dev"]},
        {"name": "Run it", "commands": ["settings", "migrate", "serve", "worker"]},
        {"name": "Look after it", "commands": ["sessions", "credits", "keys", "queue", "dead"]},
    ]
}


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wearon")
def main() -> None:
    """wearon turns virtual try-on requests into pictures; no credit and no request gets lost.

    New here? `wearon demo` shows the whole job in a few seconds and `wearon dev` starts a stack to
    play with. Both bring their own PostgreSQL and Redis.

    Everything else is told by environment variables where these are: `wearon settings`.
    """


for command in (
    demo,
    dev,
    list_settings,
    migrate,
    serve,
    worker,
    sessions_group,
    credits_group,
    keys_group,
    queue_group,
    dead_group,
):
    main.add_command(command)
