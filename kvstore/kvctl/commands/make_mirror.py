import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvstore.client import errors
from kvstore.client.types import prefix_end
from kvstore.kvctl.commands.put import argument_bytes
from kvstore.kvctl.failures import usage
from kvstore.kvctl.formats import flush, write
from kvstore.kvctl.session import Session

if TYPE_CHECKING:
    from kvstore.client import Client
    from kvstore.client.txn import Request

PAGE_KEYS: Final = 1000
TXN_BYTES_MAX: Final = 512 * 1024
TOLD_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 1.0


async def make_mirror(
    session: Session,
    destination: Annotated[str, typer.Argument(help="Endpoints of the other cluster: host:port[,...]")],
    prefix: Annotated[str, typer.Option(help="Mirror what is below it.")] = "",
    dest_prefix: Annotated[str | None, typer.Option(help="Put in place of --prefix there.")] = None,
    no_dest_prefix: Annotated[bool, typer.Option("--no-dest-prefix", help="Take --prefix away there.")] = False,
    rev: Annotated[int, typer.Option(help="Copy nothing, and begin with the changes of this revision.")] = 0,
    max_txn_ops: Annotated[int, typer.Option(min=1, help="Changes in one transaction there.")] = 128,
    dest_cacert: Annotated[Path | None, typer.Option(help="Whose servers to believe there.")] = None,
    dest_cert: Annotated[Path | None, typer.Option(help="The certificate to show there.")] = None,
    dest_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Copy all keys to another cluster, and every change from then on, until Ctrl-C.

    What one revision changes here, one transaction changes there. Every 30 seconds it prints how many changes were
    made. Keys that are only there stay; leases are not taken along.

    Examples:

    kvctl make-mirror 10.0.1.1:2379

    kvctl make-mirror 10.0.1.1:2379 --prefix config/ --dest-prefix backup/config/
    """
    if no_dest_prefix and dest_prefix is not None:
        raise usage("make-mirror: give one of --dest-prefix and --no-dest-prefix")
    there = "" if no_dest_prefix else prefix if dest_prefix is None else dest_prefix
    endpoints = tuple(filter(None, (part.strip() for part in destination.split(","))))
    if not endpoints:
        raise usage("make-mirror: name an endpoint of the other cluster, such as 10.0.1.1:2379")
    if (dest_cert is None) != (dest_key is None):
        raise usage("make-mirror: --dest-cert and --dest-key belong together; give both")
    settings = replace(session.settings, endpoints=endpoints, cacert=dest_cacert, cert=dest_cert, key=dest_key)
    async with session.client() as source, Session(settings).client() as target:
        mirror = Mirror(source, target, argument_bytes(prefix), argument_bytes(there), max_txn_ops)
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(mirror.tell())
            try:
                await mirror.follow(rev if rev else await mirror.copy() + 1)
            finally:
                telling.cancel()


class Mirror:
    """One writer, which does one thing after the other: whatever was written twice is what it was."""

    def __init__(self, source: "Client", target: "Client", prefix: bytes, there: bytes, ops_max: int) -> None:
        self._source = source
        self._target = target
        self._prefix = prefix
        self._there = there
        self._ops_max = ops_max
        self._changes: dict[bytes, Request] = {}  # of one transaction, which may name a key only once
        self._bytes = 0
        self.total = 0

    async def copy(self) -> int:
        """All keys as they are now. Returns the revision."""
        key, end, revision = self._prefix or b"\0", prefix_end(self._prefix), 0
        while True:
            page = await self._source.get(key, end, limit=PAGE_KEYS, revision=revision)
            revision = revision or page.header.revision
            for kv in page.kvs:
                await self._add(kv.key, kv.value)
            await self._commit()
            if not page.more:
                return revision
            key = page.kvs[-1].key + b"\0"

    async def follow(self, revision: int) -> None:
        """Every change from a revision on."""
        async with self._source.watch(self._prefix, prefix=True, start_revision=revision) as watch:
            async for response in watch:
                last = 0
                for event in response.events:
                    if last and event.kv.mod_revision > last:
                        await self._commit()
                    last = event.kv.mod_revision
                    await self._add(event.kv.key, None if event.type == "DELETE" else event.kv.value)
                await self._commit()

    async def _add(self, key: bytes, value: bytes | None) -> None:
        from kvstore.client import txn

        key = self._there + key.removeprefix(self._prefix)
        size = len(key) + len(value or b"")
        if key in self._changes or len(self._changes) >= self._ops_max or self._bytes + size > TXN_BYTES_MAX:
            await self._commit()
        self._changes[key] = txn.delete(key) if value is None else txn.put(key, value)
        self._bytes += size

    async def _commit(self) -> None:
        if self._changes:
            changes = list(self._changes.values())
            await patiently(lambda: self._target.txn(then=changes))
            self.total += len(changes)
            self._changes.clear()
            self._bytes = 0

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(TOLD_SECONDS)
            write(str(self.total))
            flush()


async def patiently(call: Callable[[], Awaitable[object]]) -> None:
    """Until the other cluster has done it; as long as it does not answer, this is told once."""
    told = False
    while True:
        try:
            await call()
            return
        except (errors.Unavailable, errors.Overloaded) as error:
            if isinstance(error, errors.NoSpace):
                raise
            if not told:
                print(f"the destination does not answer, trying again: {error}", file=sys.stderr)
                told = True
        await asyncio.sleep(RETRY_SECONDS)
