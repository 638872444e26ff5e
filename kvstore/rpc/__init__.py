"""gRPC for everybody here: servers, clients and peers get their end of a connection from this one factory.

Another front can take grpcio's place by changing these two functions.
"""

from typing import TYPE_CHECKING, Any

from kvstore.rpc.options import ChannelOptions, ServerOptions

if TYPE_CHECKING:
    from kvstore.rpc.base import RpcServer

__all__ = ["ChannelOptions", "ServerOptions", "make_channel", "make_server"]


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
