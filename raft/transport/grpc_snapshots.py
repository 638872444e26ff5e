"""Snapshots over gRPC (raft.v1.Peer/Snapshot): one call for one transfer, on a connection of its own.

    sender                                    receiver
      | -- call; metadata: who, to whom -->     |  checks as on a Stream
      | -- header ----------------------->      |  bounds; does the node want it? what is here already?
      | <-------------- Hello, offsets ---      |
      |   checks the Hello likewise             |
      | -- piece, piece, piece ... ------>      |  checksum; written in a thread; then the next is read
      | <---- taken, taken, taken ... ----      |
      | -- end of the pieces ------------>      |  all checksums, fsync, installation; says meanwhile that it lives
      | <--------- installed, or failed ---     |

The sender is at most WINDOW_BYTES ahead of what was taken, so neither side holds more than that in memory, and
a slow disk there slows the reading here. Nothing of it stands in the way of a heartbeat: the connection is
another one, and files are read and written in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from raft.errors import MalformedMessage
from raft.failpoints import fail_async
from raft.runtime import Runtime
from raft.snapshot import (
    PIECE_BYTES,
    SnapshotArrival,
    SnapshotFailed,
    SnapshotFile,
    SnapshotHeader,
    SnapshotReader,
    SnapshotReceiver,
    pieces,
)
from raft.transport.base import Pace
from raft.transport.identity import CheckPeer, PeerIdentity, check_hello, metadata_of
from raft.transport.snapshot_codec import (
    Ack,
    Piece,
    decode_ack,
    decode_header,
    decode_piece,
    encode_ack,
    encode_failure,
    encode_greeting,
    encode_header,
    encode_piece,
)
from raft.types import NodeId

logger = logging.getLogger("raft.transport")

METHOD: Final = "/raft.v1.Peer/Snapshot"
WINDOW_BYTES: Final = 4 * PIECE_BYTES  # sent and not yet taken
SILENCE_SECONDS: Final = 60.0  # without a word from the other side: it is gone
BEAT_SECONDS: Final = 2.0  # how often the receiver says that it still works


class Sender:
    """One transfer, from the call to its end."""

    def __init__(
        self, own: PeerIdentity, check_peer: CheckPeer, runtime: Runtime, header: SnapshotHeader, reader: SnapshotReader
    ) -> None:
        self._own = own
        self._check_peer = check_peer
        self._runtime = runtime
        self._header = header
        self._reader = reader
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # an answer has come, or the last one
        self._greeting: Ack | None = None
        self._taken = 0
        self._installed = False

    async def send(self, channel: Any, to: NodeId, pace: Pace) -> None:
        """Returns once it is installed. Raises SnapshotFailed; errors of the reader pass through."""
        self._call = channel.stream_stream(METHOD, None, None)(metadata=metadata_of(self._own, to))
        # All the time: a write may fail without knowing why, and gRPC ends no call whose answers nobody reads.
        self._reading = asyncio.get_running_loop().create_task(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())
        try:
            await self._write(encode_header(self._header))
            await self._until(lambda: self._greeting is not None)
            assert self._greeting is not None
            check_hello(self._greeting.hello, self._own, to, self._check_peer)
            await self._send_pieces(self._checked(self._greeting.offsets), pace)
            await self._waited_for(self._call.done_writing())
            await self._until(lambda: self._installed)
        except MalformedMessage as error:
            raise SnapshotFailed(str(error)) from error
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise SnapshotFailed(_reason(error)) from error
        finally:
            self._reading.cancel()
            self._call.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _send_pieces(self, offsets: list[int], pace: Pace) -> None:
        files = self._header.files
        sent = 0
        for position, offset, size in pieces(files, offsets, PIECE_BYTES):
            await pace.spend(size)
            await fail_async("snapshotBeforeSendPiece")
            data = await self._runtime.run_aside(self._reader.read, files[position].name, offset, size)
            await self._write(encode_piece(Piece(position, offset, data)))
            sent += size
            oldest = sent - WINDOW_BYTES
            await self._until(lambda oldest=oldest: self._taken >= oldest)  # type: ignore[misc]

    def _checked(self, offsets: list[int]) -> list[int]:
        sizes = [file.size for file in self._header.files]
        if len(offsets) != len(sizes) or any(map(int.__gt__, offsets, sizes)):
            raise MalformedMessage("the receiver claims to have what was never sent")
        return offsets

    async def _read(self) -> None:
        while not self._installed:
            ack = decode_ack(await self._call.read())
            if ack.failed:
                raise SnapshotFailed(ack.failed)
            if self._greeting is None:
                self._greeting = ack
            self._taken = ack.taken
            self._installed = ack.installed
            self._news.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Raises what has ended the call, if it comes first."""
        assert self._reading is not None
        while not condition():
            if self._reading.done():
                self._reading.result()
                raise MalformedMessage("the receiver ended the call too early")
            self._news.clear()
            await self._waited_for(self._news.wait())

    async def _write(self, frame: bytes) -> None:
        try:
            await self._waited_for(self._call.write(frame))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._until(lambda: False)

    async def _waited_for(self, call: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await call
        except TimeoutError as error:
            raise SnapshotFailed("the receiver says nothing more") from error


def _reason(error: BaseException) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)


async def serve(
    own: PeerIdentity, peer: PeerIdentity, receiver: SnapshotReceiver, chunks: AsyncIterator[bytes], context: Any
) -> AsyncIterator[bytes]:
    """One call of a peer that may talk to us. A generator: what it yields is sent."""
    arrival: SnapshotArrival | None = None
    failure: SnapshotFailed | None = None
    try:
        header = decode_header(await _next(chunks), peer.node_id)
        arrival = await receiver.begin(header)
        yield encode_greeting(own.cluster_id, own.node_id, own.instance, arrival.offsets)
        order = _Order(header.files, arrival.offsets)
        while order.left:
            piece = decode_piece(await _next(chunks))
            order.check(piece)
            await arrival.write(piece.file, piece.offset, piece.data)
            yield encode_ack(order.taken)
        finishing = asyncio.get_running_loop().create_task(arrival.finish())
        try:
            while not (await asyncio.wait([finishing], timeout=BEAT_SECONDS))[0]:
                yield encode_ack(order.taken)
        finally:
            finishing.cancel()
        await finishing
        yield encode_ack(order.taken, installed=True)
    except MalformedMessage as error:
        logger.error("%x ends a snapshot of %x: %s", own.node_id, peer.node_id, error)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except SnapshotFailed as error:
        logger.info("%x ends a snapshot of %x: %s", own.node_id, peer.node_id, error)
        failure = error
    finally:
        if arrival is not None:
            arrival.abandon()
    if failure is not None:
        # As an answer, and the call stays open until the sender has seen it: a write into a call that has ended
        # fails without saying why.
        yield encode_failure(str(failure))
        with suppress(SnapshotFailed):
            while True:
                await _next(chunks)


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            return await anext(chunks)
    except TimeoutError as error:
        raise SnapshotFailed("the sender says nothing more") from error
    except StopAsyncIteration as error:
        raise SnapshotFailed("the sender ended the call early") from error


class _Order:
    """Which piece comes next: the files in order, each without a gap."""

    def __init__(self, files: list[SnapshotFile], offsets: list[int]) -> None:
        self.taken = 0
        self._files = files
        self._offsets = list(offsets)
        self._position = 0
        self._skip_full()

    @property
    def left(self) -> bool:
        return self._position < len(self._files)

    def check(self, piece: Piece) -> None:
        """Raises MalformedMessage."""
        position, offset = self._position, self._offsets[self._position]
        if (piece.file, piece.offset) != (position, offset) or offset + len(piece.data) > self._files[position].size:
            raise MalformedMessage(f"a piece of file {piece.file} at {piece.offset}, not of {position} at {offset}")
        self._offsets[position] += len(piece.data)
        self.taken += len(piece.data)
        self._skip_full()

    def _skip_full(self) -> None:
        while self.left and self._offsets[self._position] == self._files[self._position].size:
            self._position += 1
