"""What all members must agree on at the end of a run, and what none may have in its log."""

import json
from itertools import pairwise

from kvstore.pb import history_pb2, history_pb2_grpc, kv_pb2, rpc_pb2, rpc_pb2_grpc
from tests.e2e.checkers import Truth
from tests.e2e.cluster import Cluster, Member, wait_for

EVERYTHING = b"\0"


def changes_of(member: Member) -> list[kv_pb2.Event]:
    stub = history_pb2_grpc.HistoryStub(member.channel)
    request = history_pb2.ReadHistoryRequest(key=EVERYTHING, range_end=EVERYTHING)
    return [change.event for answer in stub.Read(request, timeout=60) for change in answer.changes]


def check_members(cluster: Cluster) -> Truth:
    """All members tell the same history and hash alike. Returns that history."""

    def same_hash() -> bool:
        hashes = set()
        for member in cluster.members:
            answer = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(rpc_pb2.HashKVRequest(), timeout=30)
            hashes.add((answer.hash, answer.hash_revision, answer.compact_revision))
        return len(hashes) == 1

    def same_index() -> bool:
        return len({status and status.raftAppliedIndex for status in map(Member.status, cluster.members)}) == 1

    wait_for(same_index, "equal applied indexes")
    wait_for(same_hash, "equal hashes")
    return Truth(wait_for(lambda: _common_history(cluster), "histories of equal length"))


def _common_history(cluster: Cluster) -> list[kv_pb2.Event] | None:
    """None while one is only shorter: a write that nobody waits for any more may still come. What differs never may."""
    histories = sorted((changes_of(member) for member in cluster.members), key=len)
    for one, other in pairwise(histories):
        assert other[: len(one)] == one, f"members tell different histories: {_first_difference(one, other)}"
    return histories[-1] if len(histories[0]) == len(histories[-1]) else None


def _first_difference(one: list[kv_pb2.Event], other: list[kv_pb2.Event]) -> str:
    return next(f"{left} and {right}" for left, right in zip(one, other, strict=False) if left != right)


def check_log(member: Member) -> None:
    """Nothing in the log of any run of the member says that something went wrong inside."""
    for line in member.log_path.read_text(errors="replace").splitlines():
        level = json.loads(line)["level"] if line.startswith("{") else "not of the logger"
        assert level in {"debug", "info", "warning"}, f"{member.name}: {line}"
