"""The driver: real nodes over memory and over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from raft.config import Config
from raft.errors import ConfigError, NotLeader, RaftError, Stopped, TooManyProposals
from raft.messages import AppendEntries, Forward, Heartbeat, ReadIndex, TimeoutNow
from raft.node import Node, NodeConfig, ProposalQueue, ProposalSource, Status
from raft.storage.memory import MemoryStorage
from raft.transport.memory import MemoryNetwork, MemoryTransport
from raft.types import Configuration, NodeId, Role
from tests.raft.nodes import Cluster, Machine, RecordingTransport, turns, until


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, left


@pytest.fixture(params=["memory", "grpc"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with Cluster(3, kind=request.param, election_ticks=20) as made:
        yield made


def everywhere(cluster: Cluster, commands: list[bytes]) -> Callable[[], bool]:
    return lambda: all(member.machine.commands == commands for member in cluster.members.values())


# Over every transport


async def test_elects_and_replicates_in_order(cluster: Cluster) -> None:
    leader = await cluster.leader()
    commands = [b"%d" % number for number in range(1000)]
    for command in commands:
        leader.node.propose(command)
        if len(command) == 1:
            await asyncio.sleep(0)
    await until(everywhere(cluster, commands))
    logs = [[(e.index, e.term, e.data) for e in member.machine.entries] for member in cluster.members.values()]
    assert logs[0] == logs[1] == logs[2]


async def test_reads_at_any_member_see_what_was_committed_before(cluster: Cluster) -> None:
    leader = await cluster.leader()
    for number in range(20):
        command = b"%d" % number
        leader.node.propose(command)
        await until(lambda command=command: command in leader.machine.commands)  # type: ignore[misc]
        for member in cluster.members.values():
            await member.node.wait_applied(await member.node.read_index())
            assert command in member.machine.commands


async def test_another_takes_over_and_the_old_leader_catches_up(cluster: Cluster) -> None:
    first = await cluster.leader()
    first.node.propose(b"before")
    await until(everywhere(cluster, [b"before"]))
    gone = first.node.status().node_id
    await cluster.stop(gone)
    second = await cluster.leader()
    assert second.node.status().term > first.node.status().term
    second.node.propose(b"after")
    await until(everywhere(cluster, [b"before", b"after"]))
    await cluster.start(gone)
    await until(everywhere(cluster, [b"before", b"after"]))
    assert (await cluster.leader()) is second, "a returning member does not disturb"


async def test_leadership_is_handed_over(cluster: Cluster) -> None:
    leader = await cluster.leader()
    follower = cluster.followers()[0]
    target = follower.node.status().node_id
    assert not await follower.node.transfer_leadership(), "only a leader can"
    assert await leader.node.transfer_leadership(target)
    assert (await cluster.leader()) is follower
    assert await follower.node.transfer_leadership()
    assert (await cluster.leader()) is not follower


async def test_a_follower_forwards_each_proposal_once(cluster: Cluster) -> None:
    await cluster.leader()
    follower = cluster.followers()[0]
    commands = [b"f%d" % number for number in range(100)]
    for command in commands:
        follower.node.propose(command)
    await until(everywhere(cluster, commands))


# Proposals


async def test_a_lost_forward_is_never_sent_again() -> None:
    async with Cluster(3) as cluster:
        await cluster.leader()
        follower = cluster.followers()[0]
        node_id = follower.node.status().node_id
        cluster.network.delay = lambda message: None if isinstance(message, Forward) else 0.0
        follower.node.propose(b"lost")
        await until(lambda: any(isinstance(m, Forward) for m in cluster.sent(node_id)))
        cluster.network.delay = None
        follower.node.propose(b"kept")
        await until(everywhere(cluster, [b"kept"]))
        forwards = [m.data for m in cluster.sent(node_id) if isinstance(m, Forward)]
        assert forwards == [[b"lost"], [b"kept"]]


async def test_one_forward_carries_all_that_waits() -> None:
    async with Cluster(3) as cluster:
        await cluster.leader()
        follower = cluster.followers()[0]
        for number in range(50):
            follower.node.propose(b"%d" % number)
        await until(lambda: len(follower.machine.commands) == 50)
        forwards = [m for m in cluster.sent(follower.node.status().node_id) if isinstance(m, Forward)]
        assert len(forwards) == 1


class Source(ProposalSource):
    """Records what the node does with it."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.takes = 0
        self.received: list[bytes] = []
        self.back: list[tuple[list[bytes], RaftError]] = []

    def take(self, bytes_max: int, leading: bool) -> list[bytes]:
        self.takes += 1
        taken, self.waiting = self.waiting, []
        return taken

    def receive(self, sender: NodeId, data: list[bytes]) -> None:
        self.received += data

    def returned(self, data: list[bytes], error: RaftError) -> None:
        self.back.append((data, error))


def sources() -> tuple[dict[NodeId, Source], Callable[[NodeId], ProposalSource | None]]:
    made = {node_id: Source() for node_id in range(1, 4)}
    return made, made.__getitem__


async def test_nothing_is_taken_while_no_leader_is_known_or_reached() -> None:
    made, source = sources()
    async with Cluster(3, clock=True, source=source) as cluster:
        await turns()
        assert [s.takes for s in made.values()] == [0, 0, 0]
        leader = await cluster.leader()
        follower = cluster.followers()[0].node.status().node_id
        cluster.network.cut(follower, leader.node.status().node_id)
        before = made[follower].takes
        made[follower].waiting = [b"x"]
        cluster.members[follower].node.wake()
        await turns()
        assert made[follower].takes == before
        assert made[follower].waiting == [b"x"]


async def test_what_the_core_refuses_goes_back() -> None:
    made, source = sources()
    async with Cluster(3, clock=True, source=source, uncommitted_bytes_max=10) as cluster:
        leader = await cluster.leader()
        node_id = leader.node.status().node_id
        cluster.network.isolate(node_id)
        for data in ([b"123456789"], [b"more"]):
            made[node_id].waiting = data
            leader.node.wake()
            await turns()
        (returned, error), *others = made[node_id].back
        assert returned == [b"more"]
        assert isinstance(error, TooManyProposals)
        assert not others


async def test_a_forward_is_received_by_a_leader_only() -> None:
    made, source = sources()
    async with Cluster(3, clock=True, source=source) as cluster:
        leader = await cluster.leader()
        leading = leader.node.status().node_id
        for member in cluster.members.values():
            to = member.node.status().node_id
            sender = 1 if to != 1 else 2
            member.node._receive([Forward(to, sender, leader.node.status().term, [b"f"])])
        await turns()
        assert {node_id: s.received for node_id, s in made.items() if s.received} == {leading: [b"f"]}


def test_the_queue_is_bounded_and_keeps_the_order() -> None:
    queue = ProposalQueue(bytes_max=10)
    assert queue.put(b"12345678")
    assert queue.put(b"1234")
    assert not queue.put(b"x")
    assert queue.take(9, True) == [b"12345678"]
    queue.returned([b"12345678"], NotLeader("gone"))
    assert queue.take(1, True) == [b"12345678"], "an item above the bound goes alone"
    queue.receive(2, [b"a", b"b"])
    assert queue.take(100, True) == [b"1234", b"a", b"b"]
    queue.receive(2, [b"0123456789", b"dropped"])
    assert len(queue) == 1


async def test_propose_is_refused_when_the_queue_is_full() -> None:
    async with Cluster(3, clock=True) as cluster:
        node = cluster.members[1].node
        node.propose(bytes(16 * 1024 * 1024))  # nobody leads: it stays
        with pytest.raises(TooManyProposals):
            node.propose(b"x")


# Reads


async def test_readers_of_one_tick_share_a_round() -> None:
    async with Cluster(3, clock=True) as cluster:
        await cluster.leader()
        follower = cluster.followers()[0]
        sent = cluster.sent(follower.node.status().node_id)
        del sent[:]
        found = await asyncio.gather(*[follower.node.read_index() for _ in range(500)])
        assert len(set(found)) == 1
        assert len([m for m in sent if isinstance(m, ReadIndex)]) == 1


async def test_readers_who_come_during_a_round_wait_for_the_next() -> None:
    """A round that began before a read arrived proves nothing about that read (thesis 6.4)."""
    async with Cluster(3, clock=True) as cluster:
        leader = await cluster.leader()
        follower = cluster.followers()[0]
        node_id = follower.node.status().node_id
        sent = cluster.sent(node_id)
        del sent[:]
        cluster.network.hold(leader.node.status().node_id, node_id)
        first = asyncio.create_task(follower.node.read_index())
        await turns()
        leader.node.propose(b"between")
        await until(lambda: b"between" in leader.machine.commands)
        second = asyncio.create_task(follower.node.read_index())
        await turns()
        assert len([m for m in sent if isinstance(m, ReadIndex)]) == 1
        cluster.network.heal()
        assert await first < await second
        assert await second >= leader.node.status().commit
        assert len([m for m in sent if isinstance(m, ReadIndex)]) == 2


async def test_a_lost_round_is_asked_again_with_a_new_context() -> None:
    async with Cluster(3, clock=True, election_ticks=50) as cluster:
        await cluster.leader()
        follower = cluster.followers()[0]
        sent = cluster.sent(follower.node.status().node_id)
        del sent[:]
        cluster.network.delay = lambda message: None if isinstance(message, ReadIndex) else 0.0
        reading = asyncio.create_task(follower.node.read_index())
        await cluster.tick(count=4)
        assert len([m for m in sent if isinstance(m, ReadIndex)]) == 1, "not before five heartbeats"
        await cluster.tick(count=8)
        contexts = [m.context for m in sent if isinstance(m, ReadIndex)]
        assert len(contexts) == len(set(contexts)) >= 2
        assert not reading.done()
        cluster.network.delay = None
        for _ in range(10):
            await cluster.tick()
        assert await reading == follower.node.status().commit


async def test_callers_who_give_up_leave_nothing_behind() -> None:
    async with Cluster(3, clock=True) as cluster:  # nobody ticks: nobody leads
        node = cluster.members[1].node
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(node.read_index(), 0.001)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(node.wait_applied(10), 0.001)
        assert len(node._reads) == 0
        assert len(node._applied_waiters) == 0
        assert not node._applied_waiters._by_index


async def test_stop_releases_everybody_who_waits() -> None:
    async with Cluster(3, clock=True) as cluster:
        node = cluster.members[1].node
        waiting = [asyncio.create_task(wait) for wait in (node.read_index(), node.wait_applied(10), node.wait_failed())]
        await turns()
        await cluster.stop(1)
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, Stopped)
        for call in (node.read_index(), node.wait_applied(1), node.compact(1), node.transfer_leadership()):
            with pytest.raises(Stopped):
                await call
        await node.stop()


# Time


async def test_a_single_member_leads_after_one_tick() -> None:
    async with Cluster(1, clock=True) as cluster:
        await cluster.tick()
        assert cluster.leaders() == [1]


async def test_a_starting_member_waits_for_a_heartbeat_but_not_for_a_whole_timeout() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        term = {node_id: member.node.status().term for node_id, member in cluster.members.items()}
        await cluster.tick()
        assert cluster.leaders() == []
        assert {node_id: member.node.status().term for node_id, member in cluster.members.items()} == term
        ticks = 1
        while not cluster.leaders():
            await cluster.tick()
            ticks += 1
            assert ticks <= 40
        leader = await cluster.leader()
        gone = cluster.followers()[0].node.status().node_id
        await cluster.stop(gone)
        await cluster.start(gone)
        await cluster.tick(count=12)
        assert (await cluster.leader()) is leader, "a restarted member heard its leader in time"


async def test_nobody_campaigns_early_while_no_quorum_is_reached() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        cluster.network.isolate(1)
        await cluster.tick(1, count=9)
        assert not list(cluster.sent(1)), "alone, it waits a whole election timeout"


async def test_a_follower_ticks_once_for_a_stall_and_hears_its_leader_first() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=3)
        follower = cluster.followers()[0].node.status().node_id
        term = leader.node.status().term
        del cluster.sent(follower)[:]
        cluster.clocks[follower].now += 10**12
        cluster.members[follower].node.wake()
        await turns()
        assert cluster.sent(follower) == [], "it asked nobody for a vote"
        await cluster.tick(count=20)
        assert leader.node.status().term == term
        assert cluster.leaders() == [leader.node.status().node_id]


async def test_a_leader_that_stalled_for_an_election_timeout_steps_down() -> None:
    """Also when acknowledgements from before the stall wait to be read."""
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        leader = await cluster.leader()
        node_id = leader.node.status().node_id
        await cluster.tick(count=3)
        seen: list[Status] = []
        leader.node.on_change.append(seen.append)
        del cluster.sent(node_id)[:]
        for other in cluster.members:
            if other != node_id:
                cluster.network.hold(other, node_id)
        await cluster.tick(node_id)  # its heartbeat is answered, and the answers wait
        cluster.clocks[node_id].now += 10 * 20_000_000
        cluster.network.heal()
        await turns(3)
        leader.node.wake()
        await turns()
        assert [status.role for status in seen][:1] == [Role.FOLLOWER]


async def test_a_short_stall_does_not_depose_a_leader() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        leader = await cluster.leader()
        cluster.clocks[leader.node.status().node_id].now += 9 * 20_000_000
        leader.node.wake()
        assert leader.node.late_heartbeats == 0
        await turns()
        assert [member.node.late_heartbeats for member in cluster.members.values()].count(1) == 1
        await cluster.tick(count=20)
        assert cluster.leaders() == [leader.node.status().node_id]
        assert leader.node.late_heartbeats == 1


async def test_a_single_member_survives_any_stall() -> None:
    async with Cluster(1, clock=True) as cluster:
        leader = await cluster.leader()
        cluster.clocks[1].now += 10**12
        leader.node.propose(b"x")
        await until(everywhere(cluster, [b"x"]))
        assert leader.node.status().term == 1


# Apply


async def test_a_long_apply_delays_no_heartbeat_and_no_acknowledgement() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        leader = await cluster.leader()
        stuck = [leader, cluster.followers()[0]]  # a leader and a follower
        for member in stuck:
            member.machine.gate.clear()
        for number in range(20):
            leader.node.propose(b"%d" % number)
            await turns()
        free = next(member for member in cluster.members.values() if member not in stuck)
        await cluster.tick(count=30)
        assert len(free.machine.commands) == 20, "commits go on"
        assert cluster.leaders() == [leader.node.status().node_id]
        assert stuck[1].node.status().commit == leader.node.status().commit
        assert stuck[1].machine.commands == []
        for member in stuck:
            member.machine.gate.set()
        await until(everywhere(cluster, [b"%d" % number for number in range(20)]))


async def test_the_backlog_of_a_slow_state_machine_is_bounded() -> None:
    async with Cluster(3, clock=True, apply_bytes_max=1000) as cluster:
        leader = await cluster.leader()
        slow = cluster.followers()[0]
        slow.machine.gate.clear()
        commands = [b"%099d" % number for number in range(200)]
        for command in commands:
            leader.node.propose(command)
            await turns(20)
            assert slow.node._committed.bytes_ahead <= 2000
        assert slow.node.status().last_index == leader.node.status().last_index, "its log keeps up"
        slow.machine.gate.set()
        await until(everywhere(cluster, commands))


async def test_a_leader_whose_state_machine_is_behind_takes_no_proposals() -> None:
    async with Cluster(3, clock=True, apply_bytes_max=1000) as cluster:
        leader = await cluster.leader()
        leader.machine.gate.clear()
        for _ in range(100):
            leader.node.propose(bytes(100))
            await turns(20)
        queue = leader.node._proposals
        assert isinstance(queue, ProposalQueue)
        assert 50 < len(queue) < 100
        leader.machine.gate.set()
        await until(everywhere(cluster, [bytes(100)] * 100))


async def test_a_failed_apply_ends_the_node() -> None:
    async with Cluster(3, clock=True) as cluster:
        leader = await cluster.leader()
        follower = cluster.followers()[0]
        follower.machine.fails = True
        waiting = asyncio.create_task(follower.node.wait_applied(100))
        leader.node.propose(b"x")
        assert isinstance(await follower.node.wait_failed(), OSError)
        with pytest.raises(Stopped):
            await waiting
        with pytest.raises(Stopped):
            follower.node.propose(b"y")
        sent = cluster.sent(follower.node.status().node_id)
        await turns()
        del sent[:]
        await cluster.tick(count=3)
        assert sent == [], "it says nothing more"


# What else comes in


async def test_the_inbox_is_bounded() -> None:
    transport = RecordingTransport(MemoryNetwork(), 1)
    config = NodeConfig(core=Config(node_id=1), inbox_bytes_max=1000)
    node = Node(config, MemoryStorage(Configuration((1, 2, 3))), Machine(), transport)
    for _ in range(100):
        node._receive([Heartbeat(1, 2, 1, 0)])
    assert 0 < len(node._inbox) < 20


async def test_on_change_tells_role_term_and_leader() -> None:
    network = MemoryNetwork()
    transport = MemoryTransport(network, 1)
    node = Node(NodeConfig(core=Config(node_id=1)), MemoryStorage(Configuration((1,))), Machine(), transport)
    seen: list[Status] = []
    node.on_change.append(seen.append)
    await node.start()
    await until(lambda: bool(seen) and seen[-1].role is Role.LEADER)
    assert (seen[-1].term, seen[-1].leader_id) == (1, 1)
    await node.stop()


async def test_a_node_that_cannot_listen_does_not_start() -> None:
    network = MemoryNetwork()
    first = MemoryTransport(network, 1)
    await first.start(lambda messages: None)
    storage = MemoryStorage(Configuration((1,)))
    node = Node(NodeConfig(core=Config(node_id=1)), storage, Machine(), MemoryTransport(network, 1))
    watching = asyncio.create_task(node.wait_failed())
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="on this network already"):
        await node.start()
    with pytest.raises(Stopped):
        node.propose(b"x")
    await node.stop()
    with pytest.raises(Stopped):
        await watching


async def test_compaction_spares_what_a_member_lacks() -> None:
    async with Cluster(3, clock=True) as cluster:
        leader = await cluster.leader()
        lost = cluster.followers()[0]
        lost_id = lost.node.status().node_id
        for number in range(10):
            leader.node.propose(b"%d" % number)
        await until(lambda: all(len(m.machine.commands) == 10 for m in cluster.members.values()))
        await cluster.tick(count=3)
        shared = leader.node.status().replicated_index
        assert shared == leader.node.status().last_index
        cluster.network.isolate(lost_id)
        leader.node.propose(b"more")
        await until(lambda: b"more" in leader.machine.commands)
        await leader.node.compact(10**9)
        assert leader.node.status().first_index == shared + 1
        cluster.network.heal()
        for _ in range(30):
            await cluster.tick()
        await until(lambda: b"more" in lost.machine.commands)


async def test_handing_over_to_a_member_that_does_not_hear_fails() -> None:
    async with Cluster(3) as cluster:
        leader = await cluster.leader()
        target = cluster.followers()[0].node.status().node_id
        cluster.network.delay = lambda message: None if isinstance(message, TimeoutNow) else 0.0
        assert not await leader.node.transfer_leadership(target)
        assert (await cluster.leader()) is leader


async def test_one_frame_per_follower_carries_a_batch() -> None:
    """Group commit: what waits becomes one AppendEntries for each follower."""
    async with Cluster(3, clock=True) as cluster:
        leader = await cluster.leader()
        sent = cluster.sent(leader.node.status().node_id)
        del sent[:]
        for number in range(300):
            leader.node.propose(b"%d" % number)
        await until(lambda: len(leader.machine.commands) == 300)
        assert len([m for m in sent if isinstance(m, AppendEntries) and m.entries]) == 2


@pytest.mark.parametrize("wrong", [{"tick_seconds": 0}, {"sync": "never"}, {"proposal_bytes_max": 0}])
def test_wrong_settings_are_config_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NodeConfig(core=Config(node_id=1), **wrong)  # type: ignore[arg-type]
