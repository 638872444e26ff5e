import os
from pathlib import Path

from kvstore.kvctl.commands.completion_show import Shell, completion_script
from kvstore.kvctl.formats import write
from kvstore.kvctl.session import Session


async def completion_install(_: Session, shell: Shell) -> None:
    """Write the completion script of a shell to where the shell looks for it; start-up files are left alone.

    Example:

    kvctl completion install bash
    """
    path = _folder(shell) / {Shell.BASH: "kvctl", Shell.ZSH: "_kvctl", Shell.FISH: "kvctl.fish"}[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(completion_script(shell) + "\n")
    write(f"wrote {path}; it works in new shells")
    if shell is Shell.ZSH:
        write("if ~/.zshrc does not have it yet, add: fpath+=~/.zfunc; autoload -Uz compinit; compinit")


def _folder(shell: Shell) -> Path:
    home = Path.home()
    if shell is Shell.BASH:
        return Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share", "bash-completion/completions")
    if shell is Shell.ZSH:
        return home / ".zfunc"
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "fish/completions")
