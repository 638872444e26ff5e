"""What a start makes of a data directory whose process ended while a snapshot was taken, received or installed."""

from pathlib import Path

import pytest

from kvstore.config import ServerConfig
from kvstore.mvcc import schema
from kvstore.mvcc.store import MvccStore
from kvstore.server.bootstrap import BootstrapError, OpenMember, first_members, open_member
from kvstore.server.state_folders import StateFolders
from kvstore.state.cluster import ClusterTable
from raft.core.membership import encode_configuration
from raft.types import Configuration, Entry, HardState

CLUSTER = (("a", ("http://a:2380",)), ("b", ("http://b:2380",)), ("c", ("http://c:2380",)))


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(name="a", data_dir=tmp_path / "data", initial_cluster=CLUSTER, initial_cluster_given=True)


def close(member: OpenMember) -> None:
    member.storage.close()
    member.store.close()
    member.release()


async def with_log(config: ServerConfig, terms: list[int], vote: HardState) -> Configuration:
    """A data directory whose log has entries of these terms."""
    member = await open_member(config)
    member.storage.save(vote, [Entry(at + 1, term, b"x") for at, term in enumerate(terms)], True)
    close(member)
    return member.loaded.configuration


async def install(config: ServerConfig, index: int, term: int, configuration: bytes = b"") -> None:
    """CURRENT names the snapshot, the log knows nothing of it."""
    folders = StateFolders(config.data_dir)
    folders.find()
    store = MvccStore.open(folders.state(index))
    ClusterTable(store).bootstrap(first_members(config))
    batch = store.engine.batch()
    if configuration:
        batch.put(schema.META_CONFIGURATION, configuration)
    store.commit(batch, store.state._replace(applied_index=index, applied_term=term))
    await store.flush()
    store.close()
    folders.swing(index)


async def test_a_snapshot_beyond_the_log_starts_the_log_anew_behind_it(config: ServerConfig) -> None:
    """S-25: between the installation of a snapshot and the reset of the log."""
    configuration = await with_log(config, [1, 1, 2], HardState(5, 7, 2))
    await install(config, 9, 4)
    member = await open_member(config)
    assert (member.store.applied_index, member.storage.first_index, member.storage.last_index) == (9, 10, 9)
    assert member.storage.term_at(9) == 4
    assert (member.loaded.hard_state, member.loaded.configuration) == (HardState(5, 7, 9), configuration)
    close(member)
    again = await open_member(config)  # and it is durable
    assert (again.storage.first_index, again.loaded.hard_state) == (10, HardState(5, 7, 9))
    close(again)


async def test_a_snapshot_newer_than_our_term_takes_the_term_along(config: ServerConfig) -> None:
    await with_log(config, [1, 1], HardState(1, 7, 1))
    await install(config, 9, 4)
    member = await open_member(config)
    assert member.loaded.hard_state == HardState(4, 0, 9)
    close(member)


async def test_a_log_that_conflicts_with_the_snapshot_is_discarded(config: ServerConfig) -> None:
    """S-22, S-23: entries behind a position of another term are of another history, and must not come back."""
    await with_log(config, [1, 1, 1, 1, 1], HardState(3, 0, 2))
    await install(config, 4, 2)
    member = await open_member(config)
    assert (member.storage.first_index, member.storage.last_index, member.storage.term_at(4)) == (5, 4, 2)
    close(member)
    member = await open_member(config)
    assert member.storage.last_index == 4  # no ghost of 5@1
    close(member)


async def test_a_log_that_agrees_with_the_snapshot_stays(config: ServerConfig) -> None:
    """S-26: what follows the snapshot in our log may be acknowledged."""
    await with_log(config, [1, 1, 2, 2, 3], HardState(3, 0, 2))
    await install(config, 4, 2)
    member = await open_member(config)
    assert (member.storage.first_index, member.storage.last_index) == (1, 5)
    close(member)


async def test_the_configuration_is_the_snapshots_not_the_flags(config: ServerConfig) -> None:
    """S-26, S-34: who votes is what the state says, also while a change of it is under way."""
    await with_log(config, [1], HardState(1, 0, 1))
    joint = Configuration((11, 12, 14), (15,), (11, 12, 13))
    await install(config, 9, 4, encode_configuration(joint, b"who asked"))
    member = await open_member(config)
    assert (member.loaded.configuration, member.loaded.context) == (joint, b"who asked")
    close(member)


async def test_a_state_that_has_applied_more_than_its_snapshot_cannot_lack_its_log(config: ServerConfig) -> None:
    await with_log(config, [1], HardState(1, 0, 1))
    await install(config, 9, 4)
    member = await open_member(config)
    member.store.commit(member.store.engine.batch(), member.store.state._replace(applied_index=10))
    await member.store.flush()
    close(member)
    with pytest.raises(BootstrapError, match="ends at entry 9, but the store has applied 10"):
        await open_member(config)


async def test_a_lost_log_is_not_taken_for_an_interrupted_snapshot(config: ServerConfig) -> None:
    await with_log(config, [1], HardState(1, 0, 1))
    await install(config, 9, 4)
    for segment in (config.data_dir / "log").glob("*.log"):
        segment.unlink()
    with pytest.raises(BootstrapError, match="is gone"):
        await open_member(config)


async def test_what_an_interrupted_snapshot_left_is_removed_once_the_state_was_found_good(config: ServerConfig) -> None:
    """S-51"""
    close(await open_member(config))
    data = config.data_dir
    for name in ("state-7", "state-9.part", "snapshot-1", "snapshot-2.tmp"):
        (data / name).mkdir()
        (data / name / "000010.sst").write_bytes(b"x")
    (data / "CURRENT.new").write_text("1 state-7\n")
    close(await open_member(config))
    assert sorted(path.name for path in data.iterdir()) == ["CURRENT", "LOCK", "log", "member.json", "state-0"]


async def test_a_state_that_cannot_be_opened_leaves_everything_as_it_is(config: ServerConfig) -> None:
    close(await open_member(config))
    data = config.data_dir
    (data / "state-7").mkdir()
    (data / "state-0" / "CURRENT").write_text("nonsense\n")
    with pytest.raises(BootstrapError, match="damaged"):
        await open_member(config)
    assert (data / "state-7").exists()


async def test_the_directory_of_an_older_version_is_read(config: ServerConfig) -> None:
    member = await open_member(config)
    member.storage.save(HardState(1, 0, 0), [Entry(1, 1, b"")], True)
    member.store.commit(member.store.engine.batch(), member.store.state._replace(applied_index=1, applied_term=1))
    await member.store.flush()
    close(member)
    (config.data_dir / "CURRENT").unlink()
    (config.data_dir / "state-0").rename(config.data_dir / "state")
    member = await open_member(config)
    assert member.store.applied_index == 1
    assert (config.data_dir / "state-0").exists()
    assert not (config.data_dir / "state").exists()
    close(member)


async def test_a_directory_without_current_is_refused(config: ServerConfig) -> None:
    close(await open_member(config))
    (config.data_dir / "CURRENT").unlink()
    with pytest.raises(BootstrapError, match="has state-0 but no CURRENT"):
        await open_member(config)
    assert (config.data_dir / "state-0").exists()
