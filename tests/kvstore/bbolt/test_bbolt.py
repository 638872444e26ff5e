"""What is written is read back, and bbolt itself agrees."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.bbolt import format as fmt
from kvstore.bbolt.reader import BboltReader
from kvstore.bbolt.writer import BboltWriter
from tests.kvstore.bbolt.files import decode, encode
from tests.kvstore.snapshot.programs import ETCDUTL

NAMES = st.binary(min_size=1, max_size=40)
VALUES = st.one_of(st.binary(max_size=100), st.integers(0, 20_000).map(lambda size: b"v" * size))
BUCKETS = st.dictionaries(NAMES, st.dictionaries(st.binary(min_size=1, max_size=300), VALUES, max_size=40), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(buckets=BUCKETS, take_every=st.integers(1, 50))
def test_what_is_written_is_read(tmp_path: Path, buckets: dict[bytes, dict[bytes, bytes]], take_every: int) -> None:
    path = tmp_path / "file"
    data = encode(buckets, take_every)
    path.write_bytes(data)
    assert decode(path) == buckets
    with BboltReader(path) as reader:
        assert reader.buckets == sorted(buckets)
        assert reader.size_bytes == len(data)
        assert list(reader.rows(b"none of that name")) == []


@pytest.mark.parametrize("count", [0, 1, 100, 130, 20_000])
@pytest.mark.parametrize("size", [0, 10, 2000, 9000])
def test_bbolt_itself_finds_nothing_wrong(tmp_path: Path, count: int, size: int) -> None:
    """etcdutl's status begins with bbolt's own check: every page reachable once, nothing lost."""
    if count * size > 10_000_000:
        size = 300
    rows = {b"%017d" % number: b"v" * (size + number % 7) for number in range(count)}
    path = tmp_path / "file"
    path.write_bytes(encode({b"many": rows, b"one": {b"k": b"v"}, b"none": {}, b"long": {b"k" * 30_000: b"v" * 99}}))
    done = subprocess.run(
        [str(ETCDUTL), "snapshot", "status", str(path), "-w", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f'"totalKey":{count + 2},' in done.stdout
    assert f'"totalSize":{path.stat().st_size}' in done.stdout
    assert decode(path)[b"many"] == rows


def test_memory_does_not_grow_with_the_file() -> None:
    writer = BboltWriter()
    writer.begin(b"b")
    for number in range(200_000):
        writer.add(b"%09d" % number, b"value")
        if number % 100 == 0:
            writer.take()
            assert sum(len(level.items) for level in writer._levels) < 1000
    assert writer.size_bytes > 5_000_000


@pytest.mark.parametrize("keys", [[b""], [b"b", b"a"], [b"a", b"a"]])
def test_rows_out_of_order_are_refused(keys: list[bytes]) -> None:
    writer = BboltWriter()
    writer.begin(b"b")
    for key in keys[:-1]:
        writer.add(key, b"")
    with pytest.raises(ValueError, match="is empty, or not above"):
        writer.add(keys[-1], b"")


def test_what_bbolt_cannot_hold_is_refused() -> None:
    writer = BboltWriter()
    writer.begin(b"b")
    with pytest.raises(ValueError, match="larger than bbolt can hold"):
        writer.add(b"k" * (fmt.KEY_BYTES_MAX + 1), b"")
    with pytest.raises(ValueError, match="twice"):
        writer.begin(b"b")
