"""gRPC for everybody here: servers, clients and peers get their end of a connection from this one factory.

Two fronts do the same: `nghttp2` (the default; kvstore/rpc/nghttp2) and `grpcio` (kvstore/rpc/grpcio.py). KVSTORE_RPC
chooses for a whole process, `kvstore serve --rpc` for a member, the argument `front` for one end of a connection.
"""

import os
from typing import TYPE_CHECKING, Any, Final

import structlog

from kvstore.rpc.address import host_port
from kvstore.rpc.options import ChannelOptions, ServerOptions
from kvstore.rpc.tls import ChannelTls, ServerTls, tls_for

if TYPE_CHECKING:
    from kvstore.rpc.base import RpcServer

__all__ = [
    "FRONTS",
    "ChannelOptions",
    "ChannelTls",
    "ServerOptions",
    "ServerTls",
    "choose_front",
    "default_front",
    "make_channel",
    "make_peer_channel",
    "make_peer_server",
    "make_server",
]

FRONTS: Final = ("nghttp2", "grpcio")
DEFAULT_FRONT: Final = "nghttp2"
FRONT_VARIABLE: Final = "KVSTORE_RPC"

_chosen: list[str] = []  # at most one: what this process uses unless told otherwise


def choose_front(name: str) -> None:
    """For all of this process that is made from here on. Raises ValueError."""
    if name not in FRONTS:
        raise ValueError(f"rpc: {name!r} is none of {', '.join(FRONTS)}")
    _chosen[:] = [_or_fallback(name)]


def default_front() -> str:
    if not _chosen:
        choose_front(os.environ.get(FRONT_VARIABLE) or DEFAULT_FRONT)
    return _chosen[0]


def _or_fallback(name: str) -> str:
    """grpcio where libnghttp2's binding cannot be loaded: slower, and serves as well."""
    if name == "nghttp2":
        try:
            import kvstore.rpc.nghttp2.engine  # noqa: F401
        except ImportError as error:
            structlog.get_logger(__name__).warning(
                "the nghttp2 front cannot be loaded: using grpcio, which is slower", reason=str(error)
            )
            return "grpcio"
    return name


def make_server(options: ServerOptions | None = None, front: str | None = None) -> "RpcServer":
    """A server that does not listen yet. Call on the loop that will run it."""
    if (front or default_front()) == "nghttp2":
        from kvstore.rpc.nghttp2.front import Nghttp2Server

        return Nghttp2Server(options or ServerOptions())
    from kvstore.rpc import grpcio

    return grpcio.GrpcioServer(options or ServerOptions())


def make_channel(target: str, options: ChannelOptions | None = None, front: str | None = None) -> Any:
    """A channel with grpc.aio's surface, for generated stubs.

    target: "http://host:port", "https://host:port" (with `options.tls`) or "host:port". Connects on the first call;
    call on the loop that will use it.
    """
    if (front or default_front()) == "nghttp2":
        from kvstore.rpc.nghttp2.channel import Channel

        return Channel(target, options or ChannelOptions())
    from kvstore.rpc import grpcio

    return grpcio.channel(target, options or ChannelOptions())


def make_peer_server(arguments: list[tuple[str, Any]], front: str | None = None, tls: ServerTls | None = None) -> Any:
    """For the peer transport: a server with grpc.aio's surface and gRPC's arguments, not started."""
    if (front or default_front()) == "nghttp2":
        from kvstore.rpc.nghttp2.server import Server

        return Server(ServerOptions.of_grpc(arguments, tls))
    from kvstore.rpc import grpcio

    return grpcio.peer_server(arguments, tls)


def make_peer_channel(
    target: str, arguments: list[tuple[str, Any]], front: str | None = None, tls: ChannelTls | None = None
) -> Any:
    """For the peer transport: a channel with grpc.aio's surface and gRPC's arguments.

    target: a peer's URL, whose scheme decides whether `tls` is used, or "host:port".
    """
    address, tls = host_port(target), tls_for(target, tls)
    if (front or default_front()) == "nghttp2":
        from kvstore.rpc.nghttp2.channel import Channel

        return Channel(address, ChannelOptions.of_grpc(arguments, tls))
    from kvstore.rpc import grpcio

    return grpcio.peer_channel(address, arguments, tls)
