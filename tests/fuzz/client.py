"""The clients' port: every RPC with any message, with damaged bytes, and raw HTTP/2."""

import grpc
from hypothesis import strategies as st

from tests.conformance.rpcs import RPCS
from tests.fuzz.frames import connection, exchange
from tests.fuzz.strategies import damaged, message
from tests.fuzz.target import Target

# These wait, for events or for others: a call of them is given up at once, and must leave nothing behind.
WAITING = {"Watch", "LeaseKeepAlive", "Lock", "Campaign", "Observe"}
LEFT_OUT = {"AuthEnable", "MoveLeader", "Defragment"}  # would lock everybody out; would only take time
WAIT_SECONDS, HANG_SECONDS = 0.02, 30.0
TYPED = (
    *("etcdserver: ", "auth: ", "election: ", "mutex: ", '"leader" field', "grpc: ", "unknown ", "rpc error: "),
    *("lease", "malformed", "bcrypt: "),
)
PATHS = [rpc.path for rpc in RPCS.values()]


class ClientPort:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel = grpc.insecure_channel(target.member.target, options=[("grpc.use_local_subchannel_pool", 1)])

    def inputs(self) -> "st.SearchStrategy[object]":
        rpcs = [rpc for name, rpc in RPCS.items() if name not in LEFT_OUT]
        messages = st.sampled_from(rpcs).flatmap(
            lambda rpc: st.tuples(
                st.just(rpc.name),
                st.one_of(
                    message(rpc.request.DESCRIPTOR).map(lambda one: one.SerializeToString()),
                    damaged(rpc.request.DESCRIPTOR),
                ),
            )
        )
        bodies = st.sampled_from(rpcs).flatmap(lambda rpc: damaged(rpc.request.DESCRIPTOR))
        return st.one_of(messages, messages, connection(PATHS, bodies))

    def send(self, value: object) -> None:
        if isinstance(value, bytes):
            exchange(self._target.member.client_port, value)
            return
        assert isinstance(value, tuple)
        name, data = value
        if name == "MemberAdd" and b"http" in data and b"//" in data:
            return  # a voter that does not run would take nothing from three, but two would
        rpc = RPCS[name]
        streams = (rpc.client_streams, rpc.server_streams)
        kind = {(False, False): "unary_unary", (False, True): "unary_stream", (True, True): "stream_stream"}[streams]
        call = getattr(self._channel, kind)(rpc.path, request_serializer=None, response_deserializer=None)
        try:
            answer = call(
                iter([data]) if rpc.client_streams else data,
                timeout=WAIT_SECONDS if name in WAITING else HANG_SECONDS,
            )
            if rpc.server_streams:
                for _ in answer:
                    pass
        except grpc.RpcError as error:
            _check(name, error)

    def close(self) -> None:
        self._channel.close()


def _check(name: str, error: grpc.RpcError) -> None:
    code, text = error.code(), error.details() or ""
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        assert name in WAITING, f"{name} hangs"
        return
    assert "internal error" not in text, f"{name}: {code} {text}"
    assert text.startswith(TYPED) or code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED), (
        f"{name}: {code} {text}"
    )
