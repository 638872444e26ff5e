"""What a front has served, by method: begun, messages each way, and how it ended. For grpc_server_* of /metrics.

Nothing is counted for a request of a hot method that can be counted for a list of them. So its good ends are not
counted at all: they are what has begun, less what failed and what is under way (`open`).
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, final

from kvstore.errors import Code
from kvstore.measure import Histogram

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # Prometheus' own bounds


@final
class MethodCounts:
    """Of one method and one way to it. kind: unary, client_stream, server_stream or bidi_stream."""

    __slots__ = ("codes", "kind", "open", "path", "received", "seconds", "sent", "started")

    def __init__(self, path: str, kind: str = "unary", open_: Callable[[], int] | None = None) -> None:
        """open_: how many are under way, for a method whose good ends are not counted."""
        self.path = path
        self.kind = kind
        self.open = open_
        self.started = 0
        self.received = 0
        self.sent = 0
        self.codes: Counter[Code] = Counter()
        self.seconds: Histogram | None = None  # of unary calls, when they are measured

    def ended(self, code: Code = Code.OK) -> None:
        self.codes[code] += 1


@final
class Served:
    """The sum of all ways to a method."""

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.started = self.received = self.sent = 0
        self.codes: Counter[Code] = Counter()

    def add(self, counts: MethodCounts) -> None:
        codes = Counter(counts.codes)
        received, sent = counts.received, counts.sent
        if counts.open is not None:
            codes[Code.OK] = max(0, counts.started - codes.total() - counts.open())
        if self.kind == "unary":
            received, sent = counts.started, codes[Code.OK]
        self.started += counts.started
        self.received += received
        self.sent += sent
        self.codes += codes


@final
class Counts:
    """Of a front: all of its methods."""

    def __init__(self, *, measured: bool = False) -> None:
        """measured: how long unary calls take is, each by itself (--metrics=extensive)."""
        self._measured = measured
        self.seconds: dict[str, Histogram] = {}  # by path
        self._all: list[MethodCounts] = []
        self.received_bytes: Callable[[], int] = lambda: 0  # from clients, and to them
        self.sent_bytes: Callable[[], int] = lambda: 0
        self.versions: Callable[[], Counter[tuple[str, str]]] = Counter  # calls by type and version of the client's API

    def new(self, path: str, kind: str = "unary", open_: Callable[[], int] | None = None) -> MethodCounts:
        counts = MethodCounts(path, kind, open_)
        if self._measured and kind == "unary":
            counts.seconds = self.seconds.setdefault(path, Histogram(0, 0, SECONDS))
        self._all.append(counts)
        return counts

    def served(self) -> list[Served]:
        found: dict[str, Served] = {}
        for counts in self._all:
            found.setdefault(counts.path, Served(counts.path, counts.kind)).add(counts)
        return [found[path] for path in sorted(found)]
