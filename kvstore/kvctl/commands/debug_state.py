from pathlib import Path
from typing import Annotated, Any

import typer

from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def debug_state(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A data directory, or the state directory in it.")],
    keys: Annotated[bool, typer.Option("--keys", help="Also list the live keys.")] = False,
    prefix: Annotated[str, typer.Option("--prefix", help="With --keys: only those that begin with it.")] = "",
    show_values: Annotated[bool, typer.Option("--show-values", help="Print what users stored, not its size.")] = False,
) -> None:
    """Print a member's state from its files: applied index, revisions, members, leases, rows of each kind.

    Reads only. It is what the last flush made durable: what was applied after it is in the Raft log, see
    `kvctl debug log`. No member may be running on the directory.

    Examples:

    kvctl debug state data/a

    kvctl debug state data/a --keys --prefix config/ --show-values -w json
    """
    from kvstore.debug import state
    from kvstore.debug.directory import NotThere

    json = session.write_out is WriteOut.JSON
    try:
        store = state.open_state(path)
        try:
            summary = state.summary(store)
            write_json(summary) if json else _write_summary(summary)
            if keys:
                for key in state.keys(store, prefix.encode(errors="surrogateescape"), show_values):
                    write_json(key) if json else _write_key(key)
        finally:
            store.close()
    except (NotThere, state.StoreError) as error:
        raise Failure(str(error)) from None


def _write_summary(summary: dict[str, Any]) -> None:
    for name in ("path", "applied", "revision", "compact_revision", "cluster"):
        write(f"# {name:<24} {summary[name]}")
    for member in summary["members"]:
        write(f"# {'member':<24} {_fields(member)}")
    for removed in summary["removed"]:
        write(f"# {'removed member':<24} {removed}")
    for lease in summary["leases"]:
        write(f"# {'lease':<24} {_fields(lease)}")
    for kind, count in summary["rows"].items():
        write(f"# {kind:<24} {count:,} rows")


def _write_key(key: dict[str, Any]) -> None:
    write(f"{key.pop('key')}   {_fields(key)}")


def _fields(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in fields.items())
