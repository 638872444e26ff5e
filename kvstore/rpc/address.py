"""From URL to address, and whether one can listen there."""

import asyncio
import socket
from urllib.parse import urlsplit


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
    """Try it with a socket of our own: grpc does not tell why it could not. Raises OSError with the address."""
    host, port = split(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, bind_to in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(bind_to)
                probe.listen(1)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
