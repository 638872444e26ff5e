import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvstore.kvctl.commands.put import argument_bytes
from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import flush
from kvstore.kvctl.printers import write_result
from kvstore.kvctl.session import Session
from kvstore.kvctl.signals import Stopped, first, stopping, unless, until

if TYPE_CHECKING:
    from kvstore.client import Lock

LOST: Final = "the lock was lost: no sign of life of ours reached the cluster for the whole --ttl"


async def lock(
    session: Session,
    name: Annotated[str, typer.Argument(help="Its holders and waiters are the keys NAME/...")],
    command: Annotated[
        list[str] | None, typer.Argument(help="Run while it is held; put -- before options of its own.")
    ] = None,
    ttl: Annotated[int, typer.Option(min=1, help="Seconds after which a silent holder loses it.")] = 10,
) -> None:
    """Wait for a lock; hold it while a command runs, or until Ctrl-C.

    Meets `etcdctl lock` in one queue. The command finds ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment, and its
    exit code becomes ours. When the lock is lost, the command gets SIGTERM.

    Examples:

    kvctl lock nightly ./backup.sh

    kvctl lock nightly -- rsync -a data/ backup/

    kvctl lock nightly
    """
    session.no_table("lock")
    code = 0
    with stopping() as stopped:
        async with session.client() as client, AsyncExitStack() as stack:
            entering = stack.enter_async_context(client.lock(argument_bytes(name), ttl))
            held = await unless(stopped, entering)
            if command:
                code = await run_held(held, command, stopped)
            else:
                write_result(await client.get(held.key), session.write_out)
                flush()
                if not await until(stopped, held.lost()):
                    raise Failure(LOST)
    if code:
        raise typer.Exit(code)


async def run_held(held: "Lock", command: list[str], stopped: Stopped) -> int:
    """The command's exit code; 128 and the signal's number when one ended it, as in shells."""
    if stopped.done():
        raise asyncio.CancelledError
    own = {"ETCD_LOCK_KEY": os.fsdecode(held.key), "ETCD_LOCK_REV": str(held.header.revision)}
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **own})
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from None
    running, lost = asyncio.create_task(process.wait()), asyncio.create_task(held.lost())
    await first(running, lost, stopped)
    if stopped.done():
        if stopped.result() is signal.SIGTERM:  # from a terminal it gets SIGINT by itself
            terminate(process)
        await first(running, lost)
    if not running.done():
        terminate(process)
        await running
        raise Failure(LOST)
    lost.cancel()
    code = running.result()
    return code if code >= 0 else 128 - code


def terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
