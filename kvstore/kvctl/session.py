"""What every verb shares: the global options, a client, and how a failure ends the process.

`verb` turns `async def get(session, key, ...)` into a function that typer can read: it appends the global
options, so that they may stand before or behind the verb, and runs the coroutine. grpc and protobuf are
imported by `Session.client`, that is, only when a verb talks to a cluster.
"""

import asyncio
import getpass
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kvstore.client.errors import ClientError
from kvstore.kvctl.failures import ExitCode, Failure, explain
from kvstore.kvctl.settings import Settings, WriteOut, resolve

if TYPE_CHECKING:
    from kvstore.client import Client

_PANEL = "Global options"


def global_options(
    endpoints: Annotated[
        str | None,
        typer.Option(
            "--endpoints",
            help="[https://]host:port[,...]; also KVCTL_ENDPOINTS.",
            show_default="127.0.0.1:2379",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    write_out: Annotated[
        str | None,
        typer.Option(
            "--write-out", "-w", help="simple, json, table or fields.", show_default="simple", rich_help_panel=_PANEL
        ),
    ] = None,
    dial_timeout: Annotated[
        str | None,
        typer.Option(help="To connect to some member.", show_default="2s", rich_help_panel=_PANEL),
    ] = None,
    command_timeout: Annotated[
        str | None, typer.Option(help="Of one request.", show_default="5s", rich_help_panel=_PANEL)
    ] = None,
    cacert: Annotated[
        str | None,
        typer.Option("--cacert", help="Whose servers to believe; also KVCTL_CACERT.", rich_help_panel=_PANEL),
    ] = None,
    cert: Annotated[
        str | None, typer.Option("--cert", help="The certificate to show to servers.", rich_help_panel=_PANEL)
    ] = None,
    key_: Annotated[str | None, typer.Option("--key", help="Its key.", rich_help_panel=_PANEL)] = None,
    insecure_skip_tls_verify: Annotated[
        bool | None,
        typer.Option("--insecure-skip-tls-verify", help="Believe any server. For tests only.", rich_help_panel=_PANEL),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME[:PASSWORD]", help="Who asks; also KVCTL_USER.", rich_help_panel=_PANEL),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option("--password", help="Its password; also KVCTL_PASSWORD. Else it is asked.", rich_help_panel=_PANEL),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML with these options; also KVCTL_CONFIG.",
            show_default="~/.config/kvctl.yaml",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> dict[str, str | None]:
    """Their declaration; as a function it returns what was given. `key_`: verbs have a `key`."""
    return {
        "endpoints": endpoints,
        "write_out": write_out,
        "dial_timeout": dial_timeout,
        "command_timeout": command_timeout,
        "cacert": cacert,
        "cert": cert,
        "key": key_,
        "insecure_skip_tls_verify": None if insecure_skip_tls_verify is None else str(insecure_skip_tls_verify),
        "user": user,
        "password": password,
        "config": config,
    }


GLOBAL_PARAMETERS: Final = dict(inspect.signature(global_options).parameters)


_CONTEXT: Final = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _set_parameters(function: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Give a function of **arguments the signature that typer shall read."""
    # By keyword, so that a parameter without a default may follow one with it.
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}


def root_options(ctx: typer.Context, **given: Any) -> None:
    """For options before the verb: keep them for it."""
    ctx.obj = global_options(**given)


_set_parameters(root_options, [_CONTEXT, *GLOBAL_PARAMETERS.values()])


class Session:
    """One run of one verb."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def write_out(self) -> WriteOut:
        return self.settings.write_out

    def client(self, endpoints: tuple[str, ...] | None = None) -> "Client":
        from kvstore.client import Client
        from kvstore.rpc import ChannelTls

        settings = self.settings
        tls = ChannelTls(
            ca_file=settings.cacert,
            cert_file=settings.cert,
            key_file=settings.key,
            verify=not settings.insecure_skip_tls_verify,
        )
        return Client(
            endpoints or settings.endpoints,
            timeout=settings.command_timeout,
            dial_timeout=settings.dial_timeout,
            tls=tls if settings.asks_for_tls else None,
            user=settings.user,
            password=settings.password or (getpass.getpass("Password: ") if settings.user else ""),
        )

    def simple_or_json(self, verb: str) -> None:
        """For verbs that change something and print no rows: refuse before anything is sent."""
        if self.write_out not in (WriteOut.SIMPLE, WriteOut.JSON):
            raise Failure(f"{verb} prints no {self.write_out}; use -w simple or json", ExitCode.USAGE)

    def no_fields(self, verb: str) -> None:
        """For verbs that list names: refuse before anything is sent."""
        if self.write_out is WriteOut.FIELDS:
            raise Failure(f"{verb} prints no fields; use -w simple, json or table", ExitCode.USAGE)

    def no_table(self, verb: str) -> None:
        """For verbs whose answer is no table: refuse before anything is sent."""
        if self.write_out is WriteOut.TABLE:
            raise Failure(f"{verb} prints no table; use -w simple, json or fields", ExitCode.USAGE)


def verb(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(ctx: typer.Context, **arguments: Any) -> None:
        here = global_options(**{name: arguments.pop(name) for name in GLOBAL_PARAMETERS})
        before: dict[str, str | None] = ctx.find_root().obj or {}
        given = {name: value if value is not None else before.get(name) for name, value in here.items()}
        raise typer.Exit(run_reporting(function, given, arguments))

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    _set_parameters(run, [_CONTEXT, *own, *GLOBAL_PARAMETERS.values()])
    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    return run


def run_reporting(
    function: Callable[..., Awaitable[None]], given: dict[str, str | None], arguments: dict[str, Any]
) -> ExitCode:
    """Run a verb to its end: every failure is one line on stderr and an exit code."""

    async def main() -> None:
        await function(Session(resolve(given, given["config"], os.environ)), **arguments)
        sys.stdout.flush()

    try:
        asyncio.run(main())
    except ClientError as error:
        return report(explain(error))
    except Failure as failure:
        return report(failure)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nothing to report, and nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ERROR
    except (OSError, ValueError) as error:
        return report(Failure(str(error)))
    return ExitCode.OK


def report(failure: Failure) -> ExitCode:
    print("Error:", " ".join(str(failure).split()), file=sys.stderr)
    return failure.code
