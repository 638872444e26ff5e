"""The members' port: raw HTTP/2, and both services with damaged messages, by strangers and by a member that errs.

Members trust each other: what a true member says in good order is believed, so a forged entry is no finding. What is
tried here is everything else: no identity, half of one, another cluster's; and by one who has a true identity, bytes
that are no message, and messages of a term long gone.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from kvstore.pb import peer_pb2 as pb_leader
from kvstore.pb import peer_pb2_grpc
from kvstore.pb.rpc_pb2 import LeaseTimeToLiveRequest
from raft.pb import peer_pb2 as pb_raft
from raft.transport.identity import METADATA_KEYS, PeerIdentity, metadata_of
from tests.e2e.cluster import Member
from tests.fuzz.frames import connection, exchange
from tests.fuzz.strategies import damaged
from tests.fuzz.target import Target

REQUESTS = {
    "/raft.v1.Peer/Stream": pb_raft.MessageBatch,
    "/raft.v1.Peer/Snapshot": pb_raft.SnapshotChunk,
    "/kvstore.v1.Leader/KeepAliveLeases": pb_leader.KeepAliveLeasesRequest,
    "/kvstore.v1.Leader/TimeToLive": LeaseTimeToLiveRequest,
    "/kvstore.v1.Leader/Members": pb_leader.MembersRequest,
}
STREAMS = ("/raft.v1.Peer/Stream", "/raft.v1.Peer/Snapshot")
WAIT_SECONDS = 15.0


class PeerPort:
    def __init__(self, target: Target, member: Member | None = None) -> None:
        """member: another than the target's."""
        self._target = target
        self._member = member or target.member
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{self._member.peer_port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def inputs(self) -> "st.SearchStrategy[object]":
        identity = st.lists(
            st.tuples(
                st.sampled_from(METADATA_KEYS), st.sampled_from(["", "0", "1", "x", "-1", str(1 << 64), "f" * 16])
            ),
            max_size=len(METADATA_KEYS) + 1,
        )
        identity = st.one_of(st.just(self.identity()), identity)
        calls = st.sampled_from(sorted(REQUESTS)).flatmap(
            lambda path: st.tuples(
                st.just(path), st.lists(damaged(REQUESTS[path].DESCRIPTOR), min_size=1, max_size=3), identity
            )
        )
        bodies = st.sampled_from(sorted(REQUESTS)).flatmap(lambda path: damaged(REQUESTS[path].DESCRIPTOR))
        return st.one_of(calls, connection(sorted(REQUESTS), bodies))

    def identity(self) -> list[tuple[str, str]]:
        """Of another member, as the fuzzed one knows it."""
        member = self._member
        other = next(one for one in self._target.cluster.members if one is not member)
        status = member.status()
        assert status is not None
        cluster_id, to = status.header.cluster_id, status.header.member_id
        joining = metadata_of(PeerIdentity(cluster_id, 0, 0), to)
        stub = peer_pb2_grpc.LeaderStub(self._channel)
        view = stub.Members(pb_leader.MembersRequest(), metadata=joining, timeout=WAIT_SECONDS)
        row = next(row for row in view.members if other.member_id == row.member.ID)
        return metadata_of(PeerIdentity(cluster_id, row.member.ID, row.instance), to)

    def send(self, value: object) -> None:
        if isinstance(value, bytes):
            exchange(self._member.peer_port, value)
            return
        assert isinstance(value, tuple)
        path, messages, identity = value
        messages = [_old(path, data) for data in messages]
        kind = "stream_stream" if path in STREAMS else "unary_unary"
        call = getattr(self._channel, kind)(path, request_serializer=None, response_deserializer=None)
        try:
            answer = call(iter(messages) if path in STREAMS else messages[0], timeout=WAIT_SECONDS, metadata=identity)
            if path in STREAMS:
                for _ in answer:
                    pass
        except grpc.RpcError as error:
            _check(path, error)

    def close(self) -> None:
        self._channel.close()


def _check(path: str, error: Any) -> None:
    code, text = error.code(), error.details() or ""
    assert code != grpc.StatusCode.DEADLINE_EXCEEDED, f"{path} hangs"
    assert code != grpc.StatusCode.UNKNOWN, f"{path}: {text}"
    assert "internal error" not in text, f"{path}: {text}"


def _old(path: str, data: bytes) -> bytes:
    """Of the first term, if it is a message at all."""
    message: Any = REQUESTS[path]()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return data
    for one in message.messages if path == STREAMS[0] else [message.header] if path == STREAMS[1] else []:
        one.term = min(one.term, 1)
    return data if not message.ByteSize() else bytes(message.SerializeToString())
