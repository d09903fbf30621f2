"""`rota completion`."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_ROTA_COMPLETE"


@click.command(
    epilog="""\b
Where to write it:
  eval "$(rota completion bash)"    in ~/.bashrc
  eval "$(rota completion zsh)"     in ~/.zshrc, behind: autoload -Uz compinit && compinit
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
