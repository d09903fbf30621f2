"""`rota completion`."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_ROTA_COMPLETE"


@click.command(
    epilog="""\b
Examples:
  rota completion bash > ~/.local/share/bash-completion/completions/rota
  rota completion zsh > ~/.zfunc/_rota
  rota completion fish > ~/.config/fish/completions/rota.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options, and the names of jobs, nodes and queues."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(ctx.find_root().command, {}, "rota", _VARIABLE).source())
