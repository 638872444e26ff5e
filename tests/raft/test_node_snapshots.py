"""Snapshots and compaction through the driver: real nodes over memory and over gRPC."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from raft import sending
from raft.core.progress import ProgressState
from raft.messages import AppendEntriesResponse, Message
from raft.snapshot import SnapshotFailed
from raft.storage.memory import MemoryStorage
from raft.types import Configuration, ConfigurationChange, Index, NodeId, Term
from tests.raft.nodes import Cluster, Machine, Member, until

KEEP_NOTHING = {"catch_up_bytes": 0}


@pytest.fixture(params=["memory", "grpc"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with Cluster(3, kind=request.param, election_ticks=20, node=KEEP_NOTHING) as made:
        for node_id, member in made.members.items():
            made.machines[node_id] = member.machine
        yield made


def ident(member: Member) -> NodeId:
    return member.node.status().node_id


def everywhere(cluster: Cluster, commands: list[bytes]) -> Callable[[], bool]:
    return lambda: all(member.machine.commands == commands for member in cluster.members.values())


async def propose(leader: Member, commands: list[bytes]) -> None:
    for command in commands:
        leader.node.propose(command)
    await until(lambda: leader.machine.commands[-len(commands) :] == commands)


async def leave_behind(cluster: Cluster, commands: list[bytes]) -> tuple[Member, NodeId]:
    """One follower is stopped, and what it lacks is compacted away. Returns the leader and the follower."""
    leader = await cluster.leader()
    lost = ident(cluster.followers()[0])
    await cluster.stop(lost)
    await propose(leader, commands)
    await leader.node.compact(10**9)
    assert leader.node.status().first_index > len(commands)
    return leader, lost


def numbers(count: int, size: int = 8) -> list[bytes]:
    return [b"%0*d" % (size, number) for number in range(count)]


async def test_a_lagging_member_is_brought_back_and_goes_on(cluster: Cluster) -> None:
    commands = numbers(50)
    leader, lost = await leave_behind(cluster, commands)
    member = await cluster.start(lost)
    await until(everywhere(cluster, commands))
    assert member.machine.installed is not None
    await propose(leader, [b"after"])
    await until(everywhere(cluster, [*commands, b"after"]))
    assert len(leader.machine.readers) == 1
    await until(lambda: leader.machine.readers[0].closed)
    status = leader.node.status().progress[lost]
    assert (status.state, status.snapshot_index) == (ProgressState.REPLICATE, 0)


async def test_a_new_member_gets_a_snapshot_and_the_configuration_with_it(cluster: Cluster) -> None:
    commands = numbers(50)
    leader = await cluster.settled()
    await propose(leader, commands)
    await until(everywhere(cluster, commands))
    await leader.node.change_configuration(ConfigurationChange(learners=(9,), context=b"nine"))
    await leader.node.compact(10**9)
    heard: list[bytes] = []  # contexts
    member = await cluster.join(4)
    member.node.on_configuration.append(lambda found: heard.append(found[-1][2]))
    await leader.node.change_configuration(ConfigurationChange(voters=(4,), removed=(9,), context=b"four"))
    await until(everywhere(cluster, commands))
    assert member.machine.installed is not None
    await until(lambda: heard[-1:] == [b"four"])
    # The snapshot may carry the joint configuration: the member learns by an append that it was left.
    await until(lambda: member.node.status().configuration == Configuration((1, 2, 3, 4)))
    await cluster.stop(ident(cluster.followers()[0]))
    await propose(leader, [b"after"])


async def test_a_transfer_that_is_cut_in_the_middle_resumes(cluster: Cluster) -> None:
    cluster.network.piece_bytes = 256 * 1024
    commands = numbers(40, size=50_000)  # 4 MB in hex
    leader, lost = await leave_behind(cluster, commands)
    writer = cluster.machines[lost].writer
    cuts: list[int] = []

    def full(offset: int) -> None:
        if offset > 2_000_000 and not cuts:
            cuts.append(offset)
            raise OSError(28, "No space left on device")

    writer.on_write = full
    await cluster.start(lost)
    await until(everywhere(cluster, commands))
    (reader,) = leader.machine.readers
    size = reader.files[0].size
    assert cuts
    # What was on its way when it was cut is read again, and no more than that.
    assert size <= reader.bytes_read <= size + 1_600_000 < cuts[0] + size


async def test_a_snapshot_that_is_damaged_is_thrown_away_and_sent_again(cluster: Cluster) -> None:
    commands = numbers(50)
    leader, lost = await leave_behind(cluster, commands)
    writer = cluster.machines[lost].writer
    finished: list[None] = []

    def damage() -> None:
        finished.append(None)
        if len(finished) == 1:
            raise SnapshotFailed("the checksum is wrong")

    writer.on_finish = damage
    await cluster.start(lost)
    await until(everywhere(cluster, commands))
    assert len(finished) == 2
    assert sum([reader.bytes_read for reader in leader.machine.readers]) == 2 * leader.machine.readers[0].files[0].size


async def test_a_member_that_takes_no_snapshot_is_asked_less_and_less_often(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk over there is not filled with attempts, nor our log with lines."""
    monkeypatch.setattr(sending, "RETRY_SECONDS", 0.004)
    leader, lost = await leave_behind(cluster, numbers(20))
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    call_later = loop.call_later

    def note(delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") == "_end":
            waits.append(delay)
        return call_later(delay, callback, *args)

    monkeypatch.setattr(loop, "call_later", note)
    member = await cluster.start(lost)

    def full() -> None:
        raise SnapshotFailed("the disk is full")

    with monkeypatch.context() as refusing:
        refusing.setattr(member.machine, "incoming", full)
        await until(lambda: len(waits) >= 4)
    assert waits[:4] == [0.004, 0.008, 0.016, 0.032]
    await until(everywhere(cluster, leader.machine.commands))


async def test_a_snapshot_that_cannot_be_taken_disturbs_nobody_and_is_tried_again(cluster: Cluster) -> None:
    commands = numbers(50)
    leader, lost = await leave_behind(cluster, commands)
    term = leader.node.status().term
    leader.machine.snapshots_fail = 3
    await cluster.start(lost)
    await until(lambda: leader.machine.snapshots_fail < 3)
    await propose(leader, [b"meanwhile"])
    await until(everywhere(cluster, [*commands, b"meanwhile"]))
    assert leader.node.status().term == term


async def test_a_slow_disk_over_there_holds_back_neither_heartbeats_nor_writes(cluster: Cluster) -> None:
    commands = numbers(50)
    leader, lost = await leave_behind(cluster, commands)
    term = leader.node.status().term
    reached, go_on = threading.Event(), threading.Event()

    def hang(offset: int) -> None:
        reached.set()
        go_on.wait(20)

    cluster.machines[lost].writer.on_write = hang
    member = await cluster.start(lost)
    try:
        await until(reached.is_set)
        await asyncio.sleep(40 * 0.02)  # two election timeouts
        await propose(leader, [b"meanwhile"])
        assert (leader.node.status().term, member.node.status().leader_id) == (term, ident(leader))
    finally:
        go_on.set()
    await until(everywhere(cluster, [*commands, b"meanwhile"]))


async def test_a_leader_that_is_deposed_ends_its_transfers(cluster: Cluster) -> None:
    commands = numbers(50)
    leader, lost = await leave_behind(cluster, commands)
    reached, go_on = threading.Event(), threading.Event()

    def hang(offset: int) -> None:
        reached.set()
        go_on.wait(20)

    cluster.machines[lost].writer.on_write = hang
    await cluster.start(lost)
    try:
        await until(reached.is_set)
        other = next(ident(member) for member in cluster.followers() if ident(member) != lost)
        assert await leader.node.transfer_leadership(other)
    finally:
        go_on.set()
    await until(lambda: all(reader.closed for reader in leader.machine.readers))
    await until(everywhere(cluster, commands))


# The order of things, with clocks and disks of ours


async def left_behind(cluster: Cluster, commands: list[bytes]) -> tuple[Member, Member]:
    """The same over a cut network: the follower runs, and lacks what is compacted."""
    leader = await cluster.leader()
    lost = cluster.followers()[0]
    cluster.network.isolate(ident(lost))
    await propose(leader, commands)
    await leader.node.compact(10**9)
    return leader, lost


async def tick_until(cluster: Cluster, condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await cluster.tick()
    await until(condition)


async def test_an_installation_waits_for_what_is_being_applied() -> None:
    """... while heartbeats are answered: a slow apply costs no leadership."""
    async with Cluster(3, clock=True, election_ticks=10, node=KEEP_NOTHING) as cluster:
        leader = await cluster.leader()
        slow = cluster.followers()[0]
        slow.machine.gate.clear()
        leader.node.propose(b"slow")
        await until(lambda: b"slow" in leader.machine.commands)
        await cluster.tick(count=2)
        leader, lost = await left_behind(cluster, numbers(20))
        assert lost is slow
        cluster.network.heal()
        await tick_until(cluster, lambda: lost.node._receiving.whole is not None)
        term = leader.node.status().term
        await cluster.tick(count=30)
        assert lost.machine.installed is None
        assert leader.node.status().term == term
        assert lost.node.status().leader_id == ident(leader)
        slow.machine.gate.set()
        await tick_until(cluster, everywhere(cluster, [b"slow", *numbers(20)]))
        assert lost.machine.installed is not None


class BadReset(MemoryStorage):  # type: ignore[misc]
    """The power goes between the installation and the reset of the log."""

    fails = False

    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        super().reset(index, term, configuration, context)


async def test_a_crash_between_state_and_log_is_mended_by_the_next_start() -> None:
    async with Cluster(
        3, clock=True, election_ticks=10, node=KEEP_NOTHING, storage=lambda node_id, first: BadReset(first)
    ) as cluster:
        leader, lost = await left_behind(cluster, numbers(20))
        node_id = ident(lost)
        storage = lost.storage
        assert isinstance(storage, BadReset)
        storage.fails = True
        cluster.machines[node_id] = lost.machine
        cluster.network.heal()
        await tick_until(cluster, lambda: lost.machine.installed is not None)
        assert isinstance(await lost.node.wait_failed(), OSError)
        await cluster.stop(node_id)
        assert lost.machine.applied_index > storage.last_index
        storage.fails = False
        await cluster.start(node_id)
        assert storage.first_index == lost.machine.applied_index + 1
        await propose(leader, [b"after"])
        await tick_until(cluster, everywhere(cluster, [*numbers(20), b"after"]))


async def test_a_failed_installation_ends_the_node() -> None:
    class Broken(Machine):
        async def install_snapshot(self, snapshot: object) -> None:
            raise OSError("no space left for the state")

    async with Cluster(3, clock=True, election_ticks=10, node=KEEP_NOTHING) as cluster:
        leader = await cluster.leader()
        lost = ident(cluster.followers()[0])
        await cluster.stop(lost)
        await propose(leader, numbers(20))
        await leader.node.compact(10**9)
        cluster.machines[lost] = Broken()
        member = await cluster.start(lost)
        waiting = asyncio.create_task(member.node.wait_failed())
        await tick_until(cluster, waiting.done)
        assert "no space left for the state" in str(await waiting)


async def test_a_member_that_is_a_little_behind_needs_no_snapshot() -> None:
    async with Cluster(3, clock=True, election_ticks=10, node={"catch_up_bytes": 3000}) as cluster:
        leader = await cluster.leader()
        lost = cluster.followers()[0]
        await propose(leader, numbers(10, size=100))
        await tick_until(cluster, everywhere(cluster, numbers(10, size=100)))
        await cluster.tick(count=3)
        cluster.network.isolate(ident(lost))
        await propose(leader, numbers(20, size=100))
        await leader.node.compact(10**9)
        assert leader.node.status().first_index <= lost.node.status().last_index + 1, "it is within the window"
        assert leader.node.status().first_index > 5, "what everybody has is gone"
        await propose(leader, numbers(40, size=100))
        await leader.node.compact(10**9)
        status = leader.node.status()
        assert 3000 <= leader.storage.bytes_after(status.first_index - 1) <= 3200
        assert status.first_index > lost.node.status().last_index + 1, "now it is not"
        cluster.network.heal()
        await tick_until(cluster, lambda: lost.machine.commands == leader.machine.commands)
        assert lost.machine.installed is not None


@pytest.mark.parametrize(("pin_bytes", "is_kept"), [(1_000_000, True), (500, False)])
async def test_the_log_behind_a_snapshot_on_its_way_stays_up_to_a_bound(pin_bytes: int, is_kept: bool) -> None:
    options = {"catch_up_bytes": 0, "snapshot_pin_bytes": pin_bytes}
    async with Cluster(3, clock=True, election_ticks=10, node=options) as cluster:
        leader, lost = await left_behind(cluster, numbers(20))
        blocked = cluster.executors[ident(lost)]
        lost.node._runtime._executor = blocked
        blocked.holding = True
        cluster.network.heal()
        await tick_until(cluster, lambda: bool(leader.machine.readers))
        index = leader.machine.readers[0].index
        await propose(leader, numbers(20, size=100))
        await leader.node.compact(10**9)
        assert (leader.node.status().first_index == index + 1) is is_kept
        blocked.holding = False
        blocked.release()
        await tick_until(cluster, lambda: lost.machine.commands == leader.machine.commands)
        assert len(leader.machine.readers) == (1 if is_kept else 2)


async def test_a_lost_acknowledgement_of_an_installation_is_asked_for_again() -> None:
    async with Cluster(3, clock=True, election_ticks=10, node=KEEP_NOTHING) as cluster:
        leader, lost = await left_behind(cluster, numbers(20))
        cluster.network.heal()
        dropped: list[Message] = []

        def drop(message: Message) -> float | None:
            if message.sender == ident(lost) and lost.machine.installed and isinstance(message, AppendEntriesResponse):
                dropped.append(message)
                return None
            return 0.0

        cluster.network.delay = drop
        await tick_until(cluster, lambda: bool(dropped))
        cluster.network.delay = None
        await propose(leader, [b"after"])
        await tick_until(cluster, everywhere(cluster, [*numbers(20), b"after"]))


async def test_nothing_of_a_transfer_is_left_after_a_stop() -> None:
    async with Cluster(3, clock=True, election_ticks=10, node=KEEP_NOTHING) as cluster:
        leader, lost = await left_behind(cluster, numbers(20))
        executor = cluster.executors[ident(lost)]
        lost.node._runtime._executor = executor
        executor.holding = True
        cluster.network.heal()
        await tick_until(cluster, lambda: bool(executor.held))
        await cluster.stop(ident(leader))
        assert all(reader.closed for reader in leader.machine.readers)
        executor.holding = False
        executor.release()
        await cluster.stop(ident(lost))
        tasks = [task for task in asyncio.all_tasks() if "Sending" in repr(task) or "Receiving" in repr(task)]
        assert not tasks
