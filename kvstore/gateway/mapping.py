"""Between JSON and messages, as etcd's gateway maps them (proto3's JSON form).

Names are the .proto's own; 64-bit numbers leave as texts and come as either; bytes are base64, of both alphabets and
with or without padding when they come; an enum is its name or its number; what has its default value is left out, and
what is unknown is passed over.

A document of many bytes is read and written in a thread, so that nobody else waits for it.
"""

import asyncio
import base64
import binascii
import json
import re
from typing import Any, Final, NoReturn, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

IN_PLACE_BYTES: Final = 16 * 1024  # a document of this size takes about a millisecond
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_URL_SAFE: Final = str.maketrans("-_", "+/")

M = TypeVar("M", bound=Message)


class MappingError(ValueError):
    """The document is not the message that is wanted. The text is for the client."""


async def message_of(kind: type[M], document: bytes) -> M:
    """Of the first JSON value in the document; nothing at all is a message of defaults. Raises MappingError."""
    if len(document) < IN_PLACE_BYTES:
        return parse(kind, document)
    return await asyncio.to_thread(parse, kind, document)


async def document_of(kind: type[Message], encoded: bytes, envelope: str = "") -> bytes:
    """The JSON of an encoded message; inside of {envelope: ...} if there is one."""
    if len(encoded) < IN_PLACE_BYTES:
        return _written(kind, encoded, envelope)
    return await asyncio.to_thread(_written, kind, encoded, envelope)


def parse(kind: type[M], document: bytes) -> M:
    """Raises MappingError."""
    message = kind()
    try:
        value, _ = first_value(document.decode("utf-8"))
        if value is None:
            return message
        if not isinstance(value, dict):
            raise MappingError("json: a message is an object")
        _check(kind.DESCRIPTOR, value)
        ParseDict(value, message, ignore_unknown_fields=True)
    except MappingError:
        raise
    except (ParseError, ValueError) as error:
        raise MappingError(f"json: {' '.join(str(error).split())[:300]}") from None
    except (RecursionError, MemoryError):
        raise MappingError("json: the document is too deep") from None
    return message


def first_value(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins here, and where it ends; None when there is nothing more. Raises ValueError.

    What follows the value is not looked at, as with etcd.
    """
    found = _SPACE.match(text, at)
    assert found is not None
    at = found.end()
    if at == len(text):
        return None, at
    return _DECODER.raw_decode(text, at)


def _no_number(name: str) -> NoReturn:
    raise MappingError(f"json: {name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_number)


def _check(kind: Any, value: dict[str, Any]) -> None:
    """What the library would pass over: bytes that are not base64, enums that are not known, texts for objects.

    kind: a message's descriptor.
    """
    for name, content in value.items():
        found = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
        if found is None or content is None:
            continue
        contents = content if found.is_repeated and isinstance(content, list) else [content]
        if found.type == FieldDescriptor.TYPE_BYTES:
            for text in contents:
                if not isinstance(text, str):
                    raise MappingError(f"json: {name} must be base64 in a text")
                _check_base64(text)
        elif found.enum_type is not None:
            for one in contents:
                is_known = one in found.enum_type.values_by_name if isinstance(one, str) else type(one) is int
                if not is_known:
                    raise MappingError(f"json: unknown value {str(one)[:40]!r} for enum {found.enum_type.full_name}")
        elif found.message_type is not None:
            for inner in contents:
                if not isinstance(inner, dict):
                    raise MappingError(f"json: {name} must be an object")
                _check(found.message_type, inner)


def _check_base64(text: str) -> None:
    try:
        stripped = text.rstrip("=")
        base64.b64decode(stripped.translate(_URL_SAFE) + "=" * (-len(stripped) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise MappingError("json: illegal base64 data") from None


def _written(kind: type[Message], encoded: bytes, envelope: str) -> bytes:
    value = MessageToDict(kind.FromString(encoded), preserving_proto_field_name=True)
    if envelope:
        value = {envelope: value}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
