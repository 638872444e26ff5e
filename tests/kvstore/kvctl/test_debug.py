"""`kvctl debug`: a log, a state and traces as they lie on the disk, values hidden, nothing written."""

import json
from pathlib import Path

import pytest

from kvstore.mvcc.store import MvccStore
from kvstore.pb.command_pb2 import MemberChange
from kvstore.pb.rpc_pb2 import DeleteRangeRequest, PutRequest
from kvstore.pb.rpc_pb2 import Member as MemberMessage
from kvstore.state.applier import Applier
from kvstore.state.cluster import ClusterTable, Member
from raft.core.membership import encode_configuration
from raft.storage.segmented import SegmentedStorage
from raft.trace import JsonlTracer
from raft.types import Configuration, Entry, EntryKind, HardState
from tests.kvstore.kvctl.processes import Outcome, run
from tests.kvstore.state.support import Sinks, entry

VOTERS = Configuration((0xA1, 0xB2, 0xC3))


def put(key: bytes, value: bytes) -> PutRequest:
    return PutRequest(key=key, value=value)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory without a member: six entries, the fifth overwritten once, four of them committed."""
    path = tmp_path / "data"
    storage = SegmentedStorage(path / "log", segment_bytes=4096)
    storage.load()
    storage.reset(0, 0, VOTERS)
    change = MemberChange(op=MemberChange.ADD, member=MemberMessage(ID=0xD4, isLearner=True))
    joined = Configuration(VOTERS.voters, (0xD4,))
    first = [
        Entry(1, 2, b"", EntryKind.NOOP),
        Entry(2, 2, entry(2, 1, [put(b"config/a", b"s3cret"), put(b"config/b", b"\x00\xff")]).data),
        Entry(3, 2, encode_configuration(joined, change.SerializeToString()), EntryKind.CONFIGURATION),
        Entry(4, 2, entry(4, 3, [DeleteRangeRequest(key=b"config/b")]).data),
        Entry(5, 2, entry(5, 4, [put(b"lost", b"x")]).data),
    ]
    storage.save(HardState(2, 0xA1, 0), first, True)
    storage.save(HardState(3, 0xB2, 4), [Entry(5, 3, b"", EntryKind.NOOP), Entry(6, 3, b"\xff\xff")], True)
    storage.close()
    return path


async def make_state(data: Path) -> None:
    store = MvccStore.open(data / "state")
    ClusterTable(store).bootstrap([Member(id=0xA1, name="a", peer_urls=("http://10.0.0.1:2380",))])
    await Applier(store, 7, 1, Sinks()).apply(
        [entry(1, 1, [put(b"config/a", b"s3cret"), put(b"other", b"x" * 9)]), entry(2, 3, [put(b"config/a", b"new")])]
    )
    await store.flush()
    store.close()


def lines(outcome: Outcome) -> list[str]:
    return outcome.ok().decode().splitlines()


def objects(outcome: Outcome) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines(outcome)]


def everything(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_log_with_its_requests(data: Path) -> None:
    before = everything(data)
    shown = "\n".join(lines(run("kvctl", "debug", "log", str(data))))
    assert everything(data) == before
    for expected in ("commit         4", "last           6@3", "voters=a1,b2,c3", "1@2", "key=config/a value=<6B>"):
        assert expected in shown
    assert "voters=a1,b2,c3 learners=d4   [op=ADD member={ID=d4 isLearner=True}]" in shown
    assert "5@3          noop                0 B    (not known to be committed)" in shown
    assert "cannot be decoded: not a request batch" in shown
    assert "s3cret" not in shown
    assert "lost" not in shown


def test_log_as_json_in_a_range(data: Path) -> None:
    head, second, third = objects(run("kvctl", "debug", "log", str(data / "log"), "--from=2", "--to=3", "-w", "json"))
    assert (head["first"], head["last"], head["problems"]) == (1, "6@3", [])
    requests = second["requests"]
    assert isinstance(requests, list)
    assert requests[0] == {
        "op": "put",
        "key": "config/a",
        "value": "<6B>",
        "by": {"member": "7", "boot": 1, "sequence": 1},
    }
    assert third["configuration"] == {"voters": ["a1", "b2", "c3"], "learners": ["d4"]}
    shown = run("kvctl", "debug", "log", str(data), "--show-values", "--to=2").ok().decode()
    assert "value=s3cret" in shown
    assert "\\x00\\xff" in shown


def test_every_record_also_what_was_overwritten(data: Path) -> None:
    records = objects(run("kvctl", "debug", "log", str(data), "--records", "-w", "json"))[1:]
    assert [record["type"] for record in records] == ["reset", "state", *["entry"] * 5, "truncate", "state"] + [
        "entry"
    ] * 2
    assert [(record["index"], record["term"]) for record in records if record["type"] == "entry"][4:] == [
        (5, 2),
        (5, 3),
        (6, 3),
    ]


def test_a_torn_and_a_damaged_log_are_shown_up_to_there(data: Path) -> None:
    file = data / "log" / "0000000000000001.log"
    records = objects(run("kvctl", "debug", "log", str(data), "--records", "-w", "json"))[1:]
    last = int(str(records[-1]["offset"]))
    good = file.read_bytes()
    file.write_bytes(good[: last + 30])
    torn = run("kvctl", "debug", "log", str(data))
    torn.failed(1, "torn at byte")
    assert b"5@3" in torn.out
    assert b"6@3" not in torn.out.split(b"configuration")[1]
    fourth = int(str(next(record["offset"] for record in records if record["index"] == 4)))
    file.write_bytes(good[: fourth + 8] + b"!" + good[fourth + 9 :])
    damaged = run("kvctl", "debug", "log", str(data))
    damaged.failed(1, "damaged at byte")
    assert b"3@2" in damaged.out


def test_a_log_in_use_is_printed_with_a_warning(data: Path) -> None:
    storage = SegmentedStorage(data / "log")
    storage.load()
    try:
        outcome = run("kvctl", "debug", "log", str(data))
        assert "a member is running" in outcome.error
        assert b"2@2" in outcome.ok()
    finally:
        storage.close()


async def test_state(data: Path) -> None:
    await make_state(data)
    before = everything(data / "state")
    shown = lines(run("kvctl", "debug", "state", str(data), "--keys"))
    assert everything(data / "state") == before
    text = "\n".join(shown)
    for expected in ("applied                  2@1", "revision                 4", "name=a", "2 rows", "value=<3B>"):
        assert expected in text
    assert [line.split()[0] for line in shown if not line.startswith("#")] == ["config/a", "other"]
    summary, key = objects(
        run("kvctl", "debug", "state", str(data), "--keys", "--prefix=config/", "--show-values", "-w", "json")
    )
    assert summary["applied"] == "2@1"
    assert key == {"key": "config/a", "create_revision": 2, "mod_revision": 4, "version": 2, "value": "new"}


async def test_a_state_in_use_is_refused(data: Path) -> None:
    await make_state(data)
    storage = SegmentedStorage(data / "log")
    storage.load()
    storage.close()
    import fcntl

    with (data / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("kvctl", "debug", "state", str(data)).failed(1, "is running", "stop it first")


@pytest.mark.parametrize("what", ["log", "state"])
def test_what_is_none_is_told(what: str, tmp_path: Path) -> None:
    run("kvctl", "debug", what, str(tmp_path)).failed(1, "give a member's data directory")
    run("kvctl", "debug", what, str(tmp_path / "nowhere")).failed(1, "give a member's data directory")


def test_traces_of_members_are_one_story(tmp_path: Path) -> None:
    times = iter([5_000_000, 9_000_000, 7_500_000])
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with paths[0].open("w") as first, paths[1].open("w") as second:
        a, b = JsonlTracer(first.write, lambda: next(times)), JsonlTracer(second.write, lambda: next(times))
        a.emit(0xA1, 1, "became candidate")
        a.emit(0xA1, 1, "became leader")
        b.emit(0xB2, 1, "voted for na1")
        second.write('{"ns":1')
    outcome = run("kvctl", "debug", "trace", *map(str, paths))
    assert lines(outcome) == [
        "      0.000   na1 t1 became candidate",
        "      2.500   nb2 t1 voted for na1",
        "      4.000   na1 t1 became leader",
    ]
    assert "1 lines are no events" in outcome.error
    only = objects(run("kvctl", "debug", "trace", *map(str, paths), "--node=a1", "--from=1", "-w", "json"))
    assert only == [{"ms": 4.0, "node": "na1", "text": "t1 became leader"}]
    assert len(lines(run("kvctl", "debug", "trace", *map(str, paths), "--event=voted", "--to=3"))) == 1


def test_a_trace_of_the_simulator(tmp_path: Path) -> None:
    from raft.testing.sim.trace import HEAD

    trace = tmp_path / "seven.txt"
    lines_ = [
        HEAD,
        "     30.690   n3 ask              F    t0 0/0/0/0/0         #1 swap",
        "    108.009  n31 core             C    t4 0/9/9/11/11       voted for n2",
    ]
    trace.write_text("\n".join(lines_))
    shown = lines(run("kvctl", "debug", "trace", str(trace), "--node", "n3"))
    assert len(shown) == 1  # n31 is another node
    assert "#1 swap" in shown[0]
    assert len(lines(run("kvctl", "debug", "trace", str(trace), "--from=31"))) == 1
    run("kvctl", "debug", "trace", "/dev/null").failed(1, "--raft-trace")
