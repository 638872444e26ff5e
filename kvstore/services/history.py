"""kvstore.v1.History: every change of a range, oldest first, also from before the compaction point."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from kvstore.errors import KEY_NOT_PROVIDED
from kvstore.history.reader import read_history
from kvstore.pb.history_pb2 import ReadHistoryRequest, ReadHistoryResponse
from kvstore.pb.history_pb2_grpc import HistoryServicer

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


class HistoryService(HistoryServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    async def Read(self, request: ReadHistoryRequest, context: Any) -> AsyncIterator[ReadHistoryResponse]:
        if not request.key:
            raise KEY_NOT_PROVIDED
        if not request.serializable:
            await self._server.linearizable()
        with self._server.store.view() as view:
            header = self._server.header_message(view.current_revision)
            async for changes in read_history(view, request):
                yield ReadHistoryResponse(header=header, changes=changes)
