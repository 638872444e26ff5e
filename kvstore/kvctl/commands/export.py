import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from kvstore.client.types import KeyValue, prefix_end
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import base64_text, quote, write, write_json
from kvstore.kvctl.printers import kv_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut
from kvstore.kvctl.transfer import LeftOut, Progress

if TYPE_CHECKING:
    from kvstore.client import Client

PAGE_BYTES: Final = 4 * 1024 * 1024  # aimed at, from the mean size of the page before
PAGE_KEYS_MAX: Final = 1000
PAGE_KEYS_FIRST: Final = 16


async def export(
    session: Session,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder, or a file that ends in .jsonl.")],
    prefix: Annotated[str, typer.Option("--prefix", help="Export the keys that begin with it.")],
    rev: Annotated[int, typer.Option(help="As of this revision; 0: the newest.")] = 0,
) -> None:
    """Write every key below a prefix to a file of its own, or all to one file of JSON lines.

    All are of one revision. Each file appears whole or not at all. In a folder, a file's path is the key without
    the prefix; keys that would leave the folder or are no paths are left out, listed, and the exit code is 5.

    Examples:

    kvctl export --prefix site/ ./site

    kvctl export --prefix '' backup.jsonl
    """
    raw_prefix = prefix.encode(errors="surrogateescape")
    left_out = LeftOut()
    async with session.client() as client:
        found = await client.get(raw_prefix, prefix=True, revision=rev, count_only=True)
        revision = rev or found.header.revision
        kvs = pages(client, raw_prefix, revision)
        with Progress("export", found.count) as progress:
            if destination.suffix == ".jsonl":
                count = await to_lines(destination, kvs, len(raw_prefix), progress)
            else:
                count = await to_folder(destination, kvs, raw_prefix, left_out, progress)
    if session.write_out is WriteOut.JSON:
        write_json({"exported": count, "revision": revision, "left_out": left_out.reasons})
    else:
        write(f"exported {count} keys of revision {revision} to {destination}")
    if left_out.reasons:
        raise Failure(
            f"{len(left_out.reasons)} keys left out, listed above; export them to a .jsonl file", ExitCode.PARTIAL
        )


async def pages(client: "Client", prefix: bytes, revision: int) -> AsyncIterator[KeyValue]:
    """Every key, in order, in answers of bounded size."""
    key, end, limit = prefix or b"\0", prefix_end(prefix), PAGE_KEYS_FIRST
    while True:
        page = await client.get(key, end, revision=revision, limit=limit)
        for kv in page.kvs:
            yield kv
        if not page.more:
            return
        key = page.kvs[-1].key + b"\0"
        mean = sum(len(kv.key) + len(kv.value) + 64 for kv in page.kvs) // len(page.kvs)
        limit = max(1, min(PAGE_KEYS_MAX, PAGE_BYTES // mean))


async def to_lines(file: Path, kvs: AsyncIterator[KeyValue], cut: int, progress: Progress) -> int:
    """Keys without the prefix, as in a folder, so that an import below another prefix is possible."""
    count = 0
    with _replacing(str(file)) as out:
        async for kv in kvs:
            record = {**(kv_json(kv) or {}), "key": base64_text(kv.key[cut:])}
            out.write(json.dumps(record).encode() + b"\n")
            count += 1
            progress.advance()
    return count


async def to_folder(
    root: Path, kvs: AsyncIterator[KeyValue], prefix: bytes, left_out: LeftOut, progress: Progress
) -> int:
    inside = _make_root(root)
    count = 0
    async for kv in kvs:
        name = kv.key[len(prefix) :]
        reason = refusal(name)
        if not reason:
            try:
                _write_file(inside, name, kv.value)
                count += 1
            except OSError as error:
                reason = error.strerror or str(error)
        if reason:
            left_out.add(quote(kv.key), reason)
        progress.advance()
    return count


def refusal(name: bytes) -> str:
    """Why this name cannot be a path below the folder; empty when it can."""
    if not name:
        return "the key is the prefix itself"
    if name.startswith(b"/"):
        return "an absolute path"
    if b"\0" in name:
        return "a NUL in the name"
    parts = name.split(b"/")
    if b".." in parts:
        return "the path leaves the folder"
    if b"" in parts or b"." in parts:
        return "an empty name in the path"
    return ""


def _write_file(root: str, name: bytes, value: bytes) -> None:
    path = os.path.join(root, os.fsdecode(name))
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    # A link that was there before must not lead out either.
    if os.path.commonpath((root, os.path.realpath(parent))) != root:
        raise OSError("a symbolic link leads out of the folder")
    with _replacing(path) as out:
        out.write(value)


def _make_root(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    return os.path.realpath(root)


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    temporary = os.path.join(os.path.dirname(path), f".kvctl-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
