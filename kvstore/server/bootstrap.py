"""A member's data directory: made once, checked at every start.

    DATA/LOCK          flock: one process at a time
    DATA/member.json   who this is: format, cluster, member, name, instance, boot
    DATA/log/          the Raft log, term and vote (raft/storage)
    DATA/CURRENT       which state-INDEX/ is the store (kvstore/mvcc; state_folders.py)

`instance` is drawn when the directory is made. The cluster learns it through the log, and peers refuse a
member that comes back with another one: a member that has lost its disk has forgotten whom it voted for
and what it acknowledged, and could elect a leader that misses acknowledged writes (RethinkDB #5289).
`boot` grows at every start and is on disk before anything leaves: with it (member, boot, sequence) names
a request for ever.

A snapshot that was installed when the process ended may be ahead of the log, or of another history than it:
then the log starts anew behind it (S-25). Any other store that does not meet its log is damage.

member.json says `bootstrapped` only when log and store hold their first rows durably. Until then nothing
was ever promised, and all of it is made again; from then on a missing log or store is damage.

Every refusal is a BootstrapError of one line that says what to do.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from kvstore.config import ServerConfig
from kvstore.failpoints import fail
from kvstore.measure import FSYNCS
from kvstore.mvcc.store import MvccStore, StoreError, StoreOptions
from kvstore.rpc import make_peer_channel
from kvstore.server.joining import Joining, JoinRefused, ask_to_join, hear
from kvstore.server.leader_calls import ChannelFactory
from kvstore.server.peers import Told
from kvstore.server.snapshots import configuration_of
from kvstore.server.state_folders import CURRENT_FILE, OLD_STATE, FolderError, StateFolders, sync_directory
from kvstore.state.cluster import ClusterTable, Member, cluster_id, member_id
from kvstore.state.versions import long, parse_minor, read_versions
from kvstore.version import ETCD_VERSION
from raft.errors import RaftError
from raft.snapshot import repair_log
from raft.storage.base import Loaded
from raft.storage.file_system import OsFileSystem
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, HardState, SnapshotMeta

FORMAT: Final = 1  # of member.json and of the directory's layout
MEMBER_FILE: Final = "member.json"
LOCK_FILE: Final = "LOCK"
LOG_DIRECTORY: Final = "log"


class BootstrapError(Exception):
    """This process must not run on this directory. The text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What member.json holds. Ids are 64 bits, never 0."""

    format: int
    cluster_id: int
    member_id: int
    name: str
    instance: int
    boot: int
    bootstrapped: bool
    joined: bool = False  # a cluster that was there before


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMember:
    """An open data directory, and all that a server needs from it."""

    identity: Identity
    storage: SegmentedStorage
    loaded: Loaded
    store: MvccStore
    cluster: ClusterTable
    folders: StateFolders
    lock: int  # file descriptor; the lock lives as long as it does
    told: Told | None = None  # the members as another one has them, where this one is known to be behind

    def release(self) -> None:
        """Last of all, after storage and store are closed."""
        os.close(self.lock)


def random_instance() -> int:
    return secrets.randbits(63) | 1


async def open_member(
    config: ServerConfig,
    open_log: Callable[[Path], SegmentedStorage] | None = None,
    store_options: StoreOptions | None = None,
    new_instance: Callable[[], int] = random_instance,
    channel_factory: ChannelFactory = make_peer_channel,
) -> OpenMember:
    """Make or check the directory, open log and store. Raises BootstrapError.

    channel_factory: the way to the other members, for one that joins them. All else but `config` is for tests that
    need small segments, or a disk and chances of their own.
    """
    path = config.data_dir
    lock = take_lock(path)
    try:
        found = _read_identity(path)
        joining = None
        if config.initial_cluster_state == "existing" and (found is None or not found.bootstrapped):
            _check_empty(path)
            joining = await ask_to_join(config, channel_factory)
        members = first_members(config) if joining is None else joining.first
        identity = _identify(path, config, members, found, joining, new_instance)
        disk = OsFileSystem(FSYNCS.timed(os.fdatasync))
        open_log = open_log or partial(SegmentedStorage, segment_bytes=config.log_segment_bytes, file_system=disk)
        member = await _open(path, identity, members, lock, open_log, store_options or StoreOptions())
        return await _with_told(config, member, joining, channel_factory)
    except BaseException as error:
        os.close(lock)
        if isinstance(error, JoinRefused):
            raise BootstrapError(str(error)) from error
        if isinstance(error, (RaftError, StoreError, FolderError)):
            raise BootstrapError(_guided(path, str(error))) from error
        if isinstance(error, OSError):
            raise BootstrapError(_unusable(path, error)) from error
        raise


def first_members(config: ServerConfig) -> list[Member]:
    """The members of --initial-cluster with their ids, in name order."""
    token = config.initial_cluster_token
    return [Member(id=member_id(list(urls), token), name=name, peer_urls=urls) for name, urls in config.initial_cluster]


def _guided(path: Path, problem: str) -> str:
    return f"data directory {path} cannot be used: {problem}"


def _unusable(path: Path, error: OSError) -> str:
    return (
        f"data directory {path} cannot be used: {error.strerror or error}; "
        "check its owner, mode and free space, or give another --data-dir"
    )


def take_lock(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootstrapError(_unusable(path, error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise BootstrapError(
            f"data directory {path} is in use by another process{f' (pid {owner})' if owner else ''}; "
            "stop that one first, or give another --data-dir"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _identify(
    path: Path,
    config: ServerConfig,
    members: list[Member],
    found: Identity | None,
    joining: Joining | None,
    new_instance: Callable[[], int],
) -> Identity:
    """The identity of this start, durable, with a boot number of its own."""
    if joining is None:
        own = next(member.id for member in members if member.name == config.name)
        cluster = cluster_id([member.id for member in members])
    else:
        own, cluster = joining.member_id, joining.cluster_id
    if found is None:
        _check_empty(path)
        found = Identity(
            format=FORMAT,
            cluster_id=cluster,
            member_id=own,
            name=config.name,
            instance=new_instance(),
            boot=0,
            bootstrapped=False,
        )
    elif not found.bootstrapped:
        found = replace(found, cluster_id=cluster, member_id=own, name=config.name)
    else:
        _check_same(path, config, found, own, cluster)
    fail("startBeforeIdentity")
    identity = replace(found, boot=found.boot + 1, joined=found.joined or joining is not None)
    write_identity(path, identity)
    return identity


async def _with_told(
    config: ServerConfig, member: OpenMember, joining: Joining | None, channel_factory: ChannelFactory
) -> OpenMember:
    """A member that has not yet reached its own addition in the log may find nobody by what it has applied."""
    identity = member.identity
    if joining is not None:
        return replace(member, told=joining.told)
    if identity.joined and member.cluster.member(identity.member_id) is None:
        return replace(member, told=await hear(config, identity.cluster_id, channel_factory))
    return member


def _check_empty(path: Path) -> None:
    for name in (LOG_DIRECTORY, OLD_STATE, CURRENT_FILE):
        if (path / name).exists():
            raise BootstrapError(
                f"data directory {path} has {name} but no {MEMBER_FILE}; restore that file, or move the directory away"
            )
    if (path / "member" / "wal").exists():
        raise BootstrapError(f"data directory {path} is one of etcd's; give another --data-dir")


def _check_same(path: Path, config: ServerConfig, found: Identity, own: int, cluster: int) -> None:
    if found.name != config.name:
        raise BootstrapError(
            f"data directory {path} belongs to member {found.name!r}, not to --name={config.name}; "
            f"give this member's own --data-dir, or --name={found.name}"
        )
    if found.joined or config.initial_cluster_state == "existing" or not config.initial_cluster_given:
        return  # ids of members that were added cannot be told from the settings
    if found.cluster_id != cluster:
        raise BootstrapError(
            f"data directory {path} belongs to cluster {found.cluster_id:x}, but --initial-cluster and "
            f"--initial-cluster-token make cluster {cluster:x}; correct them, or give another --data-dir"
        )
    if found.member_id != own:
        raise BootstrapError(
            f"data directory {path} belongs to member {found.member_id:x}, but --initial-cluster makes this one "
            f"{own:x}; correct it, or give another --data-dir"
        )


def _read_identity(path: Path) -> Identity | None:
    try:
        text = (path / MEMBER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise BootstrapError(
                f"data directory {path} has format {fields['format']}, this version knows {FORMAT}; "
                "run the version that wrote it, or a newer one"
            )
        for name in ("cluster_id", "member_id", "instance"):
            fields[name] = int(fields[name], 16)
        return Identity(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise BootstrapError(
            f"{path / MEMBER_FILE} is damaged ({error}); restore it from a copy, or move the directory away"
        ) from error


def write_identity(path: Path, identity: Identity) -> None:
    """Durably, and whole or not at all."""
    fields = asdict(identity)
    for name in ("cluster_id", "member_id", "instance"):
        fields[name] = f"{fields[name]:016x}"
    temporary = path / (MEMBER_FILE + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(fields, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MEMBER_FILE)
    sync_directory(path)


def _check_version(store: MvccStore) -> None:
    """An older member than the cluster may meet what it does not know; a downgrade lowers the cluster's first."""
    cluster = read_versions(store.get).cluster
    if cluster is not None and cluster > (parse_minor(ETCD_VERSION) or cluster):
        raise BootstrapError(
            f"the cluster is at version {long(cluster)} and this member at {ETCD_VERSION}: start a newer one, or "
            f"lower the cluster's first (kvctl downgrade enable)"
        )


async def _open(
    path: Path,
    identity: Identity,
    members: list[Member],
    lock: int,
    open_log: Callable[[Path], SegmentedStorage],
    store_options: StoreOptions,
) -> OpenMember:
    storage = open_log(path / LOG_DIRECTORY)
    store: MvccStore | None = None
    try:
        loaded = storage.load()
        folders = StateFolders(path)
        store = MvccStore.open(folders.find(), store_options)
        cluster = ClusterTable(store)
        if not identity.bootstrapped:
            configuration = Configuration(tuple(member.id for member in members))
            storage.reset(0, 0, configuration)
            loaded = Loaded(hard_state=HardState(0, 0, 0), configuration=configuration)
            cluster.bootstrap(members)
            await store.flush()
            identity = replace(identity, bootstrapped=True)
            write_identity(path, identity)
        loaded = _meet_snapshot(folders, storage, loaded, store)
        _check_whole(folders, storage, loaded, store, cluster)
        _check_version(store)
        folders.remove_orphans()
    except BaseException:
        with suppress(RaftError, OSError):
            storage.close()
        if store is not None:
            store.close()
        raise
    return OpenMember(
        identity=identity, storage=storage, loaded=loaded, store=store, cluster=cluster, folders=folders, lock=lock
    )


def _meet_snapshot(folders: StateFolders, storage: SegmentedStorage, loaded: Loaded, store: MvccStore) -> Loaded:
    """The process may have ended between the installation of a snapshot and the reset of the log."""
    began_here = folders.installed_index == store.applied_index > 0
    if not began_here or not loaded.configuration.voters:
        return loaded  # something was applied since, so the log had been reset; or there is none
    configuration, context = configuration_of(store)
    return repair_log(storage, loaded, SnapshotMeta(store.applied_index, store.applied_term, configuration, context))


def _check_whole(
    folders: StateFolders, storage: SegmentedStorage, loaded: Loaded, store: MvccStore, cluster: ClusterTable
) -> None:
    """Log and store must meet: what the store lacks must be in the log, and the store has nothing more."""
    what_to_do = "this member has lost data and must not start again on this directory: move it away"
    if not loaded.configuration.voters:
        raise BootstrapError(f"the log in {folders.path / LOG_DIRECTORY} is gone; {what_to_do}")
    if not cluster.cluster_id:
        raise BootstrapError(f"the store in {folders.current} is gone; {what_to_do}")
    if store.applied_index < storage.first_index - 1:
        raise BootstrapError(
            f"the store in {folders.current} ends at entry {store.applied_index}, "
            f"but the log begins at {storage.first_index}; {what_to_do}"
        )
    if store.applied_index > storage.last_index:
        raise BootstrapError(
            f"the log in {folders.path / LOG_DIRECTORY} ends at entry {storage.last_index}, "
            f"but the store has applied {store.applied_index}; {what_to_do}"
        )
