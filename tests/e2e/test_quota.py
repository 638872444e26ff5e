"""S-70: three members whose small quota is filled by several clients: writes are refused everywhere, what frees space
works, and after "compact, defrag, disarm" writes go on. All members hold the same at any moment."""

import threading
from pathlib import Path

import grpc

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for

QUOTA = 2 << 20
VALUE = b"v" * 20_000
NO_SPACE = "etcdserver: mvcc: database space exceeded"


def maintenance(member: Member) -> rpc_pb2_grpc.MaintenanceStub:
    return rpc_pb2_grpc.MaintenanceStub(member.channel)


def alarms(member: Member) -> list[tuple[int, int]]:
    found = maintenance(member).Alarm(pb.AlarmRequest(), timeout=5).alarms
    return [(alarm.memberID, alarm.alarm) for alarm in found]


def hashes(cluster: Cluster) -> None:
    """Equal on all, at a revision that all have."""
    revision = cluster.kv().Range(pb.RangeRequest(key=b"x"), timeout=5).header.revision

    def equal() -> bool:
        try:
            found = [maintenance(one).HashKV(pb.HashKVRequest(revision=revision), timeout=5) for one in cluster.members]
        except grpc.RpcError:
            return False  # one is a little behind
        one = {(answer.hash, answer.compact_revision) for answer in found}
        assert len({compact for _, compact in one}) > 1 or len(one) == 1, found
        return len(one) == 1

    wait_for(equal, "equal hashes")


def fill(cluster: Cluster, client: int, refused: list[str]) -> None:
    """Put until it is refused, through one member."""
    kv = cluster.kv(cluster.members[client % 3])
    for number in range(1000):
        try:
            kv.Put(pb.PutRequest(key=b"fill/%d/%d" % (client, number % 5), value=VALUE), timeout=10)
        except grpc.RpcError as error:
            refused.append(f"{error.code().name} {error.details()}")
            return


def test_s70_a_full_store_refuses_and_recovers(tmp_path: Path) -> None:
    with Cluster(3, tmp_path, flags=[f"--quota-backend-bytes={QUOTA}"]) as cluster:
        first, second, third = cluster.members
        refused: list[str] = []
        clients = [threading.Thread(target=fill, args=(cluster, number, refused)) for number in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert refused == [f"RESOURCE_EXHAUSTED {NO_SPACE}"] * 6
        hashes(cluster)
        # The alarm is there when the refusal is heard, on whichever member one asks.
        raised = alarms(second)
        assert raised
        assert {kind for _, kind in raised} == {pb.AlarmType.NOSPACE}
        for member in cluster.members:
            status = member.status()
            assert status is not None
            assert status.dbSizeQuota == QUOTA
            assert QUOTA - 2 * len(VALUE) < status.dbSizeInUse <= status.dbSize
            wait_for(lambda one=member: any("alarm:NOSPACE " in text for text in one.status().errors), "told by Status")
            put = pb.PutRequest(key=b"small")
            assert refusal(cluster.kv(member).Put, put) == NO_SPACE
            grant = rpc_pb2_grpc.LeaseStub(member.channel).LeaseGrant
            assert refusal(grant, pb.LeaseGrantRequest(TTL=60)) == NO_SPACE
            assert cluster.kv(member).Range(pb.RangeRequest(key=b"fill/", range_end=b"fill0"), timeout=5).count == 30
        # Disarmed without anything freed, it is raised again by the next write.
        disarm(second)
        # A member that does not know yet that its alarm is off refuses, and has none to raise.
        wait_for(lambda: not third.status().errors, "the third member knows")
        assert refusal(cluster.kv(third).Put, pb.PutRequest(key=b"x", value=VALUE)) == NO_SPACE
        assert alarms(first)
        # Whoever has no space left may delete, by a compare too (etcd#13429), and compact.
        compare = pb.Compare(key=b"fill/0/0", target=pb.Compare.VERSION, result=pb.Compare.GREATER)
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"fill/0/0"))
        assert cluster.kv(third).Txn(pb.TxnRequest(compare=[compare], success=[delete]), timeout=5).succeeded
        deleted = cluster.kv(second).DeleteRange(pb.DeleteRangeRequest(key=b"fill/1", range_end=b"fill0"), timeout=5)
        assert deleted.deleted == 25
        hashes(cluster)
        cluster.kv(first).Compact(pb.CompactionRequest(revision=deleted.header.revision), timeout=5)
        for member in cluster.members:
            maintenance(member).Defragment(pb.DefragmentRequest(), timeout=30)
        assert refusal(cluster.kv(first).Put, pb.PutRequest(key=b"x")) == NO_SPACE  # until it is disarmed
        disarm(first)
        for member in cluster.members:
            cluster.kv(member).Put(pb.PutRequest(key=b"after", value=VALUE), timeout=5)
        assert alarms(third) == []
        hashes(cluster)


def disarm(member: Member) -> None:
    """As etcdctl does it: all that there are, one by one."""
    for owner, kind in alarms(member):
        off = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=owner, alarm=kind)  # type: ignore[arg-type]
        maintenance(member).Alarm(off, timeout=5)


def refusal(call: object, request: object) -> str:
    try:
        call(request, timeout=5)  # type: ignore[operator]
    except grpc.RpcError as error:
        return str(error.details())
    return ""
