"""Member and cluster ids as etcd computes them, and the table of members."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.pb.command_pb2 import MemberPublish
from kvstore.state.applier import AppliedResult
from kvstore.state.cluster import OTHER_INSTANCE, ClusterTable, Member, cluster_id, member_id
from kvstore.state.command import Op, encode_batch, encode_request
from tests.kvstore.state.support import Entry, State

# What etcd 3.5.1 logs for --initial-cluster a=http://127.0.0.1:32380,b=...81,c=...82 --initial-cluster-token tok-1
ETCD_MEMBERS = [0xDF3E816E893A1F0A, 0x90B52F35BA12DF01, 0x54A727A247CDF2C6]
ETCD_CLUSTER = 0xCCF954A9A7BAAB3F


def test_ids_are_etcds() -> None:
    ids = [member_id([f"http://127.0.0.1:3238{n}"], "tok-1") for n in range(3)]
    assert ids == ETCD_MEMBERS
    assert cluster_id(ids) == cluster_id(ids[::-1]) == ETCD_CLUSTER
    assert member_id(["http://b:1", "http://a:1"], "t") == member_id(["http://a:1", "http://b:1"], "t")


def publish(index: int, sequence: int, **fields: object) -> Entry:
    raw = MemberPublish(**fields).SerializeToString()  # type: ignore[arg-type]
    return Entry(index, encode_batch(1, [encode_request(Op.MEMBER_PUBLISH, raw, 7, 1, sequence)]))


@pytest.mark.parametrize("together", [True, False])
async def test_publish_completes_the_bootstrapped_rows(tmp_path: Path, together: bool) -> None:
    state = State(tmp_path / "s")
    table = ClusterTable(state.store)
    assert table.cluster_id == 0
    assert table.members() == []
    members = [Member(id=one, peer_urls=(f"http://{n}:1",)) for n, one in enumerate(ETCD_MEMBERS)]
    table.bootstrap(members)
    assert table.cluster_id == ETCD_CLUSTER
    assert table.members() == sorted(members, key=lambda member: member.id)
    entries = [
        publish(1, 1, member=ETCD_MEMBERS[0], name="a", client_urls=["http://c:1"], instance=5),
        publish(2, 2, member=ETCD_MEMBERS[0], name="b", instance=6),  # came back with another disk
        publish(3, 3, member=1, name="x", instance=1),
        publish(4, 4, member=ETCD_MEMBERS[0], name="a2", client_urls=["http://c:2"], instance=5),
    ]
    for entries_given in [entries] if together else [[one] for one in entries]:
        await state.feed(entries_given)
    assert state.sinks.answers == {
        1: AppliedResult(1, b""),
        2: OTHER_INSTANCE,
        3: errors.MEMBER_NOT_FOUND,
        4: AppliedResult(1, b""),
    }
    await state.store.flush()
    state.close()
    again = State(tmp_path / "s")
    found = ClusterTable(again.store).member(ETCD_MEMBERS[0])
    assert found == Member(
        id=ETCD_MEMBERS[0], peer_urls=("http://0:1",), name="a2", client_urls=("http://c:2",), instance=5
    )
    assert found.message().name == "a2"
    again.close()
