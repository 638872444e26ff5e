"""Physical compaction: which rows of `versions` are left, and what it takes to find the others."""

import random
from pathlib import Path

import pytest

from kvstore.mvcc import compaction, schema
from kvstore.mvcc.compaction import Compactor
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_EVENTS", 4)
    monkeypatch.setattr(compaction, "_VERSIONS", 2)
    monkeypatch.setattr(compaction, "_BATCH_BYTES", 100)
    monkeypatch.setattr(compaction, "_HANDLED_MAX", 3)


def versions(state: State) -> list[bytes]:
    return [row for row, _ in state.store.scan(*schema.version_rows(b"", None)).rest()]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("seed", range(4))
async def test_what_is_left_is_what_a_read_can_reach(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    state = State(tmp_path / "s")
    compactor = Compactor(state.store)
    written: dict[bytes, list[tuple[int, bool]]] = {}  # (revision, whether it is a deletion), the newest first
    for _ in range(4):
        for _ in range(60):
            key = b"%d" % rng.randrange(8)
            gone = bool(written.get(key)) and not written[key][0][1] and rng.random() < 0.3
            revision = await (state.delete(key) if gone else state.put(key))
            written.setdefault(key, []).insert(0, (revision, gone))
        target = rng.randrange(max(state.store.compact_revision + 1, 2), state.store.current_revision + 1)
        await state.apply(pb.CompactionRequest(revision=target))
        await compactor.run()
        left = []
        for key, changes in written.items():
            newer = [change for change in changes if change[0] > target]
            newest = [change for change in changes if change[0] <= target][:1]
            left += [schema.version_key(key, at, 0) for at, _ in newer + [one for one in newest if not one[1]]]
        assert sorted(left) == versions(state)
    state.close()


async def test_a_key_that_changed_often_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_EVENTS", 4)
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=key) for _ in range(50) for key in (b"a", b"b")])
    await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
    looked_at: list[bytes] = []
    scan = state.store.scan

    def counted(low: bytes, high: bytes) -> object:
        looked_at.append(low)
        return scan(low, high)

    monkeypatch.setattr(state.store, "scan", counted)
    await Compactor(state.store).run()
    assert [low[:2] for low in looked_at if low[:1] == schema.VERSION] == [b"va", b"vb"]
    state.close()
