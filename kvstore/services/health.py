"""grpc.health.v1: whether the member serves, for load balancers and probes that ask it the way of gRPC.

As at etcd, the only service there is to ask about is the whole, by the empty name, and it serves as long as this
answers. No token is needed.
"""

from typing import Final, final

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListResponse

from kvstore.errors import MALFORMED, Code, KvError
from kvstore.rpc.base import Call, RpcServer, Stream

PREFIX: Final = "/grpc.health.v1.Health/"
SERVING: Final = HealthCheckResponse(status=HealthCheckResponse.SERVING)
UNKNOWN_SERVICE: Final = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
NO_SUCH_SERVICE: Final = KvError(Code.NOT_FOUND, "unknown service")


def register(rpc: RpcServer) -> None:
    rpc.add_calls(f"{PREFIX}Check", _check)
    rpc.add_calls(f"{PREFIX}List", _list)
    rpc.add_stream(f"{PREFIX}Watch", _Watch)


def _check(calls: list[Call]) -> None:
    for call in calls:
        try:
            asked = HealthCheckRequest.FromString(call.request)
        except DecodeError:
            call.fail(MALFORMED)
            continue
        if asked.service:
            call.fail(NO_SUCH_SERVICE)
        else:
            call.reply(SERVING.SerializeToString())


def _list(calls: list[Call]) -> None:
    for call in calls:
        call.reply(HealthListResponse(statuses={"": SERVING}).SerializeToString())


@final
class _Watch:
    """One answer, and then nothing changes: a member that does not serve has closed the stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_answered = False

    def received(self, messages: list[bytes]) -> None:
        if self._is_answered:
            return
        self._is_answered = True
        try:
            asked = HealthCheckRequest.FromString(messages[0])
        except DecodeError:
            self._stream.close(MALFORMED)
            return
        self._stream.send([(UNKNOWN_SERVICE if asked.service else SERVING).SerializeToString()])

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        """It goes on listening."""

    def closed(self) -> None:
        pass
