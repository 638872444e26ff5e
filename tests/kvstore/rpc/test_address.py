"""Which addresses of a host are listened at."""

import asyncio
import socket
from typing import Any

import pytest

from kvstore.rpc import make_server
from kvstore.rpc.address import ABSENT_MS, IDLE_SECONDS, PROBE_SECONDS, can_listen, listen
from kvstore.rpc.http1 import Http1Handover, Http1Listener

HERE, ALSO_HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "2001:db8::1"  # the last is nobody's: RFC 3849


@pytest.fixture
def localhost(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`localhost(HERE, ELSEWHERE)`: what the name stands for from then on."""

    def set_(*addresses: str) -> None:
        def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            found = []
            for address in addresses:
                family, rest = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
                found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, *rest)))
            return found

        monkeypatch.setattr("kvstore.rpc.address.socket.getaddrinfo", getaddrinfo)

    return set_


@pytest.mark.parametrize("addresses", [(ELSEWHERE, HERE), (HERE, ELSEWHERE), (HERE, ALSO_HERE)])
def test_what_this_machine_has_of_a_hosts_addresses(localhost: Any, addresses: tuple[str, ...]) -> None:
    localhost(*addresses)
    sockets = listen("localhost:0")
    names = [found.getsockname() for found in sockets]
    for found in sockets:
        found.close()
    assert [name[0] for name in names] == [address for address in addresses if address != ELSEWHERE]
    assert len({name[1] for name in names}) == 1, "all on one port"


async def test_none_of_them_is_this_machines(localhost: Any) -> None:
    localhost(ELSEWHERE)
    with pytest.raises(OSError, match="cannot listen on localhost:0: "):
        await can_listen("localhost:0")


async def test_one_of_them_is_taken(localhost: Any) -> None:
    """A port that two processes share half and half would be worse than none."""
    localhost(ALSO_HERE, HERE, ELSEWHERE)
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on localhost:{port}: Address already in use"):
            await can_listen(f"localhost:{port}")
        with socket.create_server((ALSO_HERE, port)):
            pass  # left free again


@pytest.mark.parametrize("kind", ["gRPC", "HTTP/1.1"])
async def test_listeners_do_so(localhost: Any, kind: str) -> None:
    localhost(ELSEWHERE, HERE)
    listener: Any = Http1Listener(Http1Handover(None)) if kind == "HTTP/1.1" else make_server(front="nghttp2")
    [url] = await listener.start(["http://localhost:0"])
    _, writer = await asyncio.open_connection(HERE, int(url.rpartition(":")[2]))
    writer.close()
    if kind == "gRPC":
        await listener.stop(0)
    else:
        listener.close()


def test_the_kernel_gives_up_an_absent_peer() -> None:
    """What is accepted has it from its listener. That a member does so is seen in tests/jepsen/test_vanished.py."""
    [listening] = listen(f"{HERE}:0")
    with listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        found = [
            accepted.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        ]
        assert found == [IDLE_SECONDS, PROBE_SECONDS, ABSENT_MS]
