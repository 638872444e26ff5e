"""Answers of many messages: history, a range in chunks, a snapshot."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import grpc.aio

from kvstore.client.endpoints import Endpoint, EndpointPool, to_client_error
from kvstore.client.errors import DataLoss, DeadlineExceeded
from kvstore.client.types import SnapshotPart

_EOF: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # missing from the stubs


class Stream:
    """A streamed answer with one message read ahead, so that opening it has failed or has not."""

    def __init__(self, call: Any, endpoint: Endpoint, pool: EndpointPool) -> None:
        self._call = call
        self._endpoint = endpoint
        self._pool = pool
        self._message: Any = None  # read ahead; _EOF at the end

    async def fetch(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._message = await self._call.read()
        except TimeoutError:
            self._call.cancel()
            self._pool.failed(self._endpoint)
            raise DeadlineExceeded(f"{self._endpoint.url} sent nothing for {timeout:.1f} s") from None

    async def messages(self, timeout: float) -> AsyncGenerator[Any, None]:
        try:
            while self._message is not _EOF:
                yield self._message
                await self.fetch(timeout)
        except grpc.aio.AioRpcError as failure:
            self._pool.failed(self._endpoint)
            raise to_client_error(failure, self._endpoint, mutation=False) from None
        finally:
            self._call.cancel()


async def snapshot_parts(stream: Stream, timeout: float) -> AsyncGenerator[SnapshotPart, None]:
    """All of a snapshot. Raises DataLoss at its end when the last part is not the SHA-256 of the others."""
    digest = hashlib.sha256()
    last = b""
    async with aclosing(stream.messages(timeout)) as messages:
        async for message in messages:
            part = SnapshotPart.of(message)
            digest.update(last)
            last = part.blob
            yield part
    if last != digest.digest():
        raise DataLoss("the snapshot arrived damaged, or not as a whole")
