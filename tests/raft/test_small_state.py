"""SmallStateMachine: its file, and a cluster of them whose logs are compacted."""

from pathlib import Path

import pytest

from raft.config import Config
from raft.errors import Corrupt, StorageError, UnknownFormat
from raft.node import Node, NodeConfig
from raft.small_state import FORMAT, SmallStateMachine
from raft.snapshot import MemorySnapshot, ReceivedSnapshot, SnapshotFailed
from raft.storage.segmented import SegmentedStorage
from raft.transport.memory import MemoryNetwork, MemoryTransport
from raft.types import Configuration, Entry, EntryKind, NodeId, Role, SnapshotMeta
from tests.raft.nodes import until

META = SnapshotMeta(7, 2, Configuration((1, 2), (3,)), b"context")


class Words(SmallStateMachine):
    words = b""

    def command(self, data: bytes) -> None:
        self.words += data

    def dump(self) -> bytes:
        return self.words

    def restore(self, state: bytes) -> None:
        self.words = state


def entry(index: int, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
    return Entry(index, 1, data, kind)


async def test_it_starts_from_what_was_saved(tmp_path: Path) -> None:
    machine = Words(tmp_path / "state")
    await machine.apply([entry(1, b"", EntryKind.NOOP), entry(2, b"a"), entry(3, b"x", EntryKind.CONFIGURATION)])
    assert machine.save() == 3
    await machine.apply([entry(4, b"b")])
    again = Words(tmp_path / "state")
    assert (again.applied_index, again.words, again.installed) == (3, b"a", None)
    await again.apply([entry(4, b"b")])
    assert (again.words, again.save()) == (b"ab", 4)


async def test_a_snapshot_passes_from_one_to_another_and_survives(tmp_path: Path) -> None:
    machine = Words(tmp_path / "one")
    await machine.apply([entry(1, b"all of it")])
    reader = await machine.take_snapshot()
    other = Words(tmp_path / "two")
    writer = other.incoming()
    (file,) = reader.files
    assert writer.begin(META, reader.files) == {file.name: 0}
    writer.write(file.name, 0, reader.read(file.name, 0, 4))
    assert writer.begin(META, reader.files) == {file.name: 4}, "it resumes"
    writer.write(file.name, 4, reader.read(file.name, 4, file.size - 4))
    writer.finish()
    await other.install_snapshot(ReceivedSnapshot(META, writer))
    for found in (other, Words(tmp_path / "two")):
        assert (found.applied_index, found.words, found.installed) == (7, b"all of it", META)


async def test_what_is_not_a_small_state_is_refused(tmp_path: Path) -> None:
    writer = Words(tmp_path / "state", state_bytes_max=10).incoming()
    with pytest.raises(SnapshotFailed):
        writer.begin(META, MemorySnapshot(7, 2, bytes(11)).files)
    with pytest.raises(SnapshotFailed):
        writer.begin(META, [])
    files = MemorySnapshot(7, 2, b"good").files
    writer.begin(META, files)
    writer.write(files[0].name, 0, b"evil")
    with pytest.raises(SnapshotFailed, match="checksum"):
        writer.finish()


@pytest.mark.parametrize("offset", [0, 9, 20, 50, -1])
def test_damage_is_found(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "state"
    Words(path).save()
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        Words(path)


def test_a_later_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.small_state.FORMAT", FORMAT + 1)
    Words(tmp_path / "state").save()
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match=f"format {FORMAT + 1}"):
        Words(tmp_path / "state")


def test_an_unfinished_save_leaves_the_one_before(tmp_path: Path) -> None:
    machine = Words(tmp_path / "state")
    machine.words = b"old"
    machine.save()
    (tmp_path / "state.new").write_bytes(b"cut off")
    assert Words(tmp_path / "state").words == b"old"
    machine.words = b"new"
    machine.save()
    assert Words(tmp_path / "state").words == b"new"
    (tmp_path / "state.new").mkdir()
    with pytest.raises(StorageError):
        machine.save()


class Member:
    def __init__(self, network: MemoryNetwork, node_id: NodeId, path: Path) -> None:
        path.mkdir(exist_ok=True)
        storage = SegmentedStorage(path / "log", segment_bytes=2000)
        loaded = storage.load()
        if loaded.hard_state.term == 0:
            storage.reset(0, 0, Configuration((1, 2, 3)))
            storage.close()
            storage = SegmentedStorage(path / "log", segment_bytes=2000)
            loaded = storage.load()
        self.words = Words(path / "state")
        transport = MemoryTransport(network, node_id)
        transport.set_peers({1: [], 2: [], 3: []})
        config = NodeConfig(core=Config(node_id=node_id), tick_seconds=0.01, catch_up_bytes=0)
        self.node = Node(config, storage, self.words, transport, loaded=loaded)


async def test_a_cluster_of_them_compacts_restarts_and_brings_back_the_one_that_was_away(tmp_path: Path) -> None:
    network = MemoryNetwork()
    paths = {node_id: tmp_path / str(node_id) for node_id in (1, 2, 3)}
    members = {node_id: Member(network, node_id, path) for node_id, path in paths.items()}
    for member in members.values():
        await member.node.start()
    await until(lambda: any(member.node.status().role is Role.LEADER for member in members.values()))
    away = next(i for i, member in members.items() if member.node.status().role is Role.FOLLOWER)
    await members.pop(away).node.stop()
    writer = next(iter(members.values()))
    text = b"".join([b"%099d;" % number for number in range(60)])
    for number in range(60):
        writer.node.propose(b"%099d;" % number)
        await until(lambda number=number: len(writer.words.words) == 100 * (number + 1))  # type: ignore[misc]
    await until(lambda: all(member.words.words == text for member in members.values()))
    for node_id, member in list(members.items()):
        await member.node.compact(member.words.save())
        assert member.node.status().first_index > 20
        await member.node.stop()
        members[node_id] = Member(network, node_id, paths[node_id])
        assert members[node_id].words.words == text
    for member in members.values():
        await member.node.start()
    returned = members[away] = Member(network, away, paths[away])
    await returned.node.start()
    await until(lambda: returned.words.words == text)
    assert returned.words.installed is not None
    for member in members.values():
        await member.node.stop()
    assert Member(network, away, paths[away]).words.words == text
