from pathlib import Path
from typing import Annotated

import typer

from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import size, write, write_json, write_table
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut
from kvstore.kvctl.transfer import Progress


async def snapshot_status(
    session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `snapshot save`, or of etcd.")]
) -> None:
    """Print what a snapshot file holds: hash, newest revision, rows and size, as etcdutl does. Reads all of it.

    Example:

    kvctl snapshot status backup.db -w table
    """
    from kvstore.snapshot.file import SnapshotFileError, database_bytes, status

    try:
        with Progress("read", database_bytes(file), in_bytes=True) as progress:
            found = status(file, progress.advance)
    except SnapshotFileError as error:
        raise Failure(str(error)) from None
    if session.write_out is WriteOut.JSON:
        write_json(
            {
                "hash": found.hash,
                "revision": found.revision,
                "totalKey": found.total_keys,
                "totalSize": found.total_size,
            }
        )
    elif session.write_out is WriteOut.FIELDS:
        write(f'"Hash" : {found.hash}')
        write(f'"Revision" : {found.revision}')
        write(f'"Keys" : {found.total_keys}')
        write(f'"Size" : {found.total_size}')
    else:
        row = (f"{found.hash:x}", str(found.revision), str(found.total_keys), size(found.total_size))
        if session.write_out is WriteOut.TABLE:
            write_table(("HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"), [row])
        else:
            write(", ".join(row))
