"""S-60a: the same entries give the same state at every index, whatever is particular to a member."""

from pathlib import Path
from random import Random

import pytest

from kvstore.errors import KvError
from kvstore.mvcc import transaction
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.leases import LeaseSweeper
from kvstore.mvcc.store import StoreOptions
from kvstore.state import applier as applier_module
from tests.kvstore.state import workload
from tests.kvstore.state.model import Model
from tests.kvstore.state.support import Entry, State, entry, state_hash


def make_entries(rng: Random, count: int) -> list[Entry]:
    model, sequence = Model(), {7: 0, 8: 0}
    entries: list[Entry] = []
    while len(entries) < count:
        requests = []
        for _ in range(rng.choice([1, 2, 5, 20])):
            requests.append(workload.a_write(rng, model.revision, model.compacted))
            try:
                model.apply(requests[-1])
            except KvError:
                continue
        if rng.random() < 0.1:
            entries.append(Entry(len(entries) + 1, b"", term=2, kind=1))  # a NOOP
        member = rng.choice([7, 8])
        made = entry(len(entries) + 1, sequence[member] + 1, requests, member=member)
        sequence[member] += len(requests)
        entries.append(made)
    return entries


@pytest.mark.parametrize("seed", range(3))
async def test_three_members_agree_at_every_index(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(seed)
    entries = make_entries(rng, 60)
    ticks = iter(range(10**9))
    # One by one with every clock tick a pause; and in lists, flushed and compacted at random.
    members = [
        State(tmp_path / "a", member=7, options=StoreOptions(clock=lambda: next(ticks), slice_ns=1)),
        State(tmp_path / "b", member=8, options=StoreOptions(large_bytes=1)),
        State(tmp_path / "c", member=9, options=StoreOptions(large_bytes=60)),
    ]
    compactors = [Compactor(member.store) for member in members]
    hashes: list[dict[int, tuple[str, object]]] = [{}, {}, {}]
    for which, member in enumerate(members):
        monkeypatch.setattr(applier_module, "GROUP_BYTES", [1, 1 << 30, 3000][which])
        # How many deletions are many shows in nothing that is compared.
        monkeypatch.setattr(transaction, "BIG_DELETE", [transaction.BIG_DELETE, 1, 3][which])
        sweeper = LeaseSweeper(member.store)
        at = 0
        while at < len(entries):
            size = [1, 4, rng.randint(1, 9)][which]
            await member.feed(entries[at : at + size])
            at = min(at + size, len(entries))
            index = member.store.applied_index
            assert index == at
            with member.store.view() as view:
                hashes[which][index] = (state_hash(member.store), await hash_kv(view, 0))
            if which == 1 and compactors[1].pending:
                await compactors[1].run()
            if which == 2:
                if rng.random() < 0.2:
                    await member.store.flush()
                if sweeper.pending and rng.random() < 0.3:
                    await sweeper.run()
                if compactors[2].pending and rng.random() < 0.3:
                    await compactors[2].run()
    for which in (1, 2):
        for index, found in hashes[which].items():
            assert found == hashes[0][index], f"diverged at index {index}"
    assert members[0].store.current_revision > 100
    for member in members:
        member.close()


async def test_only_the_member_that_took_a_request_answers_it(tmp_path: Path) -> None:
    rng = Random(1)
    entries = make_entries(rng, 20)
    answers = []
    for member in (7, 8, 9):
        state = State(tmp_path / str(member), member=member)
        await state.feed(entries)
        answers.append(len(state.sinks.answers))
        state.close()
    assert answers[0] > 0
    assert answers[1] > 0
    assert answers[2] == 0
