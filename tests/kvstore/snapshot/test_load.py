"""Snapshot files become states: what was saved is there again, and what cannot be believed is refused."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.bbolt.reader import BboltError, BboltReader
from kvstore.history.reader import read_history
from kvstore.mvcc import schema as rows
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.events import read_events
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.leases import keys_of
from kvstore.mvcc.range import range_
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Role, User
from kvstore.pb.history_pb2 import ReadHistoryRequest
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.lease_pb2 import Lease
from kvstore.pb.rpc_pb2 import AlarmMember
from kvstore.snapshot.load import INDEX, TERM, Loaded, load
from kvstore.state.alarms import read_alarms
from kvstore.state.cluster import ClusterTable
from tests.kvstore.bbolt.files import Buckets, decode, encode
from tests.kvstore.snapshot.files import MEMBERS, save
from tests.kvstore.state.support import State
from tests.kvstore.state.workload import LEASES, a_write

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


def load_file(path: Path, store: MvccStore, bump: int = 0) -> Loaded:
    size = path.stat().st_size
    with BboltReader(path, size - size % 512) as reader:
        return load(reader, store, bump, lambda _: None)


def load_buckets(folder: Path, buckets: Buckets, bump: int = 0) -> MvccStore:
    path = folder / "crafted"
    path.write_bytes(encode(buckets))
    store = MvccStore.open(folder / "loaded")
    try:
        load_file(path, store, bump)
    except BaseException:
        store.close()
        raise
    return store


async def shown(store: MvccStore, revision: int) -> bytes:
    return b"".join((await range_(store, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))).kvs)


@pytest.mark.parametrize("seed", range(12))
async def test_what_was_saved_is_there_again(tmp_path: Path, seed: int) -> None:
    state = State(tmp_path / "s")
    rng = random.Random(seed)
    for _ in range(300):
        await state.apply(a_write(rng, state.store.current_revision, state.store.compact_revision))
    if seed % 2:
        await state.apply(pb.CompactionRequest(revision=state.store.current_revision * 2 // 3))
    await save(state.store, tmp_path / "file")
    before = state.store
    after = MvccStore.open(tmp_path / "again")
    loaded = load_file(tmp_path / "file", after)
    assert (loaded.revision, loaded.compact_revision) == (before.current_revision, before.compact_revision)
    assert (after.applied_index, after.applied_term) == (INDEX, TERM)
    low = max(before.compact_revision, 1)
    for revision in range(low, before.current_revision + 1):
        assert await shown(after, revision) == await shown(before, revision), revision
    assert loaded.keys == (await range_(before, ALL)).count
    assert await hash_kv(after, 0) == await hash_kv(before, 0)
    assert await read_events(after, low, 1 << 62) == await read_events(before, low, 1 << 62)
    for kind in (rows.LEASE, rows.LATEST):
        end = rows.after(kind)
        assert after.scan(kind, end).rest() == [
            row for row in before.scan(kind, end).rest() if kind != rows.LATEST or before.get_latest(row[0][1:])
        ]
    assert loaded.leases == len(after.scan(rows.LEASE, rows.after(rows.LEASE)).rest())
    for lease in LEASES:
        bound = await keys_of(before, lease) if before.has_lease(lease) else []
        assert await keys_of(after, lease) == bound
        assert [row[9:] for row in after.scan(*rows.leased_rows(lease)).keys(1000)] == bound  # and not one too many
    await save(after, tmp_path / "second")
    first, second = (decode(path, path.stat().st_size - 32) for path in (tmp_path / "file", tmp_path / "second"))
    for bucket in (b"key", b"lease", b"alarm", b"auth", b"authUsers", b"authRoles"):
        assert first[bucket] == second[bucket], bucket
    # It goes on as the old one would have.
    assert not Compactor(after).pending
    state.close()
    after.close()


async def test_a_large_value_makes_the_store_format_2(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    found = []
    for size in (10, rows.LARGE_BYTES):
        await state.put(b"k", bytes(size))
        await save(state.store, tmp_path / f"{size}")
        after = MvccStore.open(tmp_path / f"loaded-{size}")
        load_file(tmp_path / f"{size}", after)
        assert await shown(after, 0) == await shown(state.store, 0)
        found.append(after.get(rows.META_FORMAT))
        after.close()
    state.close()
    assert found == [rows.pack_u64(rows.FORMAT_1), rows.pack_u64(rows.FORMAT_2)]


def key_row(revision: int, sub: int = 0, mark: bytes = b"") -> bytes:
    return b"%b_%b%b" % (revision.to_bytes(8, "big"), sub.to_bytes(8, "big"), mark)


def put(key: bytes, create: int, mod: int, version: int, value: bytes = b"v", lease: int = 0) -> bytes:
    kv = KeyValue(key=key, create_revision=create, mod_revision=mod, version=version, value=value, lease=lease)
    return kv.SerializeToString()


GONE = KeyValue(key=b"a").SerializeToString()
FILE: Buckets = {
    b"key": {
        key_row(2): put(b"a", 2, 2, 1),
        key_row(3): put(b"a", 2, 3, 2),
        key_row(3, 1): put(b"b", 3, 3, 1, lease=9),
        key_row(4, 0, b"t"): GONE,
        key_row(5): put(b"a", 5, 5, 1, lease=77),
    },
    b"lease": {(9).to_bytes(8, "big"): Lease(ID=9, TTL=60).SerializeToString()},
    b"meta": {},
}


async def test_etcd_had_not_finished_its_compaction(tmp_path: Path) -> None:
    """Told to compact at 4, and finished up to 2: what is hidden is removed here."""
    meta = {b"scheduledCompactRev": key_row(4), b"finishedCompactRev": key_row(2)}
    store = load_buckets(tmp_path, {**FILE, b"meta": meta})
    assert (store.current_revision, store.compact_revision) == (5, 4)
    expected = await hash_kv(store, 0)
    compactor = Compactor(store)
    assert compactor.pending
    await compactor.run()
    assert compactor.removed == 3  # two versions of a, and its tombstone
    assert await hash_kv(store, 0) == expected
    store.close()


async def test_a_lease_that_is_gone_holds_no_key(tmp_path: Path) -> None:
    """etcd too lets such a key be: granting the id anew does not bind it."""
    store = load_buckets(tmp_path, FILE)
    assert store.scan(*rows.leased_rows(9)).keys(9) == [rows.leased_row(9, b"b")]
    assert store.scan(*rows.leased_rows(77)).keys(9) == []
    store.close()


@pytest.mark.parametrize(
    ("meta", "revision", "compact"),
    [
        ({}, 5, 0),
        ({b"finishedCompactRev": key_row(9), b"scheduledCompactRev": key_row(9)}, 9, 9),
        ({b"scheduledCompactRev": key_row(5)}, 5, 5),
    ],
    ids=["never compacted", "above all keys that are left", "at the newest"],
)
async def test_revisions(tmp_path: Path, meta: dict[bytes, bytes], revision: int, compact: int) -> None:
    store = load_buckets(tmp_path, {**FILE, b"meta": meta})
    assert (store.current_revision, store.compact_revision) == (revision, compact)
    store.close()


async def test_an_empty_file_is_an_empty_store(tmp_path: Path) -> None:
    store = load_buckets(tmp_path, {})
    assert (store.current_revision, store.compact_revision) == (1, 0)
    store.close()


async def test_bumped(tmp_path: Path) -> None:
    store = load_buckets(tmp_path, FILE, bump=1_000_000_000)
    assert (store.current_revision, store.compact_revision) == (1_000_000_005, 1_000_000_005)
    compactor = Compactor(store)
    await compactor.run()
    assert [kv.mod_revision for kv in map(KeyValue.FromString, (await range_(store, ALL)).kvs)] == [5, 3]
    store.close()


async def test_a_file_that_etcdutl_has_bumped(tmp_path: Path) -> None:
    """It leaves a row without a key at the new revision."""
    bumped = {**FILE[b"key"], key_row(1005): b""}
    store = load_buckets(tmp_path, {**FILE, b"key": bumped, b"meta": {b"scheduledCompactRev": key_row(1005)}})
    assert (store.current_revision, store.compact_revision) == (1005, 1005)
    assert (await range_(store, ALL)).count == 2
    store.close()


async def test_nobody_knows_who_has_written_it(tmp_path: Path) -> None:
    store = load_buckets(tmp_path, FILE)
    found = [
        change
        async for changes in read_history(store, ReadHistoryRequest(key=b"\0", range_end=b"\0"))
        for change in changes
    ]
    assert [(change.event.kv.mod_revision, change.time, change.member) for change in found] == [
        (revision, 0, 0) for revision in (2, 3, 3, 4, 5)
    ]
    store.close()


def changed(bucket: bytes, row: bytes, value: bytes) -> Callable[[], Buckets]:
    return lambda: {**FILE, bucket: {**FILE.get(bucket, {}), row: value}}


BAD: dict[str, tuple[Callable[[], Buckets], str]] = {
    "a key that is no revision": (changed(b"key", b"short", b""), "is no revision"),
    "a revision of 0": (changed(b"key", key_row(0), put(b"k", 0, 0, 1)), "is no revision"),
    "a revision above int64": (changed(b"key", key_row(1 << 63), put(b"k", 1, 1, 1)), "is no revision"),
    "a sub-revision too large": (changed(b"key", key_row(6, 1 << 32), put(b"k", 6, 6, 1)), "is no revision"),
    "put and deleted at once": (changed(b"key", key_row(5, 0, b"t"), GONE), "comes twice"),
    "a value that is no KeyValue": (changed(b"key", key_row(6), b"\xff"), "is no KeyValue"),
    "a change without a key": (changed(b"key", key_row(6), put(b"", 6, 6, 1)), "has no key"),
    "a tombstone without a key": (changed(b"key", key_row(6, 0, b"t"), b"\x10\x01"), "has no key"),
    "another revision inside": (changed(b"key", key_row(6), put(b"k", 6, 7, 1)), "says that it is 7"),
    "created later": (changed(b"key", key_row(6), put(b"k", 7, 6, 1)), "since 7"),
    "never created": (changed(b"key", key_row(6), put(b"k", 0, 6, 1)), "since 0"),
    "a version of 0": (changed(b"key", key_row(6), put(b"k", 6, 6, 0)), "0. version"),
    "a negative version": (changed(b"key", key_row(6), put(b"k", 6, 6, -5)), "-5. version"),
    "another lease inside": (changed(b"lease", b"\0" * 8, Lease(ID=9, TTL=9).SerializeToString()), "says that it is 9"),
    "a lease of 0": (changed(b"lease", b"\0" * 8, Lease(TTL=9).SerializeToString()), "says that it is 0"),
    "a lease that is none": (changed(b"lease", b"\0" * 8, b"\xff"), "is no Lease"),
    "a lease without a TTL": (changed(b"lease", b"\0" * 7 + b"\1", b"\x08\1"), "a TTL of 0"),
    "a TTL for ever": (changed(b"lease", b"\0" * 7 + b"\1", Lease(ID=1, TTL=1 << 62).SerializeToString()), "a TTL of"),
    "a compaction that is no revision": (changed(b"meta", b"scheduledCompactRev", b"x"), "is no revision"),
    "authentication without a root": (changed(b"auth", b"authEnabled", b"\1"), "nobody is root"),
    "authentication that is neither on nor off": (changed(b"auth", b"authEnabled", b"\2"), "authentication is b"),
    "an auth revision that is none": (changed(b"auth", b"authRevision", b"x"), "authRevision is"),
    "an auth revision of 0": (changed(b"auth", b"authRevision", bytes(8)), "at revision 0"),
    "another user inside": (changed(b"authUsers", b"a", User(name=b"b").SerializeToString()), "says that it is b'b'"),
    "another role inside": (changed(b"authRoles", b"a", Role(name=b"b").SerializeToString()), "says that it is b'b'"),
    "an alarm of no type": (changed(b"alarm", AlarmMember(memberID=1).SerializeToString(), b""), "an alarm of type 0"),
    "an alarm of another type": (changed(b"alarm", b"\x10\x09", b""), "an alarm of type 9"),
    "a user that is none": (changed(b"authUsers", b"a", b"\xff"), "is no User"),
    "a name that is none": (changed(b"authUsers", b"\xff", b""), "is no name"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_believed(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(BboltError, match=reason):
        load_buckets(tmp_path, make())


ROWS = st.dictionaries(
    st.one_of(
        st.builds(key_row, st.integers(0, 8), st.integers(0, 2), st.sampled_from([b"", b"t"])),
        st.sampled_from([b"scheduledCompactRev", b"finishedCompactRev"]),
        st.integers(0, 5).map(lambda id_: id_.to_bytes(8, "big")),
        st.binary(min_size=1, max_size=20),
    ),
    st.one_of(
        st.builds(
            put,
            st.sampled_from([b"", b"a", b"b"]),
            *[st.integers(-1, 8)] * 3,
            st.binary(max_size=3),
            st.integers(-1, 5),
        ),
        st.builds(key_row, st.integers(0, 2**63)),
        st.builds(Lease, ID=st.integers(0, 5), TTL=st.integers(-1, 9)).map(Lease.SerializeToString),
        st.binary(max_size=20),
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    buckets=st.dictionaries(
        st.sampled_from([b"key", b"lease", b"meta", b"auth", b"authUsers", b"authRoles", b"alarm", b"other"]), ROWS
    )
)
async def test_fuzz_of_rows(tmp_path_factory: pytest.TempPathFactory, buckets: Buckets) -> None:
    """Refused, or loaded to a store that can be read and saved."""
    folder = tmp_path_factory.mktemp("rows")
    try:
        store = load_buckets(folder, buckets)
    except BboltError:
        return
    await range_(store, ALL)
    await hash_kv(store, 0)
    await Compactor(store).run()
    await save(store, folder / "file")
    store.close()


def test_the_state_follows_from_the_file_alone(tmp_path: Path) -> None:
    """Every member of a new cluster loads it for itself."""
    found = []
    for number in range(2):
        store = MvccStore.open(tmp_path / f"{number}", StoreOptions(slice_ns=number))
        ClusterTable(store).bootstrap(MEMBERS)
        path = tmp_path / "crafted"
        path.write_bytes(encode(FILE))
        load_file(path, store)
        found.append(store.scan(b"\0", b"\xff").rest())
        store.close()
    assert found[0] == found[1]


async def test_a_deletion_at_the_compaction_is_an_event_and_nothing_else(tmp_path: Path) -> None:
    """A watch from there on sees it (etcd #19179); that the key is gone needs no row any more."""
    keys = {key_row(4, 0, b"t"): GONE, key_row(5): put(b"b", 5, 5, 1)}
    meta = {b"scheduledCompactRev": key_row(4), b"finishedCompactRev": key_row(4)}
    store = load_buckets(tmp_path, {b"key": keys, b"meta": meta})
    assert store.scan(*rows.version_rows(b"", None)).keys(9) == [rows.version_key(b"b", 5, 0)]
    assert [(one.revision, one.events[0].is_delete) for one in await read_events(store, 4, 9)] == [
        (4, True),
        (5, False),
    ]
    store.close()


async def test_alarms_stay_raised(tmp_path: Path) -> None:
    """As in etcd: they name members of the old cluster, and `alarm disarm` ends them."""
    alarms = [AlarmMember(memberID=7, alarm=1), AlarmMember(memberID=(1 << 64) - 1, alarm=2)]
    raised = {alarm.SerializeToString(): b"" for alarm in alarms}
    store = load_buckets(tmp_path, {**FILE, b"alarm": raised})
    assert read_alarms(store) == alarms
    await save(store, tmp_path / "file")
    assert decode(tmp_path / "file", (tmp_path / "file").stat().st_size - 32)[b"alarm"] == raised
    store.close()


@pytest.mark.parametrize("compact", [0, 60, 101], ids=["never compacted", "once", "at the newest"])
async def test_the_quota_counts_what_was_restored(tmp_path: Path, compact: int) -> None:
    """About as much as it counted where the file comes from."""
    state = State(tmp_path / "s")
    for number in range(100):
        await state.put(b"k%d" % (number % 70), b"v" * 10_000)
    if compact:
        await state.apply(pb.CompactionRequest(revision=compact))
    before = state.store.live.total
    await save(state.store, tmp_path / "file")
    state.close()
    for bump, expected in ((0, before), (10, 700_000)):
        folder = tmp_path / f"{bump}"
        store = MvccStore.open(folder)
        load_file(tmp_path / "file", store, bump)
        store.engine._db.flush()
        store.close()
        again = MvccStore.open(folder)
        assert again.live.total == pytest.approx(expected, rel=0.1)
        again.close()
