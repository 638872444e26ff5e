"""JSON documents, one behind the other, out of pieces as they come.

What a document says is not looked at here, only where it ends: its braces are counted, outside of texts.
"""

import re
from typing import Final, final

from kvstore.errors import Code, KvError

_MARKS: Final = re.compile(rb'["{}\[\]]')
_IN_TEXT: Final = re.compile(rb'["\\]')
_SPACE: Final = b" \t\r\n"


@final
class Documents:
    def __init__(self, bytes_max: int) -> None:
        """bytes_max: of what waits for its end."""
        self._bytes_max = bytes_max
        self._held = bytearray()
        self._at = 0  # looked at
        self._depth = 0
        self._in_text = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Those that are whole now. Raises KvError when one is too long.

        What begins with neither brace nor bracket has no end that could be seen: it is left to `rest`.
        """
        self._held += piece
        found: list[bytes] = []
        while (end := self._next_end()) is not None:
            found.append(bytes(self._held[:end]))
            del self._held[:end]
            self._at = 0
        if len(self._held) > self._bytes_max:
            raise KvError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({len(self._held)} vs. {self._bytes_max})",
            )
        return found

    def rest(self) -> bytes:
        """What came and is no whole document; b"" when it is but space."""
        return bytes(self._held).strip(_SPACE)

    def _next_end(self) -> int | None:
        held = self._held
        while True:
            mark = (_IN_TEXT if self._in_text else _MARKS).search(held, self._at)
            if mark is None:
                self._at = len(held)
                return None
            self._at = mark.end()
            byte = mark.group()
            if self._in_text:
                if byte == b'"':
                    self._in_text = False
                elif self._at < len(held):
                    self._at += 1  # whatever is escaped
                else:
                    self._at -= 1  # it has not come yet
                    return None
            elif byte == b'"':
                self._in_text = True
            elif byte in b"{[":
                self._depth += 1
            else:
                self._depth = max(0, self._depth - 1)
                if not self._depth:
                    return self._at
