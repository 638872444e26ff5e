"""From URL to address, and listening there."""

import asyncio
import errno
import socket
from typing import Final
from urllib.parse import urlsplit

NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address that this machine does not have

# A peer that went while its last packets were lost is given up about so soon, whether it is owed anything (gRFC A18 has
# these 20 s) or not. By itself the kernel would try for 15 minutes, or for ever; our pings are hours apart, as etcd's.
ABSENT_MS: Final = 20_000  # what it does not acknowledge for so long, it will not
IDLE_SECONDS: Final = 10  # of silence, then the kernel asks ...
PROBE_SECONDS: Final = 3  # ... and asks again: four lost packets in a row end an idle connection, not one


def host_port(target: str) -> str:
    """ "http[s]://host:port" or "host:port" -> "host:port". Raises ValueError with a text for the user."""
    if "://" not in target:
        target = "http://" + target
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{target}: only http:// and https:// are served")
    if parts.hostname is None or parts.port is None or parts.path not in ("", "/"):
        raise ValueError(f"{target}: want {parts.scheme}://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port}"


def is_secure(target: str) -> bool:
    return target.startswith("https://")


def split(address: str) -> tuple[str, int]:
    """ "host:port" -> host without brackets, port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def can_listen(address: str) -> None:
    """Try it with sockets of our own: grpc does not tell why it could not. Raises OSError with the address."""
    try:
        for listening in await asyncio.to_thread(listen, address):
            listening.close()
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None


def listen(address: str, backlog: int = 1) -> list[socket.socket]:
    """A socket for each address of the host, all on one port; a machine without IPv6 has one `localhost` less.

    Raises OSError when one of them is taken, or none is this machine's.
    """
    host, port = split(address)
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, kind, protocol, _, found in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                listening = _bound(family, kind, protocol, (found[0], port, *found[2:]))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                absent = error
                continue
            sockets.append(listening)
            listening.listen(backlog)
            port = listening.getsockname()[1]
        if absent is not None and not sockets:
            raise absent
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        # Not SO_REUSEPORT: two processes on one port must fail, not share it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _give_up_the_absent(listening)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _give_up_the_absent(listening: socket.socket) -> None:
    """Every connection that it accepts has these from it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_USER_TIMEOUT", ABSENT_MS),  # Linux's; it also takes the place of a count of probes
    ):
        if hasattr(socket, option):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
