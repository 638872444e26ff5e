"""The entry point of the command `kvstore`.

What reads command lines and paints help would stay in a member's memory for its whole life, a quarter of all that an
idle one needs. So `serve` with flags that are all known and complete starts without it; help, and whatever is wrong,
is cli.py's.
"""

import os
import sys
from typing import Final

from kvstore.config import ServerConfig, SettingsError, resolve
from kvstore.flags import SETTINGS

USAGE_ERROR: Final = 2  # as every other wrong command line

# grpc writes to stderr by itself, before any logging: what matters of it comes back as an error. Its fork
# handlers are for children that go on using grpc; ours become other programs.
GRPC_ENVIRONMENT: Final = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}


def main() -> None:
    os.environ.update(GRPC_ENVIRONMENT | os.environ)
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        arguments[1:] = [as_ours(argument) for argument in arguments[1:]]
        flags = known_flags(arguments[1:])
        if flags is not None:
            sys.exit(serve(flags))
    from kvstore.cli import app

    app(prog_name="kvstore", args=arguments)


def serve(flags: dict[str, str]) -> int:
    """Run one member. Returns the exit code."""
    try:
        config = resolve(flags)
    except SettingsError as error:
        print(f"kvstore: {error}", file=sys.stderr)
        return USAGE_ERROR
    return serve_config(config)


def serve_config(config: ServerConfig) -> int:
    _load_structlog()
    from kvstore.app import run

    return run(config)


def _load_structlog() -> None:
    """Without rich, which it takes along where it is installed, to paint tracebacks on terminals."""
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails meanwhile
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


def as_ours(argument: str) -> str:
    """A flag as Go programs take it: -name=x is --name=x, --pre-vote is --pre-vote=true."""
    if not argument.startswith("-"):
        return argument
    flag, equals, _ = argument.lstrip("-").partition("=")
    if flag not in SETTINGS:
        return argument
    argument = f"--{argument.lstrip('-')}"
    return argument if equals or SETTINGS[flag].kind != "bool" else f"{argument}=true"


def known_flags(arguments: list[str]) -> dict[str, str] | None:
    """By name; None when there is anything else among them."""
    flags = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or flag not in SETTINGS:
            return None
        if not equals:
            text = next(rest, "-")
            if text.startswith("-"):
                return None
        flags[flag] = text
    return flags
