"""Death at every step: what RocksDB then holds is a state before or after, and replay leads to the same end."""

import subprocess
import sys
from pathlib import Path

from kvstore.mvcc import schema
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.store import MvccStore
from tests.kvstore.state.crash_child import COMPACTED, compaction_entries, delete_entries
from tests.kvstore.state.support import Entry, State, state_hash

ROOT = Path(__file__).parents[3]


def run_to_every_crash(scenario: str, folder: Path) -> list[Path]:
    """The folders of the runs that died, in order of their crash points."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kvstore.state.crash_child", scenario, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [folder / str(point) for point in range(int(done.stdout.split()[-1]))]


async def hashes_of(path: Path, entries: list[Entry]) -> dict[int, str]:
    """The state's hash at every index, on a member to which nothing happens."""
    state = State(path)
    hashes = {0: state_hash(state.store)}
    for one in entries:
        await state.feed([one])
        hashes[one.index] = state_hash(state.store)
    state.close()
    return hashes


async def test_a_big_delete_cut_off_at_any_slice_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    entries = delete_entries()
    expected = await hashes_of(tmp_path / "reference", entries)
    crashes = run_to_every_crash("delete", tmp_path)
    assert len(crashes) > 10, "the delete was not sliced"
    hidden = 0
    for path in crashes:
        state = State(path)
        index = state.store.applied_index
        assert state_hash(state.store) == expected[index], f"crash point {path.name}"
        hidden += len(state.store.scan(schema.event_from(state.store.current_revision + 1), b"f").rows(1))
        await state.feed(entries[index:])
        assert state_hash(state.store) == expected[8], f"crash point {path.name}, replayed from {index}"
        state.close()
    assert hidden > 5, "no crash left rows of a delete that is not visible"


async def test_compaction_cut_off_anywhere_changes_no_answer_and_ends_the_same(tmp_path: Path) -> None:
    """S-45: the current revision never decreases, and a crashed compaction run again is idempotent."""
    entries = compaction_entries()
    reference = State(tmp_path / "reference")
    await reference.feed(entries)
    expected, revision = state_hash(reference.store), reference.store.current_revision
    await Compactor(reference.store).run()
    assert state_hash(reference.store) == expected
    rows = version_rows(reference.store)
    for row, mark in reference.store.scan(b"v", b"w").rows(100_000):
        assert mark != schema.TOMBSTONE or schema.split_version(row)[1] > COMPACTED
    reference.close()
    crashes = run_to_every_crash("compact", tmp_path)
    assert len(crashes) > 10, "compaction was not sliced"
    for path in crashes:
        store = MvccStore.open(path)
        assert store.current_revision == revision
        assert state_hash(store) == expected, f"crash point {path.name}"
        compactor = Compactor(store)
        await compactor.run()
        assert compactor.done_revision == COMPACTED
        assert version_rows(store) == rows, f"crash point {path.name}"
        store.close()


async def test_after_a_kill_in_a_flush_the_applied_index_is_not_ahead_of_the_data(tmp_path: Path) -> None:
    flushed = 0
    for path in run_to_every_crash("flush", tmp_path):
        store = MvccStore.open(path)
        index = store.applied_index
        note = path / "flushed"
        if note.exists() and note.read_text():
            flushed += 1
            assert index >= int(note.read_text()), "an applied index was promised and is not there"
        assert index >= 40, "the flush before this one is lost"
        # 50 new keys per entry: all that the applied index promises are there, and no more.
        keys = store.scan(b"l", b"m").keys(10_000)
        assert len(keys) == 50 * index
        assert store.current_revision == 1 + 50 * index
        store.close()
    assert flushed > 0


def version_rows(store: MvccStore) -> list[bytes]:
    return store.scan(b"v", b"w").keys(100_000)
