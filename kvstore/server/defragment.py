"""Defragment: give the disk back what deletions and compactions have freed, while everything goes on.

etcd copies its file and blocks meanwhile. RocksDB gives space back by itself, only later, when enough files wait to be
merged; asked for it, its threads merge what waits now (Engine.merge_files). One run at a time; who comes while one
is under way waits for it and gets a run of its own, since more may have been freed.
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import structlog

from kvstore.errors import TOO_MANY_REQUESTS
from kvstore.measure import DEFRAGMENTS

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

WAITING_MAX: Final = 16
POLL_SECONDS: Final = 0.05
NEWS_SECONDS: Final = 5.0  # between lines in the log


@final
class Defragmenter:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._one = asyncio.Lock()
        self._waiting = 0

    @property
    def running(self) -> bool:
        return self._one.locked()

    async def run(self) -> None:
        """Raises KvError; StoreError when the disk fails."""
        if self._waiting >= WAITING_MAX:
            raise TOO_MANY_REQUESTS.fresh()
        self._waiting += 1
        try:
            async with self._one:
                with DEFRAGMENTS.time():
                    await self._run()
        finally:
            self._waiting -= 1

    async def _run(self) -> None:
        server = self._server
        engine, begun = server.store.engine, server.now()
        before = engine.size_bytes()
        log.info("defragmenting", bytes=before)
        told = begun
        async with engine.merging():
            while engine.merges_left and server.store.engine is engine:
                await asyncio.sleep(POLL_SECONDS)
                if server.now() - told >= NEWS_SECONDS:
                    told = server.now()
                    log.info("still defragmenting", bytes=engine.size_bytes(), seconds=round(told - begun, 1))
        log.info("defragmented", bytes=engine.size_bytes(), before=before, seconds=round(server.now() - begun, 3))
