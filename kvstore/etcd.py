"""The command `kvstore-etcd`: a member, started as etcd is. Link it as `etcd`, and what starts an etcd starts us.

It is `kvstore serve` with what an etcd's user expects where the two differ: no verb, JSON lines on stderr, the data in
<name>.etcd, `--version` in etcd's words. Flags, ETCD_* variables and --config-file are the same in both (flags.py).
"""

import os
import platform
import sys
from collections.abc import Mapping
from typing import Final

from kvstore import entry
from kvstore.config import ServerConfig, SettingsError, resolve
from kvstore.flags import SETTINGS
from kvstore.version import ETCD_VERSION, VERSION

DEFAULTS: Final = {"log-format": "json"}
OS_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def main() -> None:
    os.environ.update(entry.GRPC_ENVIRONMENT | os.environ)
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-version"]):
        print(version())
        return
    if not {"-h", "-help", "--help"}.isdisjoint(arguments):
        from kvstore.cli import app

        app(prog_name="etcd", args=["serve", "--help"])
    try:
        config = settings(arguments, os.environ)
    except SettingsError as error:
        print(f"etcd: {error}", file=sys.stderr)
        sys.exit(entry.USAGE_ERROR)
    sys.exit(entry.serve_config(config))


def settings(arguments: list[str], environment: Mapping[str, str]) -> ServerConfig:
    """Raises SettingsError."""
    flags = go_flags(arguments)
    name = resolve(flags, environment).name
    return resolve(flags, environment, DEFAULTS | {"data-dir": f"{name}.etcd"})


def go_flags(arguments: list[str]) -> dict[str, str]:
    """By name, as Go's programs read them: the value of a flag may begin with a dash, that of a bool may be missing."""
    flags = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            raise SettingsError(f"{argument!r} is not a flag; a member has no commands (`kvctl` has)")
        flag, equals, text = entry.as_ours(argument).lstrip("-").partition("=")
        if not equals and flag in SETTINGS:
            found = next(rest, None)
            if found is None:
                raise SettingsError(f"{argument}: a value is needed")
            text = found
        flags[flag] = text
    return flags


def version() -> str:
    """The lines that tools parse. What we are stands where etcd tells its commit."""
    machine = platform.machine()
    return "\n".join(
        (
            f"etcd Version: {ETCD_VERSION}",
            f"Git SHA: kvstore-{VERSION}",
            f"Go Version: none (Python {platform.python_version()})",
            f"Go OS/Arch: {sys.platform}/{OS_NAMES.get(machine, machine)}",
        )
    )


if __name__ == "__main__":
    main()
