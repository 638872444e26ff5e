from enum import StrEnum

from kvstore.kvctl.formats import write
from kvstore.kvctl.session import Session


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


async def completion_show(_: Session, shell: Shell) -> None:
    """Print the completion script of a shell.

    Example, for the shell you are in:

    source <(kvctl completion show bash)
    """
    write(completion_script(shell))


def completion_script(shell: Shell) -> str:
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # not in its __all__

    return get_completion_script(prog_name="kvctl", complete_var="_KVCTL_COMPLETE", shell=shell.value)
