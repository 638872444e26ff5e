import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut
from kvstore.kvctl.transfer import Progress, sync_folder


async def snapshot_save(
    session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; replaced.")]
) -> None:
    """Save the state of one member to a file: all keys with their history since the last compaction, leases, users.

    It is a database of etcd's. `kvstore restore` and `etcdutl snapshot restore` make a new cluster of it. Until it is
    whole, checked and on the disk it is FILE.part.

    Example:

    kvctl snapshot save backup.db --endpoints 127.0.0.1:2379
    """
    session.simple_or_json("snapshot save")
    size = 0
    with _arriving(file) as out, Progress("save", None, in_bytes=True) as progress:
        async with session.client() as client, aclosing(client.snapshot()) as parts:
            async for piece in parts:
                if not size:
                    progress.begin(len(piece.blob) + piece.remaining)
                out.write(piece.blob)
                size += len(piece.blob)
                progress.advance(len(piece.blob))
    if session.write_out is WriteOut.JSON:
        write_json({"file": str(file), "size": size})
    else:
        write(f"Snapshot saved at {file}")


@contextmanager
def _arriving(file: Path) -> Iterator[IO[bytes]]:
    """FILE.part, which takes FILE's place when the block ends well, and vanishes when it does not."""
    part = file.with_name(file.name + ".part")
    try:
        with open(part, "wb", opener=_private) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
        sync_folder(file.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    """Values and hashes of passwords are in it: for its owner only, as etcdctl makes it."""
    return os.open(path, flags, 0o600)
