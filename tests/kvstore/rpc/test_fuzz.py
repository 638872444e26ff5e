"""Frames that nobody would send, on sockets and straight into the protocol: whatever comes, the server serves on.

A seed is a whole session; each failure names its own. `make test` runs a few, `make test-all` thousands.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from kvstore.rpc import ServerOptions
from kvstore.rpc.base import Call
from tests.kvstore.rpc.ends import until
from tests.kvstore.rpc.pairs import SERVER_IS_HERE
from tests.kvstore.rpc.raw import CHAT, PREFACE, REQUEST, RST, SETTINGS, block, call, data, frame, headers, message
from tests.kvstore.rpc.services import Front

Raw = Callable[..., Awaitable[Front]]
SESSIONS = [pytest.param(150, id="150"), pytest.param(4000, id="4000", marks=pytest.mark.long)]


def session(rng: random.Random) -> bytes:
    """What one client sends in its life."""
    hello = PREFACE + frame(SETTINGS)
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(400))
    sent = hello + b"".join(frames(rng))
    if kind == 1:
        return sent[: rng.randrange(len(sent))]
    if kind == 2:
        return hello + rng.randbytes(rng.randrange(400))
    if kind == 3:
        mutated = bytearray(sent)
        for _ in range(rng.randrange(1, 8)):
            mutated[rng.randrange(len(hello), len(mutated))] = rng.randrange(256)
        return bytes(mutated)
    return sent


def frames(rng: random.Random) -> Iterator[bytes]:
    stream_id = 1
    for _ in range(rng.randrange(1, 12)):
        choice = rng.randrange(7)
        if choice == 0:
            yield call(stream_id, rng.choice([b"hello", b"fail", b"boom", b"", b"x" * 5000]))
        elif choice == 1:
            yield headers(stream_id, CHAT) + data(stream_id, message(b"hi") * rng.randrange(4), rng.randrange(2))
        elif choice == 2:
            yield frame(RST, 0, max(1, stream_id - 2), rng.randbytes(4))
        elif choice == 3:
            yield frame(rng.randrange(12), rng.randrange(256), rng.randrange(6), rng.randbytes(rng.randrange(40)))
        elif choice == 4:
            pairs = list(REQUEST)
            pairs[rng.randrange(len(pairs))] = (rng.randbytes(3), rng.randbytes(5))
            yield headers(stream_id, pairs)
        elif choice == 5:
            yield headers(stream_id) + data(stream_id, rng.randbytes(rng.randrange(30)), rng.randrange(2))
        else:
            yield frame(1, 4, stream_id, block(REQUEST)[: rng.randrange(60)])
        stream_id += 2


@pytest.mark.parametrize("count", SESSIONS)
async def test_on_sockets(raw: Raw, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    front = await raw()
    tasks = len(asyncio.all_tasks())
    for seed in range(count):
        rng = random.Random(seed)
        _, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(session(rng))
        if rng.randrange(3) == 0:
            await writer.drain()
            writer.transport.abort()
        else:
            writer.close()
        if seed % 50 == 0:
            assert await front.ask(b"alive") == b"alive", f"after seed {seed}"
    await until(lambda: all(handler.is_closed.is_set() for handler in front.opened))
    server: Any = front.server
    await until(lambda: len(server._server.sessions) == 1, "only the channel's connection is left")
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)
    assert server._server.calls_open == 0
    said = "".join(capfd.readouterr())
    assert said.count("Traceback") == said.count("RuntimeError: bug"), "only the handler's own"
    print(f"{count} sessions on sockets, seeds 0 to {count - 1}, {len(front.opened)} streams")


class Transport:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.is_closed = False
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default


@pytest.mark.skipif(not SERVER_IS_HERE, reason="the nghttp2 front has no server")
@pytest.mark.parametrize(
    "count", [pytest.param(600, id="600"), pytest.param(30_000, id="30000", marks=pytest.mark.long)]
)
async def test_in_process(count: int) -> None:
    """Without sockets, and cut in pieces at any byte."""
    from kvstore.rpc.nghttp2.front import Nghttp2Server
    from kvstore.rpc.nghttp2.serving import Acceptor

    def echo(calls: list[Call]) -> None:
        for asked in calls:
            asked.reply(asked.request)

    front = Nghttp2Server(ServerOptions())
    front.add_calls("/t.T/Echo", echo)
    server = front._server
    executions = 0
    for seed in range(count):
        rng = random.Random(1_000_000 + seed)
        transport = Transport()
        transport.protocol = Acceptor(server)
        transport.protocol.connection_made(transport)
        sent = session(rng)
        while sent and not transport.is_closed:
            cut = rng.randrange(1, len(sent) + 1)
            transport.protocol.data_received(sent[:cut])
            sent = sent[cut:]
            executions += 1
            if rng.randrange(2):
                server.flusher.flush()
        server.flusher.flush()
        transport.protocol.connection_lost(None)
        assert not server.sessions, f"seed {seed}"
        assert not server.acceptors, f"seed {seed}"
        assert server.calls_open == 0, f"seed {seed}"
    print(f"{count} sessions in process, {executions} reads")
    await front.stop(0)


class Broken(Transport):
    """As uvloop's after a write that failed: closed at once, and connection_lost not called yet."""

    def write(self, data: bytes) -> None:
        if self.is_closed:
            raise RuntimeError("unable to perform operation, the handler is closed")
        super().write(data)


@pytest.mark.skipif(not SERVER_IS_HERE, reason="the nghttp2 front has no server")
async def test_a_transport_that_has_closed_itself_is_not_written_to(capfd: pytest.CaptureFixture[str]) -> None:
    from kvstore.rpc.nghttp2.front import Nghttp2Server
    from kvstore.rpc.nghttp2.serving import Acceptor

    front = Nghttp2Server(ServerOptions())
    server = front._server
    transport = Broken()
    transport.protocol = Acceptor(server)
    transport.protocol.connection_made(transport)
    transport.protocol.data_received(session(random.Random(1))[:100])
    transport.is_closed = True
    server.flusher.flush()
    transport.protocol.connection_lost(None)
    assert "Traceback" not in "".join(capfd.readouterr())
    await front.stop(0)
