"""Changes of the membership on real members: who may ask, what is refused, and what becomes of those who leave."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.errors import Code
from kvstore.pb import rpc_pb2 as pb
from kvstore.server.bootstrap import BootstrapError
from kvstore.server.peers import LOST_DATA, REMOVED
from raft.errors import PeerRefused
from tests.kvstore.server.live import Live, LiveMember, refused, until
from tests.ports import free_ports


async def names(member: LiveMember) -> list[str]:
    answer = await member.cluster.MemberList(pb.MemberListRequest(linearizable=True))
    return sorted(f"{one.name}{'?' * one.isLearner}" for one in answer.members)


async def put(member: LiveMember, key: bytes, value: bytes = b"v") -> None:
    await member.kv.Put(pb.PutRequest(key=key, value=value))


async def caught_up(live: Live) -> None:
    leader = await live.leader()
    index = leader.server.store.applied_index
    await until(lambda: all(one.server.store.applied_index >= index for one in live.running), "all caught up")


async def test_a_learner_joins_is_promoted_and_the_leader_leaves(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        asked = await live.follower()  # not the leader: it asks him
        await put(asked, b"before")
        new = await live.add("m4", learner=True, via=asked)
        assert await names(asked) == ["m1", "m2", "m3", "m4?"]
        assert new.server.is_learner
        assert (await new.maintenance.Status(pb.StatusRequest())).isLearner
        await put(asked, b"between")
        await caught_up(live)
        answer = await asked.cluster.MemberPromote(pb.MemberPromoteRequest(ID=new.id))
        assert [one.isLearner for one in answer.members] == [False] * 4
        assert answer.header.revision == 0
        leader = await live.leader()
        answer = await leader.cluster.MemberRemove(pb.MemberRemoveRequest(ID=leader.id))
        assert leader.id not in [one.ID for one in answer.members]
        await until(lambda: leader.failed is not None, "the removed leader ends")
        assert REMOVED in str(leader.failed)
        await leader.stop()
        assert new.id in [one.id for one in live.running]
        await put(new, b"after")
        await caught_up(live)
        for member in live.running:
            keys = await member.kv.Range(pb.RangeRequest(key=b"\0", range_end=b"\0", serializable=True))
            assert [kv.key for kv in keys.kvs] == [b"after", b"before", b"between"]
            assert await names(member) == sorted(one.config.name for one in live.running)


async def test_a_learner_knows_that_it_is_one_before_the_log_tells_it(tmp_path: Path) -> None:
    """It would serve as a voter until then."""
    async with Live(tmp_path, 1) as live:
        leader = await live.leader()
        peer_url = f"http://127.0.0.1:{free_ports(1)[0]}"
        await leader.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[peer_url], isLearner=True))
        new = LiveMember(live.config("m2", peer_url, initial_cluster_state="existing"))
        await new.open()
        assert new.server.peers.own is None
        assert new.server.is_learner
        new.member.store.close()
        new.member.release()


async def test_a_learner_answers_only_what_may_be_stale(tmp_path: Path) -> None:
    async with Live(tmp_path, 1) as live:
        leader = await live.leader()
        await put(leader, b"k")
        new = await live.add("m2", learner=True)
        await caught_up(live)
        found = await new.kv.Range(pb.RangeRequest(key=b"k", serializable=True))
        assert found.count == 1
        learner = errors.NOT_SUPPORTED_FOR_LEARNER
        assert await refused(new.kv.Range(pb.RangeRequest(key=b"k"))) == learner
        assert await refused(new.kv.Put(pb.PutRequest(key=b"k"))) == learner
        assert await refused(new.kv.Txn(pb.TxnRequest())) == learner
        assert await refused(new.cluster.MemberList(pb.MemberListRequest())) == learner
        assert await refused(new.maintenance.HashKV(pb.HashKVRequest())) == learner
        watch = new.stub_watch.Watch(iter([pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k"))]))
        assert await refused(watch.read()) == learner
        await leader.cluster.MemberPromote(pb.MemberPromoteRequest(ID=new.id))
        await until(lambda: not new.server.is_learner, "the learner knows that it is a voter")
        assert (await new.kv.Range(pb.RangeRequest(key=b"k"))).count == 1


async def test_what_etcd_refuses(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        leader = await live.leader()
        cluster = leader.cluster
        ports = free_ports(3)
        first, second, third = [f"http://127.0.0.1:{port}" for port in ports]
        urls = {one.id: one.server.config.initial_advertise_peer_urls[0] for one in live.running}
        for bad in ([], ["x"], ["http://a"], ["http://a:1/"], ["ftp://a:1"]):
            assert await refused(cluster.MemberAdd(pb.MemberAddRequest(peerURLs=bad))) == errors.MEMBER_BAD_URLS
        taken = pb.MemberAddRequest(peerURLs=[urls[leader.id]])
        assert await refused(cluster.MemberAdd(taken)) == errors.PEER_URL_EXISTS
        for call in (
            cluster.MemberRemove(pb.MemberRemoveRequest(ID=1)),
            cluster.MemberPromote(pb.MemberPromoteRequest(ID=1)),
            cluster.MemberUpdate(pb.MemberUpdateRequest(ID=1, peerURLs=[first])),
        ):
            assert await refused(call) == errors.MEMBER_NOT_FOUND
        assert await refused(cluster.MemberPromote(pb.MemberPromoteRequest(ID=leader.id))) == errors.NOT_A_LEARNER
        other = next(one for one in urls if one != leader.id)
        moved = pb.MemberUpdateRequest(ID=leader.id, peerURLs=[urls[other]])
        assert await refused(cluster.MemberUpdate(moved)) == errors.PEER_URL_EXISTS
        assert await refused(leader.maintenance.MoveLeader(pb.MoveLeaderRequest(targetID=1))) == (
            errors.BAD_LEADER_TRANSFEREE
        )
        # With a learner that was added and never started.
        learner = (await cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[first], isLearner=True))).member.ID
        assert await refused(cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[second], isLearner=True))) == (
            errors.TOO_MANY_LEARNERS
        )
        assert await refused(leader.maintenance.MoveLeader(pb.MoveLeaderRequest(targetID=learner))) == (
            errors.BAD_LEADER_TRANSFEREE
        )
        await put(leader, b"k", b"v" * 100)
        assert await refused(cluster.MemberPromote(pb.MemberPromoteRequest(ID=learner))) == errors.LEARNER_NOT_READY
        await cluster.MemberRemove(pb.MemberRemoveRequest(ID=learner))
        assert await refused(cluster.MemberRemove(pb.MemberRemoveRequest(ID=learner))) == errors.MEMBER_NOT_FOUND
        # With a voter that was added and never started: the quorum must not shrink further.
        voter = (await cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[third]))).member.ID
        assert voter != learner
        assert await refused(cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[first]))) == errors.UNHEALTHY
        await cluster.MemberRemove(pb.MemberRemoveRequest(ID=voter))
        assert await names(leader) == ["m1", "m2", "m3"]


async def test_a_quorum_must_stay(tmp_path: Path) -> None:
    async with Live(tmp_path, 2) as live:
        leader, follower = await live.leader(), await live.follower()
        away = pb.MemberRemoveRequest(ID=follower.id)
        await leader.cluster.MemberRemove(away)
        await until(lambda: follower.failed is not None, "the removed follower ends")
        assert await refused(leader.cluster.MemberRemove(pb.MemberRemoveRequest(ID=leader.id))) == (
            errors.NOT_ENOUGH_STARTED
        )
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
        await leader.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=urls[:1], isLearner=True))
        await put(leader, b"still writable")


async def test_one_member_becomes_two(tmp_path: Path) -> None:
    """The two are a quorum only together: the answer must come before the second one is there."""
    async with Live(tmp_path, 1) as live:
        first = await live.leader()
        await put(first, b"before")
        second = await live.add("m2")
        assert await names(second) == ["m1", "m2"]
        await live.leader()
        third = await live.add("m3", via=second)
        await put(third, b"after")
        await caught_up(live)
        assert first.server.cluster.members() == third.server.cluster.members()


async def test_one_change_at_a_time_and_all_of_them(tmp_path: Path) -> None:
    async with Live(tmp_path, 3, max_learners=3) as live:
        asked = await live.follower()
        ports = free_ports(3)
        answers = await asyncio.gather(
            *[
                member.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[f"http://127.0.0.1:{port}"], isLearner=True))
                for member, port in zip(live.running, ports, strict=True)
            ]
        )
        listed = await asked.cluster.MemberList(pb.MemberListRequest(linearizable=True))
        assert {answer.member.ID for answer in answers} < {one.ID for one in listed.members}
        assert sorted(len(answer.members) for answer in answers) == [4, 5, 6]


async def test_a_removed_member_hears_it_from_those_who_refuse_it(tmp_path: Path) -> None:
    """Nobody replicates to it any more: it was down while it was removed."""
    async with Live(tmp_path, 3) as live:
        gone = await live.follower()
        leader = await live.leader()
        await gone.stop()
        await until(lambda: leader.server.peers.connected_since(gone.id) is None, "the leader sees it go")
        await leader.cluster.MemberRemove(pb.MemberRemoveRequest(ID=gone.id))
        again = LiveMember(gone.config)
        live.members[gone.config.name] = again
        starting = asyncio.create_task(again.start())
        await until(lambda: again.failed is not None, "the removed member ends")
        assert REMOVED in str(again.failed)
        await starting
        term = leader.server.raft_term
        await again.stop()
        await put(await live.leader(), b"k")
        assert leader.server.raft_term == term  # it has disturbed nobody


async def test_who_is_far_behind_finds_a_leader_it_has_never_heard_of(tmp_path: Path) -> None:
    """Everybody it knows is gone, so who leads now must tell it where to answer (thesis 4.2.1)."""
    async with Live(tmp_path, 3, strict_reconfig_check=False) as live:
        behind = await live.follower()
        await behind.stop()
        old = live.running
        for name in ("m4", "m5"):
            new = await live.add(name, learner=True, via=await live.leader(healthy=False))
            await until(lambda one=new: one.server.peers.own is not None, "it has reached its own addition")
            promote = pb.MemberPromoteRequest(ID=new.id)
            await (await live.leader(healthy=False)).cluster.MemberPromote(promote)
        for member in old:
            leader = await live.leader(healthy=False)
            await leader.cluster.MemberRemove(pb.MemberRemoveRequest(ID=member.id))
            await until(lambda gone=member: gone.failed is not None, "the removed member ends")
            await member.stop()
        leader = await live.leader(healthy=False)
        await put(leader, b"k")
        again = live.members[behind.config.name] = LiveMember(behind.config)
        await again.start()
        assert sorted(one.config.name for one in live.running) == sorted(["m4", "m5", again.config.name])
        await caught_up(live)
        assert await names(again) == sorted(["m4", "m5", again.config.name])


async def test_who_joins_after_the_log_was_compacted_gets_a_snapshot(tmp_path: Path) -> None:
    small: dict[str, int] = {
        "snapshot_count": 20,
        "snapshot_catchup_entries": 5,
        "snapshot_catchup_bytes": 10_000,
        "log_segment_bytes": 1 << 20,
    }
    async with Live(tmp_path, 1, **small) as live:
        leader = await live.leader()
        first = await live.add("m2", learner=True)
        await leader.cluster.MemberPromote(pb.MemberPromoteRequest(ID=first.id))
        for number in range(60):
            await put(leader, b"k%d" % number, b"v" * 64_000)
        await until(lambda: leader.server.status().first_index > 1, "the log is compacted")
        new = await live.add("m3", learner=True)
        assert new.server.status().first_index > 1
        assert await names(leader) == ["m1", "m2", "m3?"]
        await caught_up(live)
        assert new.server.cluster.members() == leader.server.cluster.members()
        assert [member.name for member in new.server.cluster.first()] == ["m1"]
        await leader.cluster.MemberPromote(pb.MemberPromoteRequest(ID=new.id))
        await (await live.leader()).cluster.MemberRemove(pb.MemberRemoveRequest(ID=first.id))
        await put(new, b"after")
        hashes = [await one.maintenance.HashKV(pb.HashKVRequest()) for one in (leader, new)]
        assert len({answer.hash for answer in hashes if answer.header.revision == hashes[0].header.revision}) == 1


async def test_who_may_not_join(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        wiped = await live.follower()
        await wiped.stop()
        shutil.rmtree(wiped.config.data_dir)
        existing = replace(wiped.config, initial_cluster_state="existing")
        with pytest.raises(BootstrapError, match=r"started before, from another data directory.*kvctl member remove"):
            await LiveMember(existing).start()
        shutil.rmtree(wiped.config.data_dir, ignore_errors=True)
        # As a new one under its old id: the others know better.
        again = live.members[wiped.config.name] = LiveMember(wiped.config)
        starting = asyncio.create_task(again.start())
        await until(lambda: again.failed is not None, "the wiped member ends")
        assert LOST_DATA in str(again.failed)
        await starting
        await again.stop()
        stranger = live.config("m9", f"http://127.0.0.1:{free_ports(1)[0]}", initial_cluster_state="existing")
        with pytest.raises(BootstrapError, match=r"no member of cluster .*kvctl member add m9 --peer-urls="):
            await LiveMember(stranger).start()
        alone = replace(stranger, initial_cluster=((("m9", stranger.initial_advertise_peer_urls),)))
        with pytest.raises(BootstrapError, match="needs --initial-cluster with this member and those"):
            await LiveMember(alone).start()


async def test_a_member_moves_to_another_address(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        moving = await live.follower()
        leader = await live.leader()
        await moving.stop()
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        answer = await leader.cluster.MemberUpdate(pb.MemberUpdateRequest(ID=moving.id, peerURLs=[url]))
        assert [url] in [list(one.peerURLs) for one in answer.members]
        moved = live.members[moving.config.name] = LiveMember(
            replace(moving.config, listen_peer_urls=(url,), initial_cluster_given=False)
        )
        await moved.start()
        await put(leader, b"k")
        await caught_up(live)


@pytest.mark.slow
async def test_no_change_without_a_quorum(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        leader = await live.leader()
        for member in live.running:
            if member is not leader:
                await member.stop()
        call = leader.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"]))
        error = await refused(call)
        assert error.code is Code.UNAVAILABLE, error


async def test_who_looks_for_members_that_were_replaced_is_not_refused(tmp_path: Path) -> None:
    """After a start its table is that of the last flush, and more than half may have been replaced since."""
    async with Live(tmp_path, 3) as live:
        member = await live.follower()

        def told_by_all(reason: str) -> bool:
            """Whether the member has to end."""
            for other in live.running:
                if other is not member:
                    where = f"{other.id:x} at {other.config.name}"
                    member.server.peers.refused(PeerRefused(f"{where} refused this node: {reason}"))
            member.server.peers._judge()
            return member.server._failed.done()

        assert not told_by_all("FAILED_PRECONDITION: this node is 7, not 8")
        assert told_by_all("FAILED_PRECONDITION: this node belongs to cluster 7, not to 8")
        await until(lambda: member.failed is not None, "it ends")
        await member.stop()
