"""Changes of membership through the driver, and how fast a dead leader is replaced."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from raft.changes import Configurations
from raft.errors import ChangeRefused, NotLeader, Stopped
from raft.node import Node
from raft.types import Configuration, ConfigurationChange, NodeId
from tests.raft.nodes import Cluster, Member, turns, until


@pytest.fixture(params=["memory", "grpc"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with Cluster(3, kind=request.param, election_ticks=20) as made:
        yield made


def ident(member: Member) -> NodeId:
    return member.node.status().node_id


def everywhere(cluster: Cluster, *commands: bytes) -> Callable[[], bool]:
    return lambda: all(member.machine.commands == list(commands) for member in cluster.members.values())


def told(node: Node) -> list[None]:
    """Grows when the node is told that it was removed."""
    found: list[None] = []
    node.on_removed.append(lambda: found.append(None))
    return found


async def test_a_learner_catches_up_is_promoted_and_counts(cluster: Cluster) -> None:
    leader = await cluster.settled()
    leader.node.propose(b"before")
    removed: list[str] = []
    await cluster.join(4, lambda node: node.on_removed.append(lambda: removed.append("never was a member")))
    await leader.node.change_configuration(ConfigurationChange(learners=(4,), context=b"four"))
    assert leader.node.status().configuration == Configuration((1, 2, 3), (4,))
    await until(everywhere(cluster, b"before"))
    await leader.node.change_configuration(ConfigurationChange(voters=(4,)))
    assert leader.node.status().configuration == Configuration((1, 2, 3, 4))
    for node_id in [node_id for node_id in (1, 2, 3) if node_id != ident(leader)][:1]:
        await cluster.stop(node_id)
    leader.node.propose(b"after")
    await until(everywhere(cluster, b"before", b"after"))
    assert not removed


async def test_a_removed_member_is_told_and_the_others_go_on(cluster: Cluster) -> None:
    leader = await cluster.settled()
    gone = cluster.followers()[0]
    removed, stayed = told(gone.node), told(leader.node)
    await leader.node.change_configuration(ConfigurationChange(removed=(ident(gone),)))
    await until(lambda: bool(removed))
    await cluster.stop(ident(gone))
    leader.node.propose(b"after")
    await until(everywhere(cluster, b"after"))
    assert len(removed) == 1
    assert not stayed


async def test_a_leader_that_is_removed_finishes_that_and_is_told(cluster: Cluster) -> None:
    leader = await cluster.settled()
    removed = told(leader.node)
    gone = ident(leader)
    await leader.node.change_configuration(ConfigurationChange(removed=(gone,)))
    await until(lambda: bool(removed))
    await cluster.stop(gone)
    new = await cluster.leader()
    assert gone not in new.node.status().configuration.members()
    new.node.propose(b"after")
    await until(everywhere(cluster, b"after"))


async def test_several_at_once(cluster: Cluster) -> None:
    leader = await cluster.settled()
    leader.node.propose(b"before")
    old = [ident(member) for member in cluster.followers()]
    for node_id in (4, 5):
        await cluster.join(node_id)
    watched = [told(cluster.members[node_id].node) for node_id in old]
    await leader.node.change_configuration(ConfigurationChange(voters=(4, 5), removed=tuple(old)))
    await until(lambda: all(watched))
    for node_id in old:
        await cluster.stop(node_id)
    leader.node.propose(b"after")
    await until(everywhere(cluster, b"before", b"after"))


async def test_what_cannot_be_is_refused(cluster: Cluster) -> None:
    leader = await cluster.settled()
    with pytest.raises(NotLeader):
        await cluster.followers()[0].node.change_configuration(ConfigurationChange(removed=(1,)))
    for change in (
        ConfigurationChange(removed=(9,)),
        ConfigurationChange(voters=(1,)),
        ConfigurationChange(removed=(1, 2, 3)),
        ConfigurationChange(),
    ):
        with pytest.raises(ChangeRefused):
            await leader.node.change_configuration(change)


async def test_listeners_hear_of_every_configuration_with_its_context(cluster: Cluster) -> None:
    heard: dict[NodeId, list[Configurations]] = {}
    for node_id, member in cluster.members.items():
        heard[node_id] = []
        member.node.on_configuration.append(heard[node_id].append)
    leader = await cluster.settled()
    await leader.node.change_configuration(ConfigurationChange(voters=(4,), removed=(1,), context=b"why"))
    joint, new = Configuration((2, 3, 4), (), (1, 2, 3)), Configuration((2, 3, 4))
    for node_id in (2, 3):
        await until(lambda node_id=node_id: bool(heard[node_id]) and heard[node_id][-1][-1][1] == new)  # type: ignore[misc]
        assert [(made, context) for _, made, context in heard[node_id][-1]] == [
            (Configuration((1, 2, 3)), b""),
            (joint, b"why"),
            (new, b"why"),
        ]
        await cluster.stop(node_id)
        told_at_start: list[Configurations] = []
        member = cluster.build(node_id)
        member.node.on_configuration.append(told_at_start.append)
        await cluster.run(node_id, member)
        assert told_at_start[0] == heard[node_id][-1]


async def test_one_change_at_a_time_and_nothing_is_left_of_those_who_gave_up() -> None:
    async with Cluster(3, clock=True, election_ticks=50) as cluster:
        leader = await cluster.settled()
        cluster.network.isolate(ident(leader))
        first = asyncio.create_task(leader.node.change_configuration(ConfigurationChange(learners=(4,))))
        await turns()
        with pytest.raises(ChangeRefused):
            await leader.node.change_configuration(ConfigurationChange(learners=(5,)))
        first.cancel()
        second = asyncio.create_task(leader.node.change_configuration(ConfigurationChange(learners=(6,))))
        second.cancel()
        await turns()
        assert not leader.node._changes._begun
        assert not leader.node._changes._asked


async def test_a_change_that_a_new_leader_overwrites_has_failed() -> None:
    async with Cluster(3, clock=True, election_ticks=10) as cluster:
        leader = await cluster.settled()
        cluster.network.isolate(ident(leader))
        changing = asyncio.create_task(leader.node.change_configuration(ConfigurationChange(learners=(4,))))
        await turns()
        others = cluster.followers()
        for _ in range(200):
            await cluster.tick()
            if any(member.node.status().leader_id == ident(member) for member in others):
                break
        assert not changing.done()
        cluster.network.heal()
        for _ in range(20):
            await cluster.tick()
        with pytest.raises(NotLeader, match="overwritten"):
            await changing
        assert leader.node.status().configuration == Configuration((1, 2, 3))


async def test_stop_releases_who_waits_for_a_change() -> None:
    async with Cluster(3, clock=True) as cluster:
        leader = await cluster.settled()
        cluster.network.isolate(ident(leader))
        changing = asyncio.create_task(leader.node.change_configuration(ConfigurationChange(learners=(4,))))
        await turns()
        await cluster.stop(ident(leader))
        with pytest.raises(Stopped):
            await changing
        with pytest.raises(Stopped):
            await leader.node.change_configuration(ConfigurationChange(learners=(4,)))


# Fast failover


@pytest.mark.parametrize("kind", ["memory", "grpc"])
async def test_a_leader_whose_process_is_gone_is_replaced_long_before_an_election_timeout(kind: str) -> None:
    async with Cluster(3, kind=kind, election_ticks=3000, heartbeat_ticks=5) as cluster:
        leader = await cluster.leader()
        leader.node.propose(b"before")
        await until(everywhere(cluster, b"before"))
        await cluster.crash(ident(leader))
        await until(lambda: bool(cluster.leaders()), seconds=50)  # 3000 ticks are a minute, at least
        (await cluster.leader()).node.propose(b"after")
        await until(everywhere(cluster, b"before", b"after"))


async def test_a_leader_that_is_only_cut_off_gets_its_election_timeout() -> None:
    async with Cluster(3, clock=True, election_ticks=40) as cluster:
        leader = await cluster.leader()
        await cluster.tick(count=3)
        cluster.network.isolate(ident(leader))
        await cluster.tick(count=20)
        assert cluster.leaders() == [ident(leader)]
        assert {member.node.status().leader_id for member in cluster.members.values()} == {ident(leader)}


async def test_a_follower_that_is_gone_disturbs_nobody() -> None:
    async with Cluster(3, clock=True, election_ticks=40) as cluster:
        leader = await cluster.leader()
        await cluster.crash(ident(cluster.followers()[0]))
        await cluster.tick(count=20)
        assert (await cluster.leader()) is leader
