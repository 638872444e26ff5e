"""Every RPC of etcd's API, from the descriptors of our own .proto files: name, path, message types, kind.

Names are unique across services, so `RPCS["Put"]` is enough to find one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.pb import rpc_pb2, v3election_pb2, v3lock_pb2


@dataclass(frozen=True)
class Rpc:
    name: str
    path: str
    request: type[Message]
    response: type[Message]
    client_streams: bool
    server_streams: bool

    def on(self, channel: grpc.Channel) -> Callable[..., Any]:
        """Like a generated stub's attribute."""
        kind = f"{'stream' if self.client_streams else 'unary'}_{'stream' if self.server_streams else 'unary'}"
        method: Callable[..., Any] = getattr(channel, kind)(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )
        return method


def _all() -> Iterator[Rpc]:
    for file in (rpc_pb2, v3lock_pb2, v3election_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(
                    method.name,
                    f"/{service.full_name}/{method.name}",
                    GetMessageClass(method.input_type),
                    GetMessageClass(method.output_type),
                    method.client_streaming,
                    method.server_streaming,
                )


RPCS = {rpc.name: rpc for rpc in _all()}
