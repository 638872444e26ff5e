import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from kvstore.client import errors
from kvstore.client.types import KeyValue, prefix_end
from kvstore.kvctl.failures import ExitCode, Failure, explain, usage
from kvstore.kvctl.formats import base64_text, size, write, write_json
from kvstore.kvctl.journal import Entry, Journal, default_path
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut, seconds
from kvstore.kvctl.sources import Item, scan_folder, scan_lines
from kvstore.kvctl.transfer import LeftOut, Progress

if TYPE_CHECKING:
    from kvstore.client import Client

REQUEST_BYTES_MAX: Final = 1536 * 1024  # the server's default --max-request-bytes
REQUEST_OVERHEAD_BYTES: Final = 64  # of a put's fields beside key and value
PAGE_KEYS: Final = 10_000
BACKOFF_SECONDS_MAX: Final = 2.0

R = TypeVar("R")


async def import_(
    session: Session,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder, or a file of JSON lines.")],
    prefix: Annotated[str, typer.Option("--prefix", help="Put before each relative path; end it with / for a tree.")],
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Puts under way at once.")] = 32,
    retry_for: Annotated[str, typer.Option(help="How long one file is put again without an answer.")] = "5m",
    max_request_bytes: Annotated[int, typer.Option(help="Leave out what is larger.")] = REQUEST_BYTES_MAX,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Skip what an interrupted import did.")] = True,
    journal: Annotated[
        Path | None, typer.Option(help="Where to note what is done.", show_default="below ~/.local/state/kvctl")
    ] = None,
    acked: Annotated[Path | None, typer.Option(help="Write each acknowledged file and its revision here.")] = None,
) -> None:
    """Put every file of a folder, or every line of a JSON lines file, below a prefix.

    A put whose outcome is unknown is sent again: the value is the same, so it does no harm as long as
    nobody else writes below the prefix meanwhile. Run the command again after an interruption: it goes on.
    What is left out (too large, symbolic links, unreadable) is listed on stderr, and the exit code is 5.

    Examples:

    kvctl import ./site --prefix site/

    kvctl import backup.jsonl --prefix ''
    """
    try:
        patience = seconds(retry_for)
    except ValueError:
        raise usage(f"import: --retry-for {retry_for}: want for example 5m or 30s") from None
    if not source.exists():
        raise Failure(f"{source}: no such file or folder; check the path")
    raw_prefix = prefix.encode(errors="surrogateescape")
    left_out = LeftOut()
    scan = scan_folder if source.is_dir() else scan_lines
    total = sum(1 for _ in scan_folder(source, raw_prefix, LeftOut(quiet=True))) if source.is_dir() else None
    book = Journal(journal or default_path(source, raw_prefix))
    finished = False
    try:
        with _create(acked) as acked_file:
            async with session.client() as client:
                run = Import(client, book, acked_file, left_out, patience, max_request_bytes)
                await run.prepare(raw_prefix, resume)
                with Progress("import", total) as progress:
                    await run.put_all(scan(source, raw_prefix, left_out), concurrency, progress)
        finished = True
    except errors.ClientError as error:
        failure = explain(error)
        note = f"{run.tally()}; run the same command again to go on"
        raise Failure(f"{failure}; {note}", failure.code) from None
    finally:
        book.close(finished)
    if session.write_out is WriteOut.JSON:
        write_json({"acknowledged": run.acknowledged, "resumed": run.resumed, "left_out": left_out.reasons})
    else:
        write(run.tally())
    if left_out.reasons:
        raise Failure(f"{len(left_out.reasons)} left out, listed above; see `kvctl import --help`", ExitCode.PARTIAL)


def _create(file: Path | None) -> IO[bytes]:
    return (file or Path(os.devnull)).open("wb")


@dataclass(slots=True)
class Import:
    client: "Client"
    book: Journal
    acked_file: IO[bytes]
    left_out: LeftOut
    patience: float  # seconds that one put is tried
    request_bytes_max: int
    acknowledged: int = 0
    acknowledged_bytes: int = 0
    resumed: int = 0  # of these, acknowledged to an earlier run
    done: dict[str, Entry] = field(default_factory=dict)  # what the journal says of earlier runs
    revisions: dict[bytes, int] = field(default_factory=dict)  # what the cluster says of the same keys

    def tally(self) -> str:
        resumed = f", {self.resumed} of them by an earlier run" if self.resumed else ""
        return f"acknowledged {self.acknowledged} ({size(self.acknowledged_bytes)}){resumed}"

    async def prepare(self, prefix: bytes, resume: bool) -> None:
        """Load the journal, and learn which of its keys the cluster still has."""
        first = await self._patiently(lambda: self.client.get(prefix, prefix=True, limit=1, keys_only=True))
        self.done = self.book.load(first.header.cluster_id, resume)
        if self.done:
            self.revisions = {kv.key: kv.mod_revision async for kv in self._keys(prefix)}

    async def _keys(self, prefix: bytes) -> AsyncIterator[KeyValue]:
        key, end = prefix or b"\0", prefix_end(prefix)
        while True:
            page = await self._patiently(
                lambda key=key: self.client.get(key, end, limit=PAGE_KEYS, keys_only=True)  # type: ignore[misc]
            )
            for kv in page.kvs:
                yield kv
            if not page.more:
                return
            key = page.kvs[-1].key + b"\0"

    async def put_all(self, items: Iterator[Item], concurrency: int, progress: Progress) -> None:
        """Workers share the iterator, so that at most `concurrency` values are in memory."""

        async def worker() -> None:
            for item in items:
                await self._import(item)
                progress.advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _import(self, item: Item) -> None:
        if not item.key:
            self.left_out.add(item.name, "an empty key")
            return
        done = self.done.get(item.name)
        if (
            done is not None
            and (done.size, done.mtime_ns) == (item.size, item.mtime_ns)
            and self.revisions.get(item.key, 0) >= done.revision
        ):
            self.resumed += 1
            self._acknowledge(item, done.revision)
            return
        if len(item.key) + item.size + REQUEST_OVERHEAD_BYTES > self.request_bytes_max:
            self.left_out.add(item.name, f"{item.size} bytes are over the request limit of {self.request_bytes_max}")
            return
        try:
            value = item.load()
            result = await self._patiently(lambda: self.client.put(item.key, value))
        except errors.RequestTooLarge:
            self.left_out.add(item.name, f"{item.size} bytes are over the server's request limit")
        except OSError as error:
            self.left_out.add(item.name, error.strerror or str(error))
        else:
            revision = result.header.revision
            self.book.add(item.name, Entry(item.size, item.mtime_ns, revision))
            self._acknowledge(item, revision)

    async def _patiently(self, call: Callable[[], Awaitable[R]]) -> R:
        """Again and again while no answer comes or the answer is "later".

        The client never sends a write twice; that an unknown one may be sent again is this command's own
        knowledge: the same file gives the same value under the same key, however often it is put.
        """
        import tenacity

        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=BACKOFF_SECONDS_MAX),
            stop=tenacity.stop_after_delay(self.patience),
            reraise=True,
        ):
            with attempt:
                return await call()
        raise AssertionError("tenacity ends with a result or an exception")

    def _acknowledge(self, item: Item, revision: int) -> None:
        self.acknowledged += 1
        self.acknowledged_bytes += item.size
        record = {"name": item.name, "key": base64_text(item.key), "revision": revision}
        self.acked_file.write(json.dumps(record).encode() + b"\n")
        self.acked_file.flush()


def _passes(error: BaseException) -> bool:
    if not isinstance(error, errors.ClientError) or isinstance(error, errors.NoSpace):
        return False
    return error.outcome_unknown or isinstance(error, errors.Unavailable | errors.Overloaded)
