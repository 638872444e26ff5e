"""The data directory: made whole or made again, and never used by the wrong member."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvstore.config import ServerConfig
from kvstore.server.bootstrap import BootstrapError, OpenMember, open_member
from raft.types import Entry, HardState

CLUSTER = (("a", ("http://a:2380",)), ("b", ("http://b:2380",)), ("c", ("http://c:2380",)))


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(name="a", data_dir=tmp_path / "data", initial_cluster=CLUSTER, initial_cluster_given=True)


def close(member: OpenMember) -> None:
    member.storage.close()
    member.store.close()
    member.release()


def identity(config: ServerConfig) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((config.data_dir / "member.json").read_text())
    return fields


async def reopen(config: ServerConfig) -> OpenMember:
    close(await open_member(config))
    return await open_member(config)


async def test_a_new_directory_has_its_members_and_is_private(config: ServerConfig) -> None:
    member = await open_member(config)
    assert [(one.name, one.peer_urls) for one in sorted(member.cluster.members(), key=lambda one: one.name)] == list(
        CLUSTER
    )
    assert member.loaded.configuration.voters == tuple(one.id for one in member.cluster.members())
    assert stat.S_IMODE(config.data_dir.stat().st_mode) == 0o700
    assert identity(config)["bootstrapped"] is True
    close(member)


async def test_every_start_has_a_boot_number_of_its_own_and_the_instance_stays(config: ServerConfig) -> None:
    first = await open_member(config)
    close(first)
    second = await open_member(config)
    close(second)
    assert (first.identity.boot, second.identity.boot) == (1, 2)
    assert first.identity.instance == second.identity.instance != 0


async def test_a_crash_in_the_middle_of_the_first_start_begins_again(config: ServerConfig) -> None:
    """Whatever was made by then: nothing was promised before `bootstrapped`."""
    close(await open_member(config))
    fields = identity(config)
    (config.data_dir / "member.json").write_text(json.dumps(fields | {"bootstrapped": False}))
    member = await open_member(config)
    assert member.loaded.configuration.voters == tuple(one.id for one in member.cluster.members())
    assert f"{member.identity.instance:016x}" == fields["instance"]
    assert identity(config)["bootstrapped"] is True
    close(member)


async def test_one_process_at_a_time(config: ServerConfig) -> None:
    member = await open_member(config)
    with pytest.raises(BootstrapError, match="in use by another process"):
        await open_member(config)
    close(member)
    close(await open_member(config))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "b"}, "belongs to member 'a', not to --name=b"),
        ({"initial_cluster_token": "other"}, "belongs to cluster"),
        ({"initial_cluster": CLUSTER[:2]}, "belongs to cluster"),
    ],
)
async def test_settings_of_somebody_else_are_refused(config: ServerConfig, change: dict[str, Any], text: str) -> None:
    close(await open_member(config))
    with pytest.raises(BootstrapError, match=text):
        await open_member(replace(config, **change))
    close(await open_member(config))  # and nothing was changed


async def test_settings_that_were_not_given_are_not_compared(config: ServerConfig) -> None:
    close(await open_member(config))
    alone = replace(config, initial_cluster=CLUSTER[:1], initial_cluster_given=False)
    member = await open_member(alone)
    assert len(member.cluster.members()) == 3
    close(member)


async def test_joining_asks_the_others_without_data_and_nobody_with_it(config: ServerConfig) -> None:
    existing = replace(config, initial_cluster_state="existing")
    nowhere = (*CLUSTER[:1], ("b", ("http://127.0.0.1:1",)))
    asking = replace(existing, initial_cluster=nowhere, initial_advertise_peer_urls=CLUSTER[0][1])
    with pytest.raises(BootstrapError, match=r"none of http://127.0.0.1:1 answers.*start them or correct it"):
        await open_member(asking)
    assert not (config.data_dir / "member.json").exists()
    close(await open_member(config))
    close(await open_member(existing))


async def test_a_log_that_is_behind_the_store_is_refused(config: ServerConfig) -> None:
    """As if somebody had put an old copy of log/ beside a newer state/."""
    member = await open_member(config)
    member.storage.save(HardState(1, 0, 0), [Entry(index, 1, b"") for index in (1, 2, 3)], True)
    state = member.store.state
    from rocksdict import WriteBatch

    member.store.commit(WriteBatch(raw_mode=True), state._replace(applied_index=4, applied_term=1))
    await member.store.flush()
    close(member)
    with pytest.raises(BootstrapError, match="ends at entry 3, but the store has applied 4"):
        await open_member(config)


async def test_a_directory_of_etcd_is_refused(config: ServerConfig) -> None:
    (config.data_dir / "member" / "wal").mkdir(parents=True)
    with pytest.raises(BootstrapError, match="is one of etcd's"):
        await open_member(config)
