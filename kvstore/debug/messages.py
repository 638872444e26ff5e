"""A protobuf message as a dict that may be shown: what users stored is left out unless asked for."""

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

VALUES: Final = frozenset({"value"})  # shown only when asked for
SECRETS: Final = frozenset({"password", "hashedPassword", "hashed_password", "token"})  # never shown
IDS: Final = frozenset({"ID", "member", "instance", "member_id", "cluster_id"})  # hexadecimal, as everywhere else


def text(data: bytes) -> str:
    """Readable, and never a control character."""
    decoded = data.decode(errors="backslashreplace")
    return (
        decoded
        if decoded.isprintable()
        else "".join([one if one.isprintable() else ascii(one)[1:-1] for one in decoded])
    )


def plain(message: Message, show_values: bool) -> dict[str, Any]:
    """The fields that are set, by name. Enum values by name, ids in hexadecimal."""
    return {field.name: _field(field, value, show_values) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any, show_values: bool) -> Any:
    if field.is_repeated:
        return [_one(field, one, show_values) for one in value]
    return _one(field, value, show_values)


def _one(field: FieldDescriptor, value: Any, show_values: bool) -> Any:
    if isinstance(value, Message):
        return plain(value, show_values)
    if field.name in SECRETS:
        return "<hidden>"
    if isinstance(value, bytes):
        return text(value) if show_values or field.name not in VALUES else f"<{len(value)}B>"
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return found.name if found is not None else value
    return f"{value:x}" if field.name in IDS and isinstance(value, int) else value
