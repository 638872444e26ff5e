"""A data directory for a member of a new cluster, from a snapshot file.

Every member of the new cluster is restored from the same file, with the same --initial-cluster and token: they begin
with the same state, as if it were the snapshot of an entry that all of them have (kvstore/snapshot/load.py), and with
logs that begin behind it. Their ids are those that a new cluster of these settings would have.

The directory is made beside its place and renamed there when it is whole and on the disk. What a process leaves that
ends before is removed by the next try, and is no data directory to any member.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.bbolt.reader import BboltError
from kvstore.config import ServerConfig
from kvstore.mvcc.store import MvccStore, StoreError
from kvstore.server.bootstrap import (
    FORMAT,
    LOCK_FILE,
    LOG_DIRECTORY,
    BootstrapError,
    Identity,
    first_members,
    random_instance,
    take_lock,
    write_identity,
)
from kvstore.server.state_folders import StateFolders, sync_directory
from kvstore.snapshot import file, load
from kvstore.snapshot.file import SnapshotFileError, Told
from kvstore.state.cluster import ClusterTable, Member, cluster_id
from raft.errors import RaftError
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration

PART: Final = ".part"
ROOM_BYTES: Final = 64 << 20  # left over beside what is restored


class RestoreError(Exception):
    """Nothing was restored. The text is one line that says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Restored:
    cluster_id: int
    member_id: int
    loaded: load.Loaded


def restore(
    config: ServerConfig,
    path: Path,
    *,
    skip_hash_check: bool = False,
    bump: int = 0,
    told: Told = lambda _: None,
    new_instance: Callable[[], int] = random_instance,
) -> Restored:
    """Make config.data_dir from the file at `path`. Raises RestoreError. Blocks.

    bump: the new cluster's revisions begin so much higher, and all older ones are compacted. Whoever remembers a
    revision of the old cluster then is told so, instead of missing what other changes have taken its number (etcd
    #16028). told: is called with the number of bytes that are read more, of `work_bytes(path)` in all.
    """
    place = config.data_dir
    part = place.with_name(place.name + PART)
    try:
        if not skip_hash_check:
            file.verify(path, told)
        _check_place(place)
        _check_room(place, file.database_bytes(path))
        lock = take_lock(part)
        try:
            _remove_rest(part)
            restored = _build(config, part, path, bump, told, new_instance)
            (part / LOCK_FILE).unlink()
            sync_directory(part)
            part.rename(place)
            sync_directory(place.parent)
        finally:
            os.close(lock)
    except BboltError as error:
        raise RestoreError(str(file.unusable(path, error))) from error
    except (BootstrapError, SnapshotFileError, StoreError, RaftError) as error:
        raise RestoreError(str(error)) from error
    except OSError as error:
        raise RestoreError(f"{error.filename or place}: {error.strerror or error}") from error
    return restored


def work_bytes(path: Path, *, skip_hash_check: bool) -> int:
    """About how much `told` will be told of in all. Raises OSError."""
    return path.stat().st_size * (1 if skip_hash_check else 2)


def _check_place(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RestoreError(f"{place} exists already; give another --data-dir, or move it away")
    place.parent.mkdir(parents=True, exist_ok=True)


def _check_room(place: Path, needed: int) -> None:
    """A small value stands in the store twice, and RocksDB compresses: about as much as the file takes."""
    found = os.statvfs(place.parent)
    free = found.f_bavail * found.f_frsize
    if free < needed + ROOM_BYTES:
        raise RestoreError(
            f"{place} needs about {needed} bytes of disk, {free} are free; free some, or give another disk"
        )


def _remove_rest(part: Path) -> None:
    """Of an earlier try that ended in the middle."""
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _build(
    config: ServerConfig, part: Path, path: Path, bump: int, told: Told, new_instance: Callable[[], int]
) -> Restored:
    members = first_members(config)
    own = next(member.id for member in members if member.name == config.name)
    cluster = cluster_id([member.id for member in members])
    folders = StateFolders(part)
    loaded = _build_store(folders.state(load.INDEX), members, path, bump, told)
    folders.swing(load.INDEX)
    storage = SegmentedStorage(part / LOG_DIRECTORY, segment_bytes=config.log_segment_bytes)
    try:
        storage.load()
        storage.reset(load.INDEX, load.TERM, Configuration(tuple(member.id for member in members)))
    finally:
        storage.close()
    write_identity(
        part,
        Identity(
            format=FORMAT,
            cluster_id=cluster,
            member_id=own,
            name=config.name,
            instance=new_instance(),
            boot=0,
            bootstrapped=True,
        ),
    )
    return Restored(cluster, own, loaded)


def _build_store(folder: Path, members: list[Member], path: Path, bump: int, told: Told) -> load.Loaded:
    with file.open_database(path) as reader:
        store = MvccStore.open(folder)
        try:
            ClusterTable(store).bootstrap(members)
            loaded = load.load(reader, store, bump, told)
            asyncio.run(store.flush())
        finally:
            store.close()
    return loaded
