"""The ``wearon`` command. Heavy imports are deferred until a command runs: help stays fast."""

import rich_click as click

from entrypoints.cli.completion import completion
from entrypoints.cli.costs import show_costs
from entrypoints.cli.dead import dead_group
from entrypoints.cli.doctor import doctor
from entrypoints.cli.find import find
from entrypoints.cli.operate import credits_group, keys_group, queue_group
from entrypoints.cli.operators import operators_group
from entrypoints.cli.output import CommandGroup
from entrypoints.cli.owners import audit_group, owners_group
from entrypoints.cli.pauses import pause, resume
from entrypoints.cli.run import console, demo, dev, list_settings, migrate, recover, serve, worker
from entrypoints.cli.services import services_group
from entrypoints.cli.sessions import sessions_group
from entrypoints.cli.status import status
from entrypoints.cli.storage import storage_group
from entrypoints.cli.stores import stores_group
from entrypoints.cli.tokens import tokens_group
from entrypoints.cli.webhooks import webhooks_group

click.rich_click.COMMAND_GROUPS = {
    "wearon": [
        {"name": "Try it", "commands": ["demo", "dev"]},
        {
            "name": "Run it",
            "commands": ["settings", "migrate", "serve", "worker", "recover", "console"],
        },
        {
            "name": "Operate it",
            "commands": [
                "status",
                "find",
                "doctor",
                "sessions",
                "queue",
                "dead",
                "storage",
                "pause",
                "resume",
                "costs",
            ],
        },
        {
            "name": "Manage accounts",
            "commands": [
                "stores",
                "owners",
                "credits",
                "keys",
                "tokens",
                "webhooks",
                "services",
                "audit",
                "operators",
            ],
        },
        {"name": "Your shell", "commands": ["completion"]},
    ]
}


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wearon")
def main() -> None:
    """wearon turns virtual try-on requests into pictures, and loses no request and no credit.

    New here? `wearon demo` shows two requests from start to end in a few seconds, and `wearon dev`
    starts a stack to experiment with. Both bring their own PostgreSQL and Redis.

    All other commands are configured by environment variables: see `wearon settings`.
    """


for command in (
    demo,
    dev,
    list_settings,
    migrate,
    serve,
    worker,
    recover,
    status,
    find,
    doctor,
    console,
    sessions_group,
    tokens_group,
    queue_group,
    dead_group,
    storage_group,
    pause,
    resume,
    show_costs,
    stores_group,
    owners_group,
    credits_group,
    keys_group,
    webhooks_group,
    services_group,
    audit_group,
    completion,
    operators_group,
):
    main.add_command(command)
