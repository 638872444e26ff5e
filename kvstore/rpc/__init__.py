"""gRPC for everybody here: servers, clients and peers get their end of a connection from this one factory.

Another front can take grpcio's place by changing these four functions.
"""

from typing import TYPE_CHECKING, Any

from kvstore.rpc.options import ChannelOptions, ServerOptions

if TYPE_CHECKING:
    from kvstore.rpc.base import RpcServer

__all__ = ["ChannelOptions", "ServerOptions", "make_channel", "make_peer_channel", "make_peer_server", "make_server"]


def make_server(options: ServerOptions | None = None) -> "RpcServer":
    """A server that does not listen yet. Call on the loop that will run it."""
    from kvstore.rpc import grpcio

    return grpcio.GrpcioServer(options or ServerOptions())


def make_channel(target: str, options: ChannelOptions | None = None) -> Any:
    """A channel with grpc.aio's surface, for generated stubs.

    target: "http://host:port" or "host:port". Connects on the first call; call on the loop that will use it.
    """
    from kvstore.rpc import grpcio

    return grpcio.channel(target, options or ChannelOptions())


def make_peer_server(arguments: list[tuple[str, Any]]) -> Any:
    """For the peer transport: a server with grpc.aio's surface and gRPC's arguments, not started."""
    from kvstore.rpc import grpcio

    return grpcio.peer_server(arguments)


def make_peer_channel(target: str, arguments: list[tuple[str, Any]]) -> Any:
    """For the peer transport: a channel with grpc.aio's surface and gRPC's arguments to "host:port"."""
    from kvstore.rpc import grpcio

    return grpcio.peer_channel(target, arguments)
