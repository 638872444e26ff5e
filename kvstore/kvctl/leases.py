"""What the lease verbs share: ids in hexadecimal, and answers printed as etcdctl prints them."""

from typing import Annotated, Any, Final

import typer

from kvstore.client.types import Header, LeaseKept
from kvstore.kvctl.failures import usage
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.printers import header_fields, header_json
from kvstore.kvctl.settings import WriteOut

LeaseId = Annotated[str, typer.Argument(help="Its id, in hexadecimal.")]
ID_BITS: Final = 63


def lease_id(text: str) -> int:
    try:
        number = int(text, 16)
    except ValueError:
        number = 1 << ID_BITS
    if not -(1 << ID_BITS) <= number < 1 << ID_BITS:
        raise usage(f"{text!r} is no lease id; `kvctl lease list` prints them, in hexadecimal")
    return number


def write_flat(header: Header, **more: Any) -> None:
    """JSON with the header's fields beside the others."""
    write_json({**header_json(header), **more})


def write_kept(kept: LeaseKept, write_out: WriteOut) -> None:
    if write_out is WriteOut.JSON:
        write_flat(kept.header, ID=kept.id, TTL=kept.ttl)
    elif write_out is WriteOut.FIELDS:
        header_fields(kept.header)
        write(f'"ID" : {kept.id}')
        write(f'"TTL" : {kept.ttl}')
    else:
        write(f"lease {kept.id:016x} keepalived with TTL({kept.ttl})")
