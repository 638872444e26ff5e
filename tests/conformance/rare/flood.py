"""More puts at once than a client of gRPC's would send: frames by hand, on a few connections."""

import asyncio

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.rpcs import RPCS
from tests.kvstore.rpc import raw

CONNECTIONS = 4
PUTS_OF_CONNECTION = 3_000  # etcd refuses from 5,000 on, ours from 10,000
HEADERS = [
    *((b":method", b"POST"), (b":scheme", b"http"), (b":path", RPCS["Put"].path.encode())),
    *((b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
]


def flood(port: int) -> None:
    """Until all are answered."""

    async def all_() -> None:
        await asyncio.gather(*[_connection(port) for _ in range(CONNECTIONS)])

    asyncio.run(all_())


async def _connection(port: int) -> None:
    head = raw.block(HEADERS)
    body = raw.message(pb.PutRequest(key=b"p").SerializeToString())
    async with await raw.Socket.open(port) as socket:
        for stream in range(1, 2 * PUTS_OF_CONNECTION, 2):
            socket.send(raw.frame(raw.HEADERS, raw.END_HEADERS, stream, head), raw.data(stream, body))
        left = PUTS_OF_CONNECTION
        while left:
            frame = await socket.read()
            assert frame is not None, "the server has closed the connection"
            if frame.kind in (raw.SETTINGS, raw.PING) and not frame.flags & raw.ACK:
                socket.send(raw.frame(frame.kind, raw.ACK, 0, frame.payload if frame.kind == raw.PING else b""))
            elif frame.kind == raw.DATA and frame.payload:
                socket.send(raw.frame(raw.WINDOW, 0, 0, len(frame.payload).to_bytes(4, "big")))
            left -= frame.stream_id > 0 and (frame.kind == raw.RST or bool(frame.flags & raw.END_STREAM))
