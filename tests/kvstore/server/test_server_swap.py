"""A member whose state is replaced by a snapshot: who waits is told the truth, and everybody reads the new state."""

from pathlib import Path

from kvstore import errors
from kvstore.config import ServerConfig
from kvstore.mvcc import schema
from kvstore.mvcc.store import MvccStore
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.server.bootstrap import open_member
from kvstore.server.proposal import Proposal
from kvstore.server.server import KvServer
from kvstore.state.applier import Result
from kvstore.state.cluster import ClusterTable, Member
from kvstore.state.command import Op
from raft.transport.grpc import GrpcTransport, PeerIdentity

CLUSTER = (("a", ("http://127.0.0.1:1",)), ("b", ("http://127.0.0.1:2",)))


async def snapshot(path: Path, members: list[Member], member_id: int, boot: int, sequence: int) -> MvccStore:
    """A state that holds the requests of `member_id` up to (boot, sequence)."""
    store = MvccStore.open(path)
    ClusterTable(store).bootstrap(members)
    batch = store.engine.batch()
    batch.put(schema.seen_row(member_id), schema.pack_pair(boot, sequence))
    store.commit(batch, store.state._replace(applied_index=9, applied_term=3, revision=7))
    store.close()
    return MvccStore.open(path)


async def test_requests_inside_the_snapshot_are_unknown_and_the_members_are_read_again(tmp_path: Path) -> None:
    config = ServerConfig(name="a", data_dir=tmp_path / "data", initial_cluster=CLUSTER, initial_cluster_given=True)
    member = await open_member(config)
    identity = member.identity
    peer = PeerIdentity(identity.cluster_id, identity.member_id, identity.instance)
    server = KvServer(config, member, GrpcTransport(peer, ["http://127.0.0.1:0"]))
    answers: dict[int, Result] = {}
    for number in (1, 2, 3):
        raw = PutRequest(key=b"k").SerializeToString()
        server.propose([Proposal(Op.PUT, raw, lambda result, number=number: answers.update({number: result}))])
    added = Member(id=77, peer_urls=("http://127.0.0.1:3",), name="c")
    other = await snapshot(tmp_path / "other", [*member.cluster.members(), added], identity.member_id, identity.boot, 2)
    member.store.swap(other).close()
    assert answers == {1: errors.TIMEOUT, 2: errors.TIMEOUT}
    assert server.waiting_requests == 1
    assert (server.store.current_revision, server.hub.revision) == (7, 7)
    assert server.peers.name_of(77) == "c"
    await server.leases.loaded()
    member.storage.close()
    member.store.close()
    member.release()
