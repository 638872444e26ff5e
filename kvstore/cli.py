"""The command `kvstore`: run one member, or a whole cluster on this machine.

Heavy modules are imported inside the commands, so that --help and completion answer at once.
"""

import os
import sys
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Final

import typer

from kvstore.config import SettingsError, resolve
from kvstore.flags import SETTINGS, Setting

USAGE_ERROR: Final = 2  # as every other wrong command line

# grpc writes to stderr by itself, before any logging: what matters of it comes back as an error. Its fork
# handlers are for children that go on using grpc; ours become other programs.
GRPC_ENVIRONMENT: Final = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}

app = typer.Typer(
    name="kvstore",
    help="A replicated key-value store that speaks etcd's v3 API.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Example: kvstore local --size 3",
)


def serve(**flags: str | None) -> None:
    """Run one member. Without flags: a cluster of one on etcd's ports.

    [bold]kvstore serve[/bold]

    [bold]kvstore serve --name a --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380
    --listen-peer-urls http://10.0.0.1:2380 --initial-advertise-peer-urls http://10.0.0.1:2380
    --listen-client-urls http://10.0.0.1:2379 --advertise-client-urls http://10.0.0.1:2379[/bold]
    """
    try:
        config = resolve({name.replace("_", "-"): text for name, text in flags.items() if text is not None})
    except SettingsError as error:
        typer.echo(f"kvstore: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from None
    from kvstore.app import run

    raise typer.Exit(run(config))


def _parameter(setting: Setting) -> Parameter:
    """One option of `serve`; all are texts here, config.resolve reads them."""
    option = typer.Option(
        f"--{setting.flag}",
        metavar=setting.kind.removeprefix("choice:").upper(),
        help=setting.help + (f" Default: {setting.default}" if setting.default else ""),
        hidden=setting.accepts is not None or setting.ignored,
        rich_help_panel=setting.panel,
        show_default=False,
    )
    name = setting.flag.replace("-", "_")
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


# The options of `serve` are flags.SETTINGS, so its signature is made from that table.
serve.__signature__ = Signature([_parameter(setting) for setting in SETTINGS.values()])  # type: ignore[attr-defined]
app.command(
    epilog="Each flag is also an environment variable, KVSTORE_DATA_DIR or ETCD_DATA_DIR for --data-dir, "
    "and a key of the YAML file. Many more of etcd's flags are taken when they ask for what is done anyway.",
)(serve)


def as_ours(argument: str) -> str:
    """A flag as Go programs take it: -name=x is --name=x, --pre-vote is --pre-vote=true."""
    if not argument.startswith("-"):
        return argument
    flag, equals, _ = argument.lstrip("-").partition("=")
    if flag not in SETTINGS:
        return argument
    argument = f"--{argument.lstrip('-')}"
    return argument if equals or SETTINGS[flag].kind != "bool" else f"{argument}=true"


@app.command()
def local(
    size: Annotated[int, typer.Option(min=1, max=9, help="How many members.")] = 3,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keeps the data between runs. Default: a directory that is removed at the end.")
    ] = None,
    base_port: Annotated[
        int, typer.Option(min=1, max=65_000, help="Client ports from here on, peer ports right behind them.")
    ] = 2379,
    tour: Annotated[bool, typer.Option("--tour", help="Play a short guided tour first.")] = False,
) -> None:
    """Run a cluster of separate processes on this machine, until Ctrl-C.

    [bold]kvstore local[/bold]                                  three members on 2379, 2381 and 2383

    [bold]kvstore local --size 5 --data-dir ./data[/bold]       kept, and found again by the next run

    [bold]kvstore local --tour[/bold]                           see it lose its leader, and nothing else
    """
    from kvstore.local import LocalError, run_local

    try:
        raise typer.Exit(run_local(size, data_dir, base_port, tour))
    except LocalError as error:
        typer.echo(f"kvstore: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def version() -> None:
    """Print the version, and the one that etcd's clients are told.

    [bold]kvstore version[/bold]
    """
    from kvstore.version import ETCD_VERSION, VERSION

    typer.echo(f"kvstore {VERSION}")
    typer.echo(f"etcd API {ETCD_VERSION}")


def main() -> None:
    """The entry point of the command."""
    os.environ.update(GRPC_ENVIRONMENT | os.environ)
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        arguments = [as_ours(argument) for argument in arguments]
    app(prog_name="kvstore", args=arguments)


if __name__ == "__main__":
    main()
