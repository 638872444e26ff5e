"""What this process has applied since it began, for /metrics. Added to once for each batch of changes, never read."""

from typing import final


@final
class Totals:
    __slots__ = ("deletes", "puts", "rows_bytes", "txns")

    def __init__(self) -> None:
        self.puts = 0
        self.deletes = 0  # requests and operations, however many keys each took; of a revoked lease its keys
        self.txns = 0
        self.rows_bytes = 0  # of versions and events
