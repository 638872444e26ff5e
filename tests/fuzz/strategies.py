"""Messages and bytes that nobody should send: from descriptors, so that a new field is tried without being named.

Names and URLs are kept from the few values that would let a fuzzed cluster lock everybody out (root, a voter that
does not run); everything else goes, extreme numbers and empty, long and zero keys more often than ordinary ones.
"""

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Field = FieldDescriptor
DEPTH_MAX = 4
_KEYS = [b"", b"\0", b"a", b"a\0", b"b", b"\xff", b"\0" * 300, b"k" * 70_000]
_TEXTS = ["", "a", "\0", "\u00ff" * 200, "http://", "127.0.0.1", "/../x", "%s%n", "3.5.0", "x" * 70_000]
_NUMBERS = {
    Field.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    Field.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    Field.TYPE_UINT32: (0, (1 << 32) - 1),
    Field.TYPE_UINT64: (0, (1 << 64) - 1),
    Field.TYPE_FIXED32: (0, (1 << 32) - 1),
    Field.TYPE_FIXED64: (0, (1 << 64) - 1),
    Field.TYPE_ENUM: (-2, 8),
}


def _numbers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = sorted({low, low + 1, high - 1, high, *(n for n in (-1, 0, 1, 2, 100) if low <= n <= high)})
    return st.one_of(st.sampled_from(edges), st.integers(low, high))


@cache
def _scalar(kind: int) -> st.SearchStrategy[object]:
    if kind in _NUMBERS:
        return _numbers(*_NUMBERS[kind])
    if kind == Field.TYPE_BOOL:
        return st.booleans()
    if kind == Field.TYPE_BYTES:
        return st.one_of(st.sampled_from(_KEYS), st.binary(max_size=40))
    assert kind == Field.TYPE_STRING, kind
    return st.one_of(st.sampled_from(_TEXTS), st.text(max_size=20).filter(lambda text: text != "root"))


@cache
def message(descriptor: Descriptor, depth: int = DEPTH_MAX) -> st.SearchStrategy[Message]:
    """Any message of this type; of a oneof, at most one field."""
    choices = {field.name: strategy for field in descriptor.fields if (strategy := _of_field(field, depth)) is not None}
    oneofs = [[field.name for field in oneof.fields] for oneof in descriptor.oneofs]

    def build(values: dict[str, object]) -> Message:
        for names in oneofs:
            for extra in [name for name in names if name in values][1:]:
                del values[extra]
        return GetMessageClass(descriptor)(**values)

    return st.fixed_dictionaries({}, optional=choices).map(build)


def _of_field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[object] | None:
    if field.type == Field.TYPE_MESSAGE:
        if depth == 0:
            return None
        single: st.SearchStrategy[object] = message(field.message_type, depth - 1)
    else:
        single = _scalar(field.type)
    return st.lists(single, max_size=3) if field.is_repeated else single


@st.composite
def damaged(draw: st.DrawFn, descriptor: Descriptor) -> bytes:
    """The bytes of a message with a few of them changed, cut or repeated; or bytes that never were one."""
    data = bytearray(
        draw(st.one_of(message(descriptor).map(lambda one: one.SerializeToString()), st.binary(max_size=200)))
    )
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "repeat", "insert"]))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + 50] * 3
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
    return bytes(data)
