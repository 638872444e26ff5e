"""Snapshots over every transport, then what only gRPC has: damage, lies and identity on the wire."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from raft.codec import FORMAT
from raft.pb import peer_pb2 as pb
from raft.snapshot import (
    PIECE_BYTES,
    SnapshotArrival,
    SnapshotFailed,
    SnapshotFile,
    SnapshotHeader,
    SnapshotReader,
    SnapshotReceiver,
)
from raft.transport import base
from raft.transport.base import Pace
from raft.transport.grpc import METADATA_KEYS
from raft.transport.grpc_snapshots import METHOD, WINDOW_BYTES
from raft.transport.snapshot_codec import Piece, decode_ack, encode_header, encode_piece
from raft.types import Configuration, NodeId, SnapshotMeta
from tests.raft.transports import CLUSTER, GrpcWorld, MemoryWorld, World, beat, until

META = SnapshotMeta(100, 3, Configuration((1, 2, 3), (4,)), b"context")
CONTENT = {"big": bytes(range(251)) * 12_000, "empty": b"", "small": b"x" * 1000, "last": b"y" * PIECE_BYTES}


class Files(SnapshotReader):
    """A snapshot in memory, that counts what was read and may fail."""

    def __init__(self, content: dict[str, bytes] = CONTENT) -> None:
        self.index, self.term = META.index, META.term
        self.files = [SnapshotFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()]
        self.content = content
        self.bytes_read = 0
        self.fails_after = 1 << 40

    def read(self, name: str, offset: int, size: int) -> bytes:
        self.bytes_read += size
        if self.bytes_read > self.fails_after:
            raise OSError(5, "Input/output error")
        return self.content[name][offset : offset + size]

    def close(self) -> None:
        self.content = {}


def header_of(reader: SnapshotReader, sender: NodeId = 1) -> SnapshotHeader:
    return SnapshotHeader(META, sender, 5, reader.files)


class Receiver(SnapshotReceiver):
    """Keeps what arrives, and refuses what the test says."""

    def __init__(self) -> None:
        self.headers: list[SnapshotHeader] = []
        self.here: list[bytearray] = []
        self.written = 0
        self.on_write: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuses = ""
        self.finished = 0
        self.abandoned = 0

    async def begin(self, header: SnapshotHeader) -> SnapshotArrival:
        self.headers.append(header)
        if self.refuses:
            raise SnapshotFailed(self.refuses)
        if not self.here:
            self.here = [bytearray() for _ in header.files]
        return Arrival(self)


class Arrival(SnapshotArrival):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.offsets = [len(data) for data in receiver.here]

    async def write(self, file: int, offset: int, data: bytes) -> None:
        await self.receiver.gate.wait()
        self.receiver.on_write()
        assert offset == len(self.receiver.here[file])
        self.receiver.here[file] += data
        self.receiver.written += len(data)

    async def finish(self) -> None:
        await self.receiver.gate.wait()
        self.receiver.finished += 1

    def abandon(self) -> None:
        self.receiver.abandoned += 1


@pytest.fixture(params=[MemoryWorld, GrpcWorld], ids=["memory", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """1 and 2 are connected; 2 takes snapshots."""
    made: World = request.param()
    made.receivers[2] = Receiver()
    await made.connect(1, 2)
    yield made
    for node_id in list(made.transports):
        await made.stop(node_id)
    await until(lambda: len(asyncio.all_tasks()) == 1)  # gRPC's own end with their calls, a little later


def receiver_of(world: World) -> Receiver:
    receiver = world.receivers[2]
    assert isinstance(receiver, Receiver)
    return receiver


async def send(world: World, reader: SnapshotReader, to: NodeId = 2) -> None:
    await world.transports[1].send_snapshot(to, header_of(reader), reader)


# Every transport


async def test_all_files_arrive_and_the_sender_returns_after_finish(world: World) -> None:
    receiver = receiver_of(world)
    await send(world, Files())
    assert [bytes(data) for data in receiver.here] == list(CONTENT.values())
    assert receiver.headers == [header_of(Files())]
    assert receiver.finished == 1


async def test_a_transfer_that_was_cut_off_goes_on_where_it_was(world: World) -> None:
    receiver = receiver_of(world)

    def fail() -> None:
        if receiver.written > 1_500_000:
            raise SnapshotFailed("the disk is full")

    receiver.on_write = fail
    with pytest.raises(SnapshotFailed, match="the disk is full"):
        await send(world, Files())
    assert receiver.finished == 0
    await until(lambda: receiver.abandoned == 1)
    before = receiver.written
    receiver.on_write = lambda: None
    reader = Files()
    await send(world, reader)
    assert [bytes(data) for data in receiver.here] == list(CONTENT.values())
    assert reader.bytes_read == sum(map(len, CONTENT.values())) - before, "nothing is sent twice"


async def test_a_transfer_of_what_is_all_here_only_finishes_it(world: World) -> None:
    receiver = receiver_of(world)
    receiver.here = [bytearray(data) for data in CONTENT.values()]
    reader = Files()
    await send(world, reader)
    assert (reader.bytes_read, receiver.finished) == (0, 1)


async def test_a_refusal_names_its_reason(world: World) -> None:
    receiver_of(world).refuses = "term 5 is over"
    with pytest.raises(SnapshotFailed, match="term 5 is over"):
        await send(world, Files())


async def test_nobody_is_there_or_takes_snapshots(world: World) -> None:
    with pytest.raises(SnapshotFailed):
        await send(world, Files(), to=9)
    with pytest.raises(SnapshotFailed):
        await world.transports[2].send_snapshot(1, header_of(Files(), sender=2), Files())
    await world.stop(2)
    with pytest.raises(SnapshotFailed):
        await send(world, Files())


async def test_a_slow_receiver_slows_the_reading_and_no_message(world: World) -> None:
    receiver = receiver_of(world)
    receiver.gate.clear()
    reader = Files()
    sending = asyncio.create_task(send(world, reader))
    await until(lambda: bool(receiver.headers))
    for number in range(200):
        world.transports[1].send([beat(2, 1, number)])
        await asyncio.sleep(0.001)
    await until(lambda: len(world.received[2]) == 200)
    assert reader.bytes_read <= WINDOW_BYTES + 2 * PIECE_BYTES < len(CONTENT["big"])
    receiver.gate.set()
    await sending
    assert receiver.finished == 1


async def test_an_error_of_the_reader_passes_through(world: World) -> None:
    reader = Files()
    reader.fails_after = 1_000_000
    with pytest.raises(OSError, match="Input/output error"):
        await send(world, reader)
    await until(lambda: receiver_of(world).abandoned == 1)
    assert receiver_of(world).finished == 0


async def test_a_sender_that_gives_up_leaves_what_has_arrived(world: World) -> None:
    receiver = receiver_of(world)
    sending = asyncio.create_task(send(world, Files()))
    receiver.on_write = lambda: receiver.gate.clear() if receiver.written > 500_000 else None
    await until(lambda: receiver.written > 500_000)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert sending.cancelled()
    receiver.on_write = lambda: None
    receiver.gate.set()
    await until(lambda: receiver.abandoned == 1)
    assert receiver.finished == 0
    await send(world, Files())
    assert [bytes(data) for data in receiver.here] == list(CONTENT.values())


async def test_a_receiver_that_dies_ends_the_transfer(world: World) -> None:
    receiver = receiver_of(world)
    receiver.on_write = lambda: receiver.gate.clear() if receiver.written > 500_000 else None
    sending = asyncio.create_task(send(world, Files()))
    await until(lambda: receiver.written > 500_000)
    stopping = asyncio.create_task(world.stop(2))
    await asyncio.sleep(0)
    receiver.gate.set()
    await stopping
    with pytest.raises(SnapshotFailed):
        await sending


async def test_a_peer_whose_process_is_gone_is_reported_once(world: World) -> None:
    gone: list[NodeId] = []
    world.transports[1].on_unreachable = gone.append
    await world.stop(2)
    await until(lambda: bool(gone))
    await asyncio.sleep(0.2)  # it goes on trying to connect
    assert gone == [2]


async def test_a_pace_spreads_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(base.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    pace = Pace(1000)
    for _ in range(4):
        await pace.spend(500)
    assert slept == pytest.approx([0.5, 1.0, 1.5, 2.0], abs=0.1)
    await Pace(0).spend(10**12)
    assert len(slept) == 4


# gRPC


def metadata(**changes: str) -> tuple[tuple[str, str], ...]:
    values = dict(zip(METADATA_KEYS, [f"{FORMAT:x}", f"{CLUSTER:x}", "1", "2", "1"], strict=True))
    return tuple((values | {f"raft-{key}": value for key, value in changes.items()}).items())


async def dial(world: GrpcWorld, frames: list[bytes], **changes: str) -> grpc.aio.AioRpcError:
    """Speak the protocol by hand as node 1; returns the error that ends the call."""
    async with grpc.aio.insecure_channel(world.urls(2)[0].removeprefix("http://")) as channel:
        call = channel.stream_stream(METHOD, None, None)(metadata=metadata(**changes))

        async def speak() -> None:
            for number, frame in enumerate(frames):
                await call.write(frame)
                if number == 0 and len(frames) > 1:
                    assert decode_ack(await call.read()).offsets == [0] * len(CONTENT)
            await read_all(call)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await speak()  # a write may end it too, where the answer is quicker
        return caught.value


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.fixture
async def pair() -> AsyncIterator[GrpcWorld]:
    world = GrpcWorld()
    world.receivers[2] = Receiver()
    await world.connect(1, 2)
    yield world
    for node_id in list(world.transports):
        await world.stop(node_id)


HEADER = encode_header(header_of(Files()))


def wrong_header(change: Callable[[pb.SnapshotHeader], object]) -> bytes:
    chunk = pb.SnapshotChunk.FromString(HEADER)
    change(chunk.header)
    return chunk.SerializeToString()


def escape(header: pb.SnapshotHeader) -> None:
    header.files[0].name = "../member.json"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([b"\xff\xff\xff"], id="garbage"),
        pytest.param([encode_piece(Piece(0, 0, b"x"))], id="no header"),
        pytest.param([wrong_header(escape)], id="a path for a name"),
        pytest.param([wrong_header(lambda h: h.files.append(h.files[0]))], id="a file twice"),
        pytest.param([wrong_header(lambda h: h.files[0].__setattr__("size", 2**50))], id="too large"),
        pytest.param([wrong_header(lambda h: h.ClearField("files"))], id="no files"),
        pytest.param([wrong_header(lambda h: h.files[0].__setattr__("sha256", b"x"))], id="no checksum"),
        pytest.param([wrong_header(lambda h: h.__setattr__("index_term", 9))], id="newer than its leader"),
        pytest.param([wrong_header(lambda h: h.__setattr__("configuration", b"x"))], id="no configuration"),
        pytest.param([HEADER, HEADER], id="the header twice"),
        pytest.param([HEADER, encode_piece(Piece(0, 1, b"x"))], id="a gap"),
        pytest.param([HEADER, encode_piece(Piece(7, 0, b"x"))], id="no such file"),
        pytest.param([HEADER, encode_piece(Piece(0, 0, b""))], id="an empty piece"),
        pytest.param([HEADER, encode_piece(Piece(0, 0, bytes(PIECE_BYTES + 300)))], id="a piece too large"),
        pytest.param(
            [HEADER, pb.SnapshotChunk(piece=pb.SnapshotPiece(data=b"x", crc=1)).SerializeToString()], id="damaged"
        ),
    ],
)
async def test_grpc_what_cannot_be_is_refused_before_it_is_stored(pair: GrpcWorld, frames: list[bytes]) -> None:
    error = await dial(pair, frames)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert receiver_of(pair).written == 0
    await send(pair, Files())  # and harms nobody


@pytest.mark.parametrize("changes", [{"cluster": "bad"}, {"to": "7"}, {"from": "2"}, {"format": "63"}])
async def test_grpc_a_stranger_is_refused(pair: GrpcWorld, changes: dict[str, str]) -> None:
    error = await dial(pair, [HEADER], **changes)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert receiver_of(pair).headers == []


async def test_grpc_the_sender_checks_whom_it_found(pair: GrpcWorld) -> None:
    transport = pair.transports[1]
    transport.check_peer = lambda peer: "its disk is new"  # type: ignore[attr-defined]
    with pytest.raises(SnapshotFailed, match="its disk is new"):
        await send(pair, Files())
    assert receiver_of(pair).written == 0


async def test_grpc_an_early_end_of_the_call_keeps_what_arrived(pair: GrpcWorld) -> None:
    async with grpc.aio.insecure_channel(pair.urls(2)[0].removeprefix("http://")) as channel:
        call = channel.stream_stream(METHOD, None, None)(metadata=metadata())
        await call.write(HEADER)
        await call.write(encode_piece(Piece(0, 0, CONTENT["big"][:1000])))
        await call.done_writing()
        await read_all(call)
    reader = Files()
    await send(pair, reader)
    assert reader.bytes_read == sum(map(len, CONTENT.values())) - 1000
