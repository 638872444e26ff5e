"""grpc.reflection.v1alpha: which services there are, and their .proto files, for tools such as grpcurl.

Off unless --enable-grpc-reflection asks for it, as etcd has none.
"""

from typing import Any, final

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import _async, reflection_pb2, reflection_pb2_grpc

from kvstore.pb import POOL
from kvstore.rpc.base import RpcServer


@final
class _Pools:
    """Our descriptors have a pool of their own; those of gRPC's packages are in the common one."""

    def __getattr__(self, name: str) -> Any:
        def find(*arguments: Any) -> Any:
            try:
                return getattr(POOL, name)(*arguments)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*arguments)

        return find


def register(rpc: RpcServer) -> None:
    """Call when everything else is registered."""
    names = {path.lstrip("/").partition("/")[0] for path in rpc.local.paths()}
    names.add(reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name)
    servicer: Any = _async.ReflectionServicer(names, _Pools())
    rpc.add_servicer(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)
