"""The durability proof: nothing is promised or applied before the disks that it rests on have it.

Each node's log is a disk that holds only what `save` has stored *and returned*. Every message is judged
against its sender's disk at the moment it leaves, every applied entry against all disks:

    a vote, a campaign, anything said in a term     the term and the vote are on the sender's disk
    an acknowledgement of entries                    the entries are on the sender's disk
    an applied entry (what a client sees)            it is on the disks of a quorum

The disks are held and released by the test, and lose what was under way when their node crashes.
"""

import asyncio
import random
from collections.abc import Callable

import pytest

from raft.errors import Stopped
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raft.storage.base import Loaded, LogStorage
from raft.storage.memory import MemoryStorage
from raft.types import Configuration, Entry, HardState, Index, NodeId, Role, Term
from tests.raft.nodes import Cluster, Member, RecordingTransport, turns, until


class Disk(LogStorage):
    """A MemoryStorage that tells when a save begins, that can fail, and that can say what it holds."""

    def __init__(self, node_id: NodeId, configuration: Configuration) -> None:
        self.node_id = node_id
        self.memory = MemoryStorage(configuration)
        self.state = HardState(0, 0, 0)
        self.saves = 0
        self.fails = False
        self.before_save: Callable[[list[Entry]], None] = lambda entries: None

    def holds(self, index: Index, term: Term) -> bool:
        return index <= self.memory.last_index and self.memory.term_at(index) == term

    def save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        self.before_save(entries)
        if self.fails:
            raise OSError(5, "Input/output error")
        if not must_sync:
            return  # never reached the disk: the worst that may happen to it
        self.memory.save(hard_state, entries, must_sync)
        self.state = hard_state or self.state
        self.saves += 1

    def load(self) -> Loaded:
        return self.memory.load()

    @property
    def first_index(self) -> Index:
        return self.memory.first_index

    @property
    def last_index(self) -> Index:
        return self.memory.last_index

    def term_at(self, index: Index) -> Term:
        return self.memory.term_at(index)

    def entries(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        return self.memory.entries(low, high, bytes_max)

    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        self.memory.reset(index, term, configuration, context)

    def compact(self, index: Index, configuration: Configuration, context: bytes = b"") -> None:
        self.memory.compact(index, configuration, context)

    def bytes_after(self, index: Index) -> int:
        return self.memory.bytes_after(index)

    def bytes_stored(self) -> int:
        return self.memory.bytes_stored()

    def close(self) -> None:
        self.memory.close()


class Judge:
    """Watches a cluster; every broken promise is one line.

    It raises nothing: an error in the node's own task would only end the node.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.broken: list[str] = []
        self.judged: dict[str, int] = {}
        self.applied: dict[Index, tuple[Term, bytes]] = {}
        for member in cluster.members.values():
            self.watch(member)

    def watch(self, member: Member) -> None:
        transport, disk = member.transport, member.storage
        assert isinstance(transport, RecordingTransport)
        assert isinstance(disk, Disk)
        transport.on_send = lambda message: self.message(disk, message)
        member.machine.on_apply = self.apply

    def check(self, kept: bool, what: str, text: str) -> None:
        self.judged[what] = self.judged.get(what, 0) + 1
        if not kept:
            self.broken.append(f"{what}: {text}")

    def message(self, disk: Disk, m: Message) -> None:
        who = f"{disk.node_id} -> {m.to} in term {m.term}"
        if isinstance(m, (RequestVote, RequestVoteResponse)) and m.pre_vote:
            return  # promises nothing: it speaks of a term that nobody has begun
        self.check(disk.state.term >= m.term, "term", f"{type(m).__name__} {who}, disk: {disk.state}")
        if isinstance(m, RequestVote):
            kept = disk.state.term > m.term or disk.state.vote == disk.node_id
            self.check(kept, "own vote", f"{who}, disk: {disk.state}")
            self.check(disk.holds(m.last_index, m.last_term), "log of a candidate", who)
        elif isinstance(m, RequestVoteResponse) and m.granted:
            # A later term on the disk keeps the vote too: nobody votes in a term that is over.
            kept = disk.state.term > m.term or (disk.state.term, disk.state.vote) == (m.term, m.to)
            self.check(kept, "vote", f"{who}, disk: {disk.state}")
        elif isinstance(m, AppendEntriesResponse) and not m.rejected:
            self.check(m.match_index <= disk.last_index, "acknowledgement", f"{who} {m.match_index}")

    def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            disks = [disk for disk in self.cluster.storages.values() if isinstance(disk, Disk)]
            stored = sum(disk.holds(entry.index, entry.term) for disk in disks)
            self.check(stored > len(disks) // 2, "apply", f"{entry} is on {stored} disks")
            same = self.applied.setdefault(entry.index, (entry.term, entry.data)) == (entry.term, entry.data)
            self.check(same, "agreement", f"{entry} and {self.applied[entry.index]}")


def disk_of(member: Member) -> Disk:
    assert isinstance(member.storage, Disk)
    return member.storage


def ident(member: Member) -> NodeId:
    return member.node.status().node_id


# One rule each


@pytest.mark.parametrize("hold", [False, True], ids=["inline", "thread"])
async def test_every_promise_is_on_disk_when_it_leaves(hold: bool) -> None:
    async with Cluster(3, clock=True, hold=hold, storage=Disk) as cluster:
        judge = Judge(cluster)
        leader = await cluster.leader()
        for number in range(50):
            leader.node.propose(b"%d" % number)
            await turns(5)
        await until(lambda: all(len(m.machine.commands) == 50 for m in cluster.members.values()))
        assert judge.broken == []
        assert set(judge.judged) == {
            "term",
            "own vote",
            "log of a candidate",
            "vote",
            "acknowledgement",
            "apply",
            "agreement",
        }, "a rule was never put to the test"


async def test_a_single_member_applies_only_what_its_disk_has() -> None:
    async with Cluster(1, clock=True, hold=True, storage=Disk) as cluster:
        leader = await cluster.leader()
        await until(lambda: leader.machine.applied_index == 1)
        cluster.executors[1].holding = True
        leader.node.propose(b"x")
        await turns()
        assert len(cluster.executors[1].held) == 1
        assert leader.machine.commands == []
        assert leader.node.status().commit == 1
        cluster.executors[1].release()
        await until(lambda: leader.machine.commands == [b"x"])


async def test_a_leader_applies_once_a_quorum_has_it_and_its_own_disk_need_not_be_in_it() -> None:
    async with Cluster(3, clock=True, hold=True, storage=Disk) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=2)
        one, other = cluster.followers()
        for executor in cluster.executors.values():
            executor.holding = True
        leader.node.propose(b"x")
        await turns()
        assert [len(cluster.executors[ident(m)].held) for m in (leader, one, other)] == [1, 1, 1], (
            "the followers' fsyncs run beside the leader's"
        )
        cluster.executors[ident(one)].release()
        await turns()
        assert leader.machine.commands == [], "one disk of three"
        cluster.executors[ident(leader)].release()
        await until(lambda: leader.machine.commands == [b"x"])
        assert disk_of(other).last_index == disk_of(one).last_index - 1


async def test_a_vote_leaves_after_its_save() -> None:
    async with Cluster(3, clock=True, hold=True, storage=Disk, election_ticks=10) as cluster:
        await turns()
        voter = cluster.members[2]
        cluster.executors[2].holding = True
        voter.node._receive([RequestVote(2, 1, 7, 0, 0)])
        await turns()
        assert len(cluster.executors[2].held) == 1
        assert [m for m in cluster.sent(2) if isinstance(m, RequestVoteResponse)] == []
        cluster.executors[2].release()
        await until(lambda: any(isinstance(m, RequestVoteResponse) for m in cluster.sent(2)))
        assert (disk_of(voter).state.term, disk_of(voter).state.vote) == (7, 1)


async def test_a_vote_that_was_not_saved_is_forgotten_and_was_never_given() -> None:
    async with Cluster(3, clock=True, hold=True, storage=Disk) as cluster:
        cluster.executors[2].holding = True
        cluster.members[2].node._receive([RequestVote(2, 1, 7, 0, 0)])
        await turns()
        sent = cluster.sent(2)
        await cluster.crash(2)
        assert sent == []
        cluster.executors[2].holding = False
        again = await cluster.start(2)
        again.node._receive([RequestVote(2, 3, 7, 0, 0)])
        await until(lambda: any(isinstance(m, RequestVoteResponse) and m.granted for m in cluster.sent(2)))
        assert disk_of(again).state.vote == 3


async def test_entries_leave_for_the_followers_before_the_leaders_own_fsync() -> None:
    """Thesis 10.2.1; inline, the fsync stops the loop, so they must be with the peers when it begins."""
    async with Cluster(3, clock=True, storage=Disk) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=2)
        followers = cluster.followers()
        arrived: list[list[NodeId]] = []

        def look(entries: list[Entry]) -> None:
            arrived.append(
                [
                    ident(follower)
                    for follower in followers
                    for m in follower.node._inbox
                    if isinstance(m, AppendEntries) and m.entries == entries
                ]
            )

        disk_of(leader).before_save = look
        leader.node.propose(b"x")
        await until(lambda: leader.machine.commands == [b"x"])
        assert arrived == [[ident(follower) for follower in followers]]


async def test_a_moved_commit_index_alone_costs_no_write() -> None:
    async with Cluster(3, clock=True, storage=Disk) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=2)
        before = [disk_of(member).saves for member in cluster.members.values()]
        calls: list[list[Entry]] = []
        for member in cluster.members.values():
            disk_of(member).before_save = calls.append
        leader.node.propose(b"x")
        await until(lambda: all(m.machine.commands == [b"x"] for m in cluster.members.values()))
        await cluster.tick(count=3)
        assert [disk_of(m).saves for m in cluster.members.values()] == [count + 1 for count in before]
        assert len(calls) == 3


# Disks that fail or hang


@pytest.mark.parametrize("hold", [False, True], ids=["inline", "thread"])
async def test_a_failed_fsync_ends_the_node_before_it_says_anything(hold: bool) -> None:
    async with Cluster(3, clock=True, hold=hold, storage=Disk) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=2)
        follower = cluster.followers()[0]
        sent = cluster.sent(ident(follower))
        del sent[:]
        disk_of(follower).fails = True
        reading = asyncio.create_task(follower.node.wait_applied(10**6))
        leader.node.propose(b"x")
        error = await follower.node.wait_failed()
        assert isinstance(error, OSError)
        with pytest.raises(Stopped):
            await reading
        await turns()
        assert [m for m in sent if isinstance(m, AppendEntriesResponse)] == []
        assert follower.machine.commands == []
        await until(lambda: leader.machine.commands == [b"x"])  # the other two go on


async def test_a_leader_whose_fsync_hangs_is_silent_and_is_deposed() -> None:
    """S-08: the disk hangs, the process does not. Heartbeats must not keep such a leader in office."""
    async with Cluster(3, clock=True, hold=True, storage=Disk, election_ticks=10) as cluster:
        judge = Judge(cluster)
        old = await cluster.leader()
        await cluster.tick(count=2)
        others = cluster.followers()
        term = old.node.status().term
        cluster.executors[ident(old)].holding = True
        old.node.propose(b"x")
        await turns()
        sent = cluster.sent(ident(old))
        del sent[:]
        await cluster.tick(count=45)
        assert sent == [], "it spoke while its save hung"
        new = next(m for m in others if m.node.status().role is Role.LEADER)
        assert new.node.status().term > term
        cluster.executors[ident(old)].holding = False
        cluster.executors[ident(old)].release()
        await turns()
        assert old.node.status().role is Role.FOLLOWER
        assert not [m for m in sent if isinstance(m, (Heartbeat, AppendEntries)) and m.term == term]
        await cluster.tick(count=5)
        await until(lambda: old.node.status().leader_id == ident(new))
        assert judge.broken == []


async def test_a_follower_whose_fsync_hangs_holds_back_nobody() -> None:
    async with Cluster(3, clock=True, hold=True, storage=Disk, election_ticks=10) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=2)
        slow = cluster.followers()[0]
        cluster.executors[ident(slow)].holding = True
        for number in range(10):
            leader.node.propose(b"%d" % number)
            await turns()
        await cluster.tick(count=40)
        assert len(leader.machine.commands) == 10
        assert cluster.leaders() == [ident(leader)]
        sent = cluster.sent(ident(slow))
        del sent[:]
        cluster.executors[ident(slow)].holding = False
        cluster.executors[ident(slow)].release()
        await turns()
        await cluster.tick(count=5)
        await until(lambda: len(slow.machine.commands) == 10)
        assert not [m for m in sent if isinstance(m, RequestVote)], "it read its leader's words before it ticked"
        assert any(isinstance(m, (HeartbeatResponse, AppendEntriesResponse)) for m in sent)


# All at once


async def disturb(cluster: Cluster, judge: Judge, rng: random.Random, number: int) -> None:
    """One random event."""
    node_id = rng.choice(cluster.ids)
    member = cluster.members.get(node_id)
    event = rng.random()
    if member is None:
        if event < 0.3:
            judge.watch(await cluster.start(node_id))
    elif event < 0.35:
        await cluster.tick(count=rng.randint(1, 3))
    elif event < 0.6:
        member.node.propose(b"%d" % number)
    elif event < 0.8:
        cluster.executors[node_id].release()
    elif event < 0.87:
        cluster.executors[node_id].holding = not cluster.executors[node_id].holding
    elif event < 0.9:
        await cluster.crash(node_id)
    elif event < 0.94:
        cluster.network.cut(node_id, rng.choice(cluster.ids), one_way=rng.random() < 0.5)
    else:
        cluster.network.heal()
    await turns(rng.randint(0, 20))


@pytest.mark.parametrize("seed", range(12))
async def test_under_random_faults_nothing_is_promised_too_early_and_nothing_acknowledged_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    async with Cluster(3, clock=True, hold=True, storage=Disk, election_ticks=5, seed=seed) as cluster:
        judge = Judge(cluster)
        loss = rng.choice([0.0, 0.0, 0.05, 0.2])
        if loss:
            cluster.network.delay = lambda message: None if rng.random() < loss else 0.0
        for number in range(400):
            await disturb(cluster, judge, rng, number)
        acknowledged = dict(judge.applied)

        cluster.network.delay = None
        cluster.network.heal()
        for node_id in cluster.ids:
            cluster.executors[node_id].holding = False
            cluster.executors[node_id].release()
            if node_id not in cluster.members:
                judge.watch(await cluster.start(node_id))
        for _ in range(20):  # a proposal may still be lost with a leader that is on its way out
            leader = await cluster.leader()
            leader.node.propose(b"last")
            await cluster.tick(count=10)
            logs = [member.machine.commands for member in cluster.members.values()]
            if b"last" in logs[0] and logs[0] == logs[1] == logs[2]:
                break
        else:
            pytest.fail(f"seed {seed}: no progress after all faults ended")
        assert judge.broken == [], f"seed {seed}"
        assert len(acknowledged) > 1, "nothing happened"
        for member in cluster.members.values():
            log = {entry.index: (entry.term, entry.data) for entry in member.machine.entries}
            assert {index: log.get(index) for index in acknowledged} == acknowledged, f"seed {seed}"
