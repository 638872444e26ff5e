"""Random histories of an in-memory cluster, with every invariant checked after every step.

One seed draws the cluster, its settings, which faults there are and how often. First everything may
go wrong; then all nodes come up, the network heals, and the cluster must make progress. What a crash
loses is exactly what was not saved.

    python -m tests.raft.test_core_random 48213      replay one seed
"""

import sys

import pytest

from raft.config import Config
from raft.errors import ProposalDropped
from raft.ready import Ready
from raft.testing.cluster import Cluster, SplitMixRng
from raft.types import Configuration, ConfigurationChange, Index, NodeId

STEPS = 600
SEEDS = 400
SEEDS_PER_TEST = 50


class World:
    def __init__(self, seed: int) -> None:
        self.rng = rng = SplitMixRng(seed)
        size = (1, 2, 3, 3, 3, 4, 5)[rng.below(7)]
        learners = (size + 1,) if rng.chance(25) else ()
        outgoing = (1, 2, 3) if size == 5 and rng.chance(30) else ()
        voters = tuple(range(3, 6)) if outgoing else tuple(range(1, size + 1))
        # A lease rests on clocks, so time passes for all at once there; elsewhere it does as it likes.
        self.lease = rng.chance(20)
        config = Config(
            node_id=1,
            election_ticks=(4, 10)[rng.below(2)],
            pre_vote=rng.chance(70) or self.lease,
            check_quorum=rng.chance(70) or self.lease,
            lease_reads=self.lease,
            append_bytes_max=(1, 8, 1 << 20)[rng.below(3)],
            inflight_appends_max=(1, 2, 256)[rng.below(3)],
            inflight_bytes_max=(4, 1 << 20)[rng.below(2)],
            uncommitted_bytes_max=(64, 1 << 20)[rng.below(2)],
            apply_bytes_max=(1, 1 << 20)[rng.below(2)],
        )
        self.cluster = Cluster(
            configuration=Configuration(voters, learners, outgoing), config=config, seed=rng.below(2**62)
        )
        # Each kind of fault is absent in half of the worlds, and its rate is drawn over orders of magnitude:
        # frequent ones would hide the rare ones.
        rates = {
            "lose": 32,
            "repeat": 32,
            "late": 64,
            "stop": 64,
            "crash": 8,
            "cut": 8,
            "pass": 4,
            "elect": 8,
            "strand": 24,
            "change": 16,
            "compact": 40,
            "unreachable": 4,
        }
        self.percent = {fault: (most >> rng.below(4)) * rng.below(2) for fault, most in rates.items()}
        self.percent["elect"] = 0 if self.lease else self.percent["elect"] + 1
        self.changes = 0
        self.installed = 0
        self.cluster.on_save = self.saved
        self.busy = 2 + rng.below(8)  # messages that arrive in one step, at most
        self.proposed = 0
        self.asked: dict[tuple[NodeId, int], Index] = {}  # (node, context) -> what had been committed when it was asked
        self.answered = 0

    def run(self) -> None:
        for _ in range(STEPS):
            self.act()
        self.recover()

    def act(self) -> None:
        rng, cluster, percent = self.rng, self.cluster, self.percent
        nodes = list(cluster.members)
        node_id = nodes[rng.below(len(nodes))]
        member = cluster.members[node_id]
        if member.raw is None:
            if rng.chance(25):
                cluster.restart(node_id)
        elif rng.chance(percent["crash"]):
            cluster.crash(node_id)
            self.asked = {key: index for key, index in self.asked.items() if key[0] != node_id}
        elif rng.chance(percent["pass"]):
            cluster.transfer(node_id, nodes[rng.below(len(nodes))])
        elif rng.chance(percent["elect"]):
            cluster.tick(node_id, 2 * member.config.election_ticks)
        elif rng.chance(percent["unreachable"]):
            cluster.node(node_id).leader_unreachable()
        elif rng.chance(12):
            for ticked in cluster.up() if self.lease else [node_id]:
                cluster.tick(ticked)
        elif rng.chance(15):
            self.request(node_id)
        for node_id in nodes:
            if cluster.members[node_id].in_flight is None:
                cluster.begin(node_id)
                self.collect_reads(node_id)
            elif not rng.chance(percent["stop"]):
                cluster.save(node_id)
        if cluster.cut and rng.chance(3):
            cluster.heal()
        if rng.chance(percent["cut"]):
            self.cut(nodes)
        if rng.chance(percent["strand"]):
            self.strand(nodes)
        if rng.chance(percent["change"]):
            self.change(cluster.leader() or node_id)
        self.deliver()
        if cluster.transfers and rng.chance(20):
            cluster.arrive(rng.below(len(cluster.transfers)), broken=rng.chance(percent["lose"]))
        if rng.chance(1 + percent["compact"]) and cluster.members[node_id].raw is not None:
            far = rng.chance(8 * percent["compact"])  # else up to what every member has
            cluster.compact(node_id, cluster.members[node_id].applied_index if far else None)

    def saved(self, node_id: NodeId, ready: Ready) -> None:
        self.installed += ready.snapshot is not None

    def change(self, node_id: NodeId) -> None:
        """Somebody joins, is promoted or leaves; often several at once. Who has left never comes back."""
        rng, cluster = self.rng, self.cluster
        if cluster.members[node_id].raw is None:
            return
        configuration = cluster.node(node_id).configuration
        voters: list[NodeId] = [n for n in configuration.learners if rng.chance(40)]
        learners: list[NodeId] = []
        removed = [n for n in configuration.members() if n not in voters and rng.chance(20)]
        if len(cluster.members) < 9 and rng.chance(60):
            joins = max(cluster.members) + 1
            cluster.add(joins)
            (voters if rng.chance(50) else learners).append(joins)
        try:
            cluster.change(node_id, ConfigurationChange(tuple(voters), tuple(learners), tuple(removed)))
            self.changes += 1
        except ProposalDropped:
            pass  # nothing was appended

    def cut(self, nodes: list[NodeId]) -> None:
        rng, cluster = self.rng, self.cluster
        if cluster.cut and rng.chance(60):
            cluster.heal()
        elif rng.chance(50):
            cluster.partition([n for n in nodes if rng.chance(60)])
        else:  # one way only
            cluster.cut.add((nodes[rng.below(len(nodes))], nodes[rng.below(len(nodes))]))

    def strand(self, nodes: list[NodeId]) -> None:
        """A leader is cut off with proposals that nobody or too few others hear of, and another is elected."""
        rng, cluster = self.rng, self.cluster
        leader = cluster.leader()
        if not leader:
            return
        mates = {leader, *[n for n in nodes if rng.chance(25)]}
        others = [n for n in nodes if n not in mates]
        cluster.partition(sorted(mates), others)
        self.propose(leader)
        for node_id in sorted(mates):
            if not rng.chance(self.percent["stop"]):
                cluster.work(node_id)
        for node_id in others:
            if cluster.members[node_id].raw is not None and not self.lease:
                cluster.tick(node_id, cluster.members[node_id].config.election_ticks)

    def deliver(self) -> None:
        """A few messages arrive, some overtaken by later ones, some lost, some twice."""
        rng, cluster, percent = self.rng, self.cluster, self.percent
        for _ in range(rng.below(1 + self.busy)):
            if not cluster.network:
                return
            position = rng.below(len(cluster.network)) if rng.chance(percent["late"]) else 0
            if rng.chance(percent["lose"]):
                cluster.network.pop(position)
            elif rng.chance(percent["repeat"]):
                cluster.step(cluster.network[position])
            else:
                cluster.deliver(position)
        if len(cluster.network) > 200:
            del cluster.network[rng.below(200)]

    def request(self, node_id: NodeId) -> None:
        cluster = self.cluster
        if self.rng.chance(50):
            self.propose(cluster.leader() or node_id)
        else:
            context = cluster.read(node_id)
            if context is not None:
                # A later reader who shares the context asks for more.
                self.asked[node_id, context] = cluster.checker.commit_index

    def propose(self, node_id: NodeId) -> None:
        try:
            self.cluster.propose(node_id, [b"%06d" % (self.proposed + n) for n in range(1 + self.rng.below(3))])
            self.proposed += 3
        except ProposalDropped:
            pass  # nothing was appended

    def collect_reads(self, node_id: NodeId) -> None:
        reads = self.cluster.members[node_id].reads
        for context, index in reads.items():
            needed = self.asked.pop((node_id, context), None)
            if needed is not None:
                self.answered += 1
                assert index >= needed, f"stale read on n{node_id}: {index}, {needed} was committed when it was asked"
        reads.clear()

    def switch_off_the_removed(self) -> None:
        """Without pre-vote and check-quorum they disturb the others for ever (4.2.3)."""
        cluster = self.cluster
        leader = cluster.leader()
        if not leader or (cluster.config.pre_vote and cluster.config.check_quorum):
            return
        raw = cluster.node(leader)
        for node_id in cluster.up():
            if node_id != leader and node_id not in raw.configuration.members() and not raw.pending_change:
                cluster.crash(node_id)

    def recover(self) -> None:
        """No more faults: a leader, progress, equal states, answered reads."""
        cluster = self.cluster
        cluster.heal()
        for node_id, member in cluster.members.items():
            if member.raw is None:
                cluster.restart(node_id)
        cluster.settle()
        for _ in range(300):
            cluster.advance(1)
            self.switch_off_the_removed()
            leader = cluster.leader()
            if leader and not cluster.node(leader).pending_change and cluster.node(leader).raft.transfer_target == 0:
                break
        leader = cluster.leader()
        assert leader, "no leader although all are up"
        assert not cluster.node(leader).pending_change, "a change of members never ends"
        cluster.propose(leader, [b"last"])
        cluster.advance(30)
        leader = cluster.leader()
        members = cluster.node(leader).configuration.members()
        states = [cluster.state(node_id) for node_id in members]
        assert states[0][-1:] == [b"last"], "the last proposal was not applied"
        assert all(state == states[0] for state in states), "the nodes applied different states"
        commit_index = cluster.node(leader).commit_index
        for node_id in members:
            context = cluster.read(node_id)
            assert context is not None
            cluster.settle()
            assert cluster.members[node_id].reads[context] == commit_index


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_random_histories_keep_every_invariant(first: int) -> None:
    answered = committed = changes = installed = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        world = World(seed)
        try:
            world.run()
        except AssertionError:
            print(f"repro: python -m tests.raft.test_core_random {seed}")
            raise
        answered += world.answered
        committed += world.cluster.checker.commit_index
        changes += world.changes
        installed += world.installed
    assert answered > 4 * SEEDS_PER_TEST, "hardly any read was answered: the histories show nothing"
    assert committed > 10 * SEEDS_PER_TEST, "hardly anything was committed: the histories show nothing"
    assert changes > SEEDS_PER_TEST // 4, "the members hardly ever changed"
    assert installed, "no snapshot was ever installed"


if __name__ == "__main__":
    World(int(sys.argv[1])).run()
