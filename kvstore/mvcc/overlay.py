"""What a scan of `latest` shows inside a group of writes that are not in the database yet."""

from typing import TYPE_CHECKING, Final, final

from kvstore.mvcc import schema
from kvstore.mvcc.store import LatestScan

if TYPE_CHECKING:
    from kvstore.mvcc.transaction import WriteGroup

_CHUNK: Final = 256


class _EmptyScan(LatestScan):
    @property
    def done(self) -> bool:
        return True

    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        return []

    def count(self, count: int) -> int:
        return 0


_NOTHING: Final = _EmptyScan()


@final
class OverlayScan(LatestScan):
    """Live keys of the database, without those cleared, merged with the overlay's."""

    def __init__(
        self,
        group: "WriteGroup",
        overlay: dict[bytes, bytes | None],
        changed: list[bytes],
        cleared: list[tuple[bytes, bytes | None]],
        low: bytes,
        high: bytes | None,
    ) -> None:
        # Copied: a delete that walks this scan changes the overlay behind it.
        self._changed = [(b"l" + key, overlay[key]) for key in reversed(changed)]  # next one last
        self._hidden = {b"l" + key for key in changed}
        self._cleared = [schema.latest_rows(*interval) for interval in cleared]
        self._group = group
        self._high = high
        self._scan = group.scan_stored(low, high)
        self._ahead: list[tuple[bytes, bytes]] = []  # rows of the database, not yet handed out

    @property
    def done(self) -> bool:
        return self._scan.done and not self._ahead and not self._changed

    def _refill(self) -> None:
        if not self._ahead:
            for row, kv in self._scan.rows(_CHUNK):
                high = self._cleared_to(row)
                if high is not None:
                    # Straight behind what a big delete of this group cleared, instead of through it.
                    self._scan = self._group.scan_stored(high[1:], self._high) if high[:1] == b"l" else _NOTHING
                    break
                if row not in self._hidden:
                    self._ahead.append((row, kv))

    def _cleared_to(self, row: bytes) -> bytes | None:
        for low, high in self._cleared:
            if low <= row < high:
                return high
        return None

    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        self._refill()
        # Up to the last row at hand, the order of both is known; behind the end only the overlay's are left.
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        merged = list(taken)
        if not taken and not self._scan.done:
            return merged  # nothing but what is hidden or changed has come yet
        while self._changed and (not taken or self._changed[-1][0] < taken[-1][0]):
            row, kv = self._changed.pop()
            if kv is not None:
                merged.append((row, kv))
        merged.sort()
        if len(merged) > count:
            self._put_back(merged[count:])
            del merged[count:]
        return merged

    def _put_back(self, rows: list[tuple[bytes, bytes]]) -> None:
        self._ahead = rows + self._ahead

    def count(self, count: int) -> int:
        return len(self.rows(count))
