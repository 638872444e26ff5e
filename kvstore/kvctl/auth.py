"""What the verbs of users, roles and authentication share: printing as etcdctl does, and passwords from people."""

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvstore.client.types import Header
from kvstore.kvctl.failures import usage
from kvstore.kvctl.formats import base64_text, present, quote, write, write_json, write_table
from kvstore.kvctl.printers import header_fields, header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut, flag

if TYPE_CHECKING:
    from kvstore.client.auth import Names, Permission, Role

Interactive = Annotated[
    str, typer.Option("--interactive", metavar="true|false", help="false: the password is a line of input.")
]

_TYPES = {"read": 0, "write": 1, "readwrite": 2}
_OPEN_END = b"\0"


def write_done(session: Session, header: Header, text: str) -> None:
    """The answer to a change."""
    if session.write_out is WriteOut.JSON:
        write_json({"header": header_json(header)})
    else:
        write(text)


def write_names(session: Session, field: str, found: "Names") -> None:
    """users or roles, one a line. Tables are ours: etcdctl has none of them."""
    if session.write_out is WriteOut.JSON:
        write_json({"header": header_json(found.header), **present(**{field: list(found.names)})})
    elif session.write_out is WriteOut.TABLE:
        write_table((field.removesuffix("s").upper(),), [(name,) for name in found.names])
    else:
        for name in found.names:
            write(name)


def write_role(session: Session, role: "Role") -> None:
    if session.write_out is WriteOut.JSON:
        perm = [
            present(permType=_TYPES[one.kind], key=base64_text(one.key), range_end=base64_text(one.range_end))
            for one in role.permissions
        ]
        write_json({"header": header_json(role.header), **present(perm=perm)})
    elif session.write_out is WriteOut.FIELDS:
        header_fields(role.header)
        for one in role.permissions:
            write(f'"PermType" :  {one.kind.upper()}')
            write(f'"Key" : {quote(one.key)}')
            write(f'"RangeEnd" : {quote(one.range_end)}')
    elif session.write_out is WriteOut.TABLE:
        write_permissions([role])
    else:
        write(f"Role {role.name}")
        for title, kind in (("KV Read:", "read"), ("KV Write:", "write")):
            write(title)
            for one in role.permissions:
                if one.kind in (kind, "readwrite"):
                    write(b"\t", range_text(one.key, one.range_end), _prefix_text(one))


def write_permissions(roles: list["Role"]) -> None:
    """A table of what they allow, one permission a row."""
    rows = [(role.name, one.kind, quote(one.key), quote(one.range_end)) for role in roles for one in role.permissions]
    write_table(("ROLE", "MAY", "KEY", "RANGE END"), rows)


def range_text(key: bytes, range_end: bytes) -> bytes:
    if not range_end:
        return key
    return b"[" + key + b", " + (b"<open ended>" if range_end == _OPEN_END else range_end + b")")


def _prefix_text(permission: "Permission") -> bytes:
    from kvstore.client.types import prefix_end

    key = permission.key
    return b" (prefix " + key + b")" if key and permission.range_end == prefix_end(key) else b""


def new_password(interactive: str) -> str:
    """Typed twice, or one line of standard input. interactive: as the flag's text."""
    if not flag("interactive", interactive):
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Type the password again: "):
        raise usage("the two passwords differ; nothing was changed")
    return password
