"""Leases as the log orders them: whose revoke counts, which keys go, and what a large revoke leaves behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.mvcc import schema, transaction
from kvstore.mvcc.events import read_events
from kvstore.mvcc.leases import LeaseChange, LeaseRow, LeaseSweeper, keys_of, read_leases
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import EntryRecord, LeaseCheckpoints, LeaseRevoke
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.state.applier import AppliedResult, Applier
from tests.kvstore.state.support import MEMBER, Entry, Sinks, State, entry, response, state_hash

EVERYTHING = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    state = State(tmp_path / "s")
    yield state
    state.close()


async def grant(state: State, lease: int, ttl: int = 60) -> None:
    (result,) = await state.apply(pb.LeaseGrantRequest(ID=lease, TTL=ttl))
    assert isinstance(result, AppliedResult)


async def put(state: State, lease: int, *keys: bytes) -> None:
    results = await state.apply(*[pb.PutRequest(key=key, value=b"v", lease=lease) for key in keys])
    assert all(isinstance(result, AppliedResult) for result in results)


async def apply_in_term(state: State, term: int, request: LeaseRevoke | LeaseCheckpoints) -> object:
    state.sequence += 1
    one = entry(state.store.applied_index + 1, state.sequence, [request])
    one.term = term
    await state.feed([one])
    return state.sinks.answers[state.sequence]


async def keys(state: State, lease: int) -> list[bytes]:
    with state.store.view() as view:
        return await keys_of(view, lease)


async def leases(state: State) -> dict[int, LeaseRow]:
    with state.store.view() as view:
        return {lease: row async for rows in read_leases(view) for lease, row in rows}


async def test_grant(state: State) -> None:
    answer = response(pb.LeaseGrantRequest(), (await state.apply(pb.LeaseGrantRequest(ID=5, TTL=60)))[0])
    assert answer == pb.LeaseGrantResponse(header=pb.ResponseHeader(revision=1), ID=5, TTL=60)
    again, long, longest = await state.apply(
        pb.LeaseGrantRequest(ID=5, TTL=60),
        pb.LeaseGrantRequest(ID=6, TTL=9_000_000_001),
        pb.LeaseGrantRequest(ID=-7, TTL=9_000_000_000),
    )
    assert (again, long) == (errors.LEASE_EXISTS, errors.LEASE_TTL_TOO_LARGE)
    assert isinstance(longest, AppliedResult)
    assert await leases(state) == {5: LeaseRow(60, 0), -7: LeaseRow(9_000_000_000, 0)}


async def test_every_member_draws_the_same_ids(tmp_path: Path) -> None:
    entries = [entry(1, 1, [pb.LeaseGrantRequest(TTL=60)] * 50), entry(2, 1, [pb.LeaseGrantRequest(TTL=60)], member=8)]
    found = []
    for member in (MEMBER, 8):
        state = State(tmp_path / str(member), member)
        await state.feed(entries)
        found.append(await leases(state))
        state.close()
    assert found[0] == found[1]
    assert len(found[0]) == 51
    assert all(lease > 0 for lease in found[0])


async def test_a_revoke_of_another_term_does_nothing(state: State) -> None:
    """S-58: it was proposed by a leader that has been deposed, and came through its successor (etcd#15247)."""
    await grant(state, 5)
    await put(state, 5, b"k")
    assert isinstance(await apply_in_term(state, 4, LeaseRevoke(ids=[5, 6], term=3)), AppliedResult)
    assert await keys(state, 5) == [b"k"]
    assert isinstance(await apply_in_term(state, 4, LeaseCheckpoints(term=3)), AppliedResult)
    assert isinstance(await apply_in_term(state, 4, LeaseRevoke(ids=[5, 6], term=4)), AppliedResult)
    assert await leases(state) == {}
    assert state.store.get_latest(b"k") is None


async def test_checkpoints(state: State) -> None:
    await grant(state, 5, 1000)
    checkpoint = pb.LeaseCheckpoint(ID=5, remaining_TTL=400)
    await apply_in_term(state, 2, LeaseCheckpoints(checkpoints=[checkpoint], term=1))
    assert await leases(state) == {5: LeaseRow(1000, 0)}
    await apply_in_term(state, 2, LeaseCheckpoints(checkpoints=[checkpoint, pb.LeaseCheckpoint(ID=9)], term=2))
    assert await leases(state) == {5: LeaseRow(1000, 400)}


async def test_a_revoke_is_one_revision_for_each_lease(state: State) -> None:
    for lease in (5, 6, 7):
        await grant(state, lease)
    await put(state, 5, b"c", b"a", b"b")
    await put(state, 7, b"x")
    before = state.store.current_revision
    await apply_in_term(state, 1, LeaseRevoke(ids=[5, 6, 7, 5], term=1))
    assert state.store.current_revision == before + 2  # a lease without keys has none
    first, second = state.sinks.revisions[-2:]
    assert [event.key for event in first.events] == [b"a", b"b", b"c"]
    assert [event.key for event in second.events] == [b"x"]
    record = state.store.get(schema.record_row(before + 2))
    assert record is not None
    assert [origin.revision for origin in EntryRecord.FromString(record).origins] == [before + 1, before + 2]
    assert (await state.apply(pb.LeaseRevokeRequest(ID=5))) == [errors.LEASE_NOT_FOUND]
    assert (await state.apply(pb.LeaseRevokeRequest())) == [errors.LEASE_NOT_FOUND]


async def test_keys_move_with_their_puts(state: State) -> None:
    await grant(state, 5)
    await grant(state, 6)
    await put(state, 5, b"a", b"b", b"c", b"d")
    await put(state, 6, b"a")
    await put(state, 0, b"b")
    await state.apply(pb.PutRequest(key=b"c", value=b"w", ignore_lease=True))
    await state.delete(b"d")
    assert await keys(state, 5) == [b"c"]
    assert await keys(state, 6) == [b"a"]
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    assert [key for key in (b"a", b"b", b"c") if state.store.get_latest(key)] == [b"a", b"b"]


async def test_all_in_one_entry(state: State) -> None:
    """Requests of an entry see each other's leases too, and an id may come again."""
    results = await state.apply(
        pb.PutRequest(key=b"a", lease=5),
        pb.LeaseGrantRequest(ID=5, TTL=60),
        pb.PutRequest(key=b"a", lease=5),
        pb.PutRequest(key=b"b", lease=5),
        pb.LeaseRevokeRequest(ID=5),
        pb.PutRequest(key=b"a", lease=5),
        pb.LeaseGrantRequest(ID=5, TTL=61),
        pb.PutRequest(key=b"c", lease=5),
    )
    assert [at for at, result in enumerate(results) if not isinstance(result, AppliedResult)] == [0, 5]
    assert await keys(state, 5) == [b"c"]
    assert await leases(state) == {5: LeaseRow(61, 0)}
    assert state.store.get_latest(b"a") is None


async def test_a_txn_that_names_an_unknown_lease_leaves_nothing(state: State) -> None:
    puts = [pb.PutRequest(key=b"a"), pb.PutRequest(key=b"b", lease=5)]
    request = pb.TxnRequest(success=[pb.RequestOp(request_put=one) for one in puts])
    assert await state.apply(request) == [errors.LEASE_NOT_FOUND]
    assert state.store.current_revision == 1


async def test_the_lessor_is_told_in_order(tmp_path: Path) -> None:
    told: list[LeaseChange] = []
    store = MvccStore.open(tmp_path / "s")
    applier = Applier(store, MEMBER, 1, Sinks(), lease_sink=told.extend)
    requests = [
        pb.LeaseGrantRequest(ID=5, TTL=60),
        pb.LeaseRevokeRequest(ID=5),
        pb.LeaseGrantRequest(ID=5, TTL=70),
        pb.LeaseGrantRequest(ID=5, TTL=80),
    ]
    await applier.apply([entry(1, 1, requests)])
    assert told == [(5, LeaseRow(60, 0), True), (5, None, False), (5, LeaseRow(70, 0), True)]
    store.close()


# -- revokes of many keys ----------------------------------------------------------------------------

COUNT = 30


@pytest.fixture
def small_is_big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "BIG_DELETE", COUNT // 3)


def names(count: int = COUNT) -> list[bytes]:
    return [b"k%05d" % number for number in range(count)]


@pytest.mark.usefixtures("small_is_big")
async def test_a_large_revoke_hides_its_keys_at_once(state: State) -> None:
    await grant(state, 5)
    await put(state, 5, *names())
    await state.put(b"k00003x")
    before = state.store.current_revision
    old = state.store.view()
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    assert state.store.current_revision == before + 1
    assert state.store.ended == {5: before + 1}
    with state.store.view() as view:
        assert (await range_(view, EVERYTHING)).count == 1
        assert (await range_(view, pb.RangeRequest(key=b"k", range_end=b"l"))).kvs == [
            state.store.get_latest(b"k00003x")
        ]
        assert (await range_(view, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=before))).count == COUNT + 1
    assert range_small(state.store, EVERYTHING) is None
    assert state.store.get_latest(b"k00000") is None
    with old:
        assert (await range_(old, EVERYTHING)).count == COUNT + 1
    events = (await read_events(state.store, before + 1, before + 1, bytes_max=1 << 20))[0]
    assert [event.key for event in events.events] == names()
    # What comes while the rows are still there:
    await grant(state, 5)
    await put(state, 5, b"k00001")
    await put(state, 0, b"k00002")
    created = KeyValue.FromString(state.store.get_latest(b"k00001") or b"")
    assert (created.version, created.create_revision) == (1, before + 2)
    await LeaseSweeper(state.store).run()
    assert state.store.ended == {}
    assert await keys(state, 5) == [b"k00001"]
    rows = state.store.engine.scan(*schema.latest_rows(b"", None)).keys(100)
    assert rows == [b"lk00001", b"lk00002", b"lk00003x"]


@pytest.mark.usefixtures("small_is_big")
async def test_a_large_revoke_outlives_a_crash(tmp_path: Path) -> None:
    """Before the sweep and in the middle of it: what is hidden stays hidden, and is removed in the end."""
    state = State(tmp_path / "s")
    await grant(state, 5)
    await put(state, 5, *names())
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    for _ in range(3):
        await state.store.flush()
        state.close()
        state = State(tmp_path / "s")
        assert state.store.ended
        with state.store.view() as view:
            assert (await range_(view, EVERYTHING)).count == 0
        # One slice of the sweep, whose end is never reached.
        state.store.engine.write(_first_rows(state.store, 7))
    await LeaseSweeper(state.store).run()
    state.close()
    state = State(tmp_path / "s")
    assert not state.store.ended
    assert state.store.engine.scan(b"g", b"m").keys(10) == []
    state.close()


def _first_rows(store: MvccStore, count: int):  # type: ignore[no-untyped-def]
    batch = store.engine.batch()
    for row in store.engine.scan(*schema.leased_rows(5)).keys(count):
        batch.delete(row)
        batch.delete(b"l" + row[9:])
    return batch


@pytest.mark.usefixtures("small_is_big")
async def test_a_lease_that_ends_again_before_the_sweep_keeps_hiding(state: State) -> None:
    await grant(state, 5)
    await put(state, 5, *names())
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    await grant(state, 5)
    await put(state, 5, b"new")
    await state.apply(pb.LeaseRevokeRequest(ID=5))  # a small one
    assert (await range_(state.store, EVERYTHING)).count == 0
    await LeaseSweeper(state.store).run()
    assert state.store.engine.scan(b"g", b"m").keys(10) == []


@pytest.mark.usefixtures("small_is_big")
async def test_a_large_delete_leaves_no_key_to_the_lease(state: State) -> None:
    await grant(state, 5)
    await put(state, 5, *names())
    await state.delete(b"\0", b"\0")
    assert await keys(state, 5) == []
    await put(state, 0, b"k00004")
    await LeaseSweeper(state.store).run()
    assert state.store.engine.scan(*schema.leased_rows(5)).keys(10) == []
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    assert state.store.get_latest(b"k00004") is not None


async def test_a_large_revoke_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision 11: it goes in slices. 30,000 keys scattered among others, so no interval covers them."""
    count = 30_000
    state = State(tmp_path / "s", options=StoreOptions(slice_ns=1_000_000))
    await grant(state, 5)
    for at in range(0, count, 500):
        await put(state, 5, *names(count)[at : at + 500])
    await put(state, 0, *[name + b"x" for name in names(100)])
    pauses = 0
    pause = Budget.pause

    async def counted(budget: Budget) -> None:
        nonlocal pauses
        pauses += 1
        assert state.store.current_revision == before or not state.store.get_latest(b"k00000")
        await pause(budget)

    monkeypatch.setattr(Budget, "pause", counted)
    before = state.store.current_revision
    await state.apply(pb.LeaseRevokeRequest(ID=5))
    assert pauses > 20
    assert (await range_(state.store, EVERYTHING)).count == 100
    await LeaseSweeper(state.store).run()
    assert (await range_(state.store, EVERYTHING)).count == 100
    state.close()


async def test_members_agree_on_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One revokes the large way, one the small way, one is behind with the sweep: the state is the same."""
    requests = [pb.LeaseGrantRequest(ID=5, TTL=9), *[pb.PutRequest(key=key, lease=5) for key in names()]]
    entries: list[Entry] = [entry(1, 1, requests), entry(2, 100, [pb.LeaseRevokeRequest(ID=5)])]
    hashes = set()
    for which, big in enumerate((1, 10_000, 1)):
        monkeypatch.setattr(transaction, "BIG_DELETE", big)
        member = State(tmp_path / str(which), member=which + 1)
        await member.feed(entries)
        if which == 2:
            await LeaseSweeper(member.store).run()
        hashes.add(state_hash(member.store))
        member.close()
    assert len(hashes) == 1
