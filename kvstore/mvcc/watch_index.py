"""Which watchers does a key concern?

Watchers of one range form a group: they get the same events, which are encoded once for all of them. A
key finds its groups by one look-up in a dict for exact keys, one per length of the prefixes in use (few),
and one comparison per other range (rare: no client makes them by itself).
"""

from typing import TYPE_CHECKING, Final, TypeVar, final

from kvstore.mvcc.schema import contains, range_bounds

if TYPE_CHECKING:
    from kvstore.mvcc.watch import WatchStream

K = TypeVar("K")

# Bits of Watcher.variant: what makes the answers of two watchers of one group differ.
NO_PUT: Final = 1
NO_DELETE: Final = 2
PREV_KV: Final = 4
FRAGMENT: Final = 8


@final
class Watcher:
    """One watch of one stream. Synced: in the index, and has got everything. Otherwise it waits for catch-up."""

    __slots__ = (
        "had_events",
        "id_field",
        "key",
        "next_revision",
        "progress_notify",
        "range_end",
        "removed",
        "stream",
        "synced",
        "variant",
        "watch_id",
    )

    def __init__(
        self,
        stream: "WatchStream",
        watch_id: int,
        id_field: bytes,
        key: bytes,
        range_end: bytes,
        next_revision: int,
        variant: int,
        progress_notify: bool,
    ) -> None:
        self.stream = stream
        self.watch_id = watch_id
        self.id_field = id_field  # encoded, with its tag: all that differs between the answers of a group
        self.key = key
        self.range_end = range_end
        self.next_revision = next_revision  # events below it are not for this watcher, or it has them
        self.variant = variant
        self.progress_notify = progress_notify
        self.synced = False
        self.removed = False  # cancelled, or its stream is closed
        self.had_events = False  # since the last periodic progress

    @property
    def is_ahead(self) -> bool:
        """It begins in the future: what is synced so far says nothing about it."""
        return self.next_revision > self.stream.hub.revision + 1

    @property
    def bounds(self) -> tuple[bytes, bytes | None]:
        return range_bounds(self.key, self.range_end)


@final
class Group:
    """The synced watchers of one range."""

    __slots__ = ("high", "low", "watchers")

    def __init__(self, low: bytes, high: bytes | None) -> None:
        self.low = low
        self.high = high
        self.watchers: dict[Watcher, None] = {}  # in order of their coming


def prefix_of(low: bytes, high: bytes | None) -> bytes | None:
    """The prefix that makes just this interval of keys; None: there is none."""
    if high is None:
        # Keys are never empty, so "\0" is where all of them begin; and behind ff ff only ff ff... follows.
        return b"" if low in (b"", b"\0") else low if low.count(b"\xff") == len(low) else None
    stem = low.rstrip(b"\xff")
    return low if stem and high == stem[:-1] + bytes((stem[-1] + 1,)) else None


@final
class WatchIndex:
    def __init__(self) -> None:
        self._exact: dict[bytes, Group] = {}
        self._prefixes: dict[int, dict[bytes, Group]] = {}  # by length
        self._others: dict[tuple[bytes, bytes | None], Group] = {}

    def add(self, watcher: Watcher) -> None:
        low, high = watcher.bounds
        if not watcher.range_end:
            group = self._exact.setdefault(low, Group(low, high))
        elif (prefix := prefix_of(low, high)) is not None:
            group = self._prefixes.setdefault(len(prefix), {}).setdefault(prefix, Group(low, high))
        else:
            group = self._others.setdefault((low, high), Group(low, high))
        group.watchers[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        low, high = watcher.bounds
        if not watcher.range_end:
            _remove(self._exact, low, watcher)
        elif (prefix := prefix_of(low, high)) is not None:
            _remove(self._prefixes[len(prefix)], prefix, watcher)
            if not self._prefixes[len(prefix)]:
                del self._prefixes[len(prefix)]
        else:
            _remove(self._others, (low, high), watcher)

    def find(self, key: bytes) -> list[Group]:
        found = []
        if (group := self._exact.get(key)) is not None:
            found.append(group)
        for length, prefixes in self._prefixes.items():
            # A key shorter than the prefix is its own slice, and no prefix of that length equals it.
            if (group := prefixes.get(key[:length])) is not None:
                found.append(group)
        for group in self._others.values():
            if contains(group.low, group.high, key):
                found.append(group)
        return found

    def groups(self) -> list[Group]:
        return [
            *self._exact.values(),
            *(group for prefixes in self._prefixes.values() for group in prefixes.values()),
            *self._others.values(),
        ]


def _remove(table: dict[K, Group], at: K, watcher: Watcher) -> None:
    group = table[at]
    del group.watchers[watcher]
    if not group.watchers:
        del table[at]
