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

    def hashes() -> set[tuple[int, int, int]]:
        found = set()
        for member in cluster.members:
            answer = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(rpc_pb2.HashKVRequest(), timeout=30)
            found.add((answer.hash, answer.hash_revision, answer.compact_revision))
        return found

    def same_index() -> bool:
        return len({status and status.raftAppliedIndex for status in map(Member.status, cluster.members)}) == 1

    def histories() -> list[list[kv_pb2.Event]] | None:
        """None: a write that nobody waits for any more came meanwhile, or is not everywhere yet."""
        before = hashes()
        found = [changes_of(member) for member in cluster.members]
        return found if len(before) == 1 and hashes() == before else None

    wait_for(same_index, "equal applied indexes")
    found = wait_for(histories, "equal hashes, before and after the histories are read")
    for one, other in pairwise(found):
        assert one == other, f"members tell different histories: {_first_difference(one, other)}"
    return Truth(found[0])


def _first_difference(one: list[kv_pb2.Event], other: list[kv_pb2.Event]) -> str:
    pairs = zip(one, other, strict=False)
    different = next((f"{left} and {right}" for left, right in pairs if left != right), None)
    return different or f"{len(one)} changes and {len(other)}, of which one goes on"


def check_log(member: Member) -> None:
    """Nothing in the log of any run of the member says that something went wrong inside."""
    for line in member.log_path.read_text(errors="replace").splitlines():
        if any(text in line for text in member.expected):
            continue
        level = json.loads(line)["level"] if line.startswith("{") else "not of the logger"
        assert level in {"debug", "info", "warning"}, f"{member.name}: {line}"
