"""``wearon completion``: the shell completes commands and options."""

import rich_click as click
from click.shell_completion import get_completion_class

PROGRAM = "wearon"
VARIABLE = "_WEARON_COMPLETE"
"""The variable by which the script asks the program, as click derives it from the name."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes `wearon` in SHELL.

    \b
    bash:  wearon completion bash > ~/.local/share/bash-completion/completions/wearon
    zsh:   wearon completion zsh > "${fpath[1]}/_wearon"
    fish:  wearon completion fish > ~/.config/fish/completions/wearon.fish
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise click.ClickException(f"No completion for {shell}.")
    click.echo(complete(context.find_root().command, {}, PROGRAM, VARIABLE).source())
