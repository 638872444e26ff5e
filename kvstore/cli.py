"""The command `kvstore`: run one member, or a whole cluster on this machine. Begins in entry.py.

Heavy modules are imported inside the commands, so that --help and completion answer at once.
"""

from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated

import typer

from kvstore.flags import SETTINGS, Setting
from kvstore.restore import restore

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
    from kvstore import entry

    given = {name.replace("_", "-"): text for name, text in flags.items() if text is not None}
    raise typer.Exit(entry.serve(given))


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


app.command()(restore)


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
