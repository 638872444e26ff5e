"""kvstore.v1.History: every change of a range, oldest first, also from before the compaction point."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from kvstore.errors import KEY_NOT_PROVIDED
from kvstore.history.reader import read_history
from kvstore.pb.history_pb2 import ReadHistoryRequest, ReadHistoryResponse
from kvstore.pb.history_pb2_grpc import HistoryServicer
from kvstore.services.permissions import check, identify

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


class HistoryService(HistoryServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    async def Read(self, request: ReadHistoryRequest, context: Any) -> AsyncIterator[ReadHistoryResponse]:
        if not request.key:
            raise KEY_NOT_PROVIDED.fresh()
        if not request.serializable:
            await self._server.linearizable()
        # No view is pinned for a slow client: rows of the history never change, only their end is fixed here.
        store = self._server.store
        check(store.auth.refuse_read(identify(self._server, context), request.key, request.range_end))
        header = self._server.header_message(store.current_revision)
        request.to_revision = min(request.to_revision or store.current_revision, store.current_revision)
        async with aclosing(read_history(store, request)) as lists:
            async for changes in lists:
                yield ReadHistoryResponse(header=header, changes=changes)
