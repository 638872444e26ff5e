"""The member table follows the log: configurations that are final, updates, publications; alike on every member."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.mvcc import schema
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import MemberChange, MemberPublish
from kvstore.state.applier import CONFIGURATION, AppliedResult, Applier
from kvstore.state.cluster import ClusterTable, Member
from kvstore.state.command import Op, UnknownRequest, encode_batch, encode_request
from tests.kvstore.state.support import Entry, State, state_hash

A, B, C, NEW = 0xA, 0xB, 0xC, 0xD
FIRST = [Member(id=one, name=f"m{one:x}", peer_urls=(f"http://{one:x}:1",)) for one in (A, B, C)]


def read_configuration(data: bytes) -> tuple[bool, bytes]:
    return data[:1] == b"J", data[1:]


def configuration(index: int, op: MemberChange.Op.ValueType, member: pb.Member, joint: bool = False) -> Entry:
    context = MemberChange(op=op, member=member).SerializeToString()
    return Entry(index, (b"J" if joint else b"F") + context, kind=CONFIGURATION)


def request(index: int, op: Op, raw: bytes) -> Entry:
    return Entry(index, encode_batch(1, [encode_request(op, raw, 7, 1, index)]))


def added(learner: bool = False) -> pb.Member:
    return pb.Member(ID=NEW, peerURLs=["http://d:1"], isLearner=learner)


def make(path: Path, first: list[Member]) -> tuple[State, ClusterTable]:
    state = State(path)
    state.applier = Applier(state.store, 7, 1, state.sinks, read_configuration)
    table = ClusterTable(state.store)
    table.bootstrap(first)
    return state, table


def history() -> list[Entry]:
    publish = MemberPublish(member=NEW, name="d", client_urls=["http://d:2"], instance=9)
    return [
        request(1, Op.MEMBER_PUBLISH, MemberPublish(member=A, name="ma", instance=5).SerializeToString()),
        configuration(2, MemberChange.ADD, added(learner=True)),
        request(3, Op.MEMBER_PUBLISH, publish.SerializeToString()),
        configuration(4, MemberChange.PROMOTE, pb.Member(ID=NEW), joint=True),
        configuration(5, MemberChange.PROMOTE, pb.Member(ID=NEW)),
        request(6, Op.MEMBER_UPDATE, pb.MemberUpdateRequest(ID=B, peerURLs=["http://b:9"]).SerializeToString()),
        configuration(7, MemberChange.REMOVE, pb.Member(ID=C), joint=True),
        configuration(8, MemberChange.REMOVE, pb.Member(ID=C)),
    ]


async def test_rows_follow_final_configurations_only(tmp_path: Path) -> None:
    state, table = make(tmp_path / "s", FIRST)
    seen: list[dict[int, bool]] = []
    for entry in history():
        await state.feed([entry])
        seen.append({member.id: member.is_learner for member in table.members()})
    three, learner, voter = {A: False, B: False, C: False}, {NEW: True}, {NEW: False}
    joined = three | voter
    left = {A: False, B: False, NEW: False}
    assert seen == [three, three | learner, three | learner, three | learner, joined, joined, joined, left]
    new = table.member(NEW)
    assert new == Member(id=NEW, name="d", peer_urls=("http://d:1",), client_urls=("http://d:2",), instance=9)
    assert table.removed() == [C]
    assert table.first() == FIRST
    assert state.store.get(schema.META_CONFIGURATION) == history()[-1].data
    state.close()


@pytest.mark.parametrize("together", [True, False])
async def test_who_joins_and_replays_the_log_has_the_same_state(tmp_path: Path, together: bool) -> None:
    state, table = make(tmp_path / "s", FIRST)
    await state.feed(history())
    # What `first` says is the same before and after the changes, so a newcomer begins as the others did.
    joined, _ = make(tmp_path / "j", table.first())
    for entries in [history()] if together else [[one] for one in history()]:
        await joined.feed(entries)
    assert state_hash(joined.store) == state_hash(state.store)
    joined.close()
    state.close()


async def test_updates_that_are_refused(tmp_path: Path) -> None:
    state, table = make(tmp_path / "s", FIRST)
    await state.feed(
        [
            request(1, Op.MEMBER_UPDATE, pb.MemberUpdateRequest(ID=1, peerURLs=["http://x:1"]).SerializeToString()),
            request(2, Op.MEMBER_UPDATE, pb.MemberUpdateRequest(ID=A, peerURLs=["http://b:1"]).SerializeToString()),
            request(3, Op.MEMBER_UPDATE, pb.MemberUpdateRequest(ID=A, peerURLs=["http://a:1"]).SerializeToString()),
        ]
    )
    assert state.sinks.answers == {1: errors.MEMBER_NOT_FOUND, 2: errors.PEER_URL_EXISTS, 3: AppliedResult(1, b"")}
    assert table.members() == FIRST
    state.close()


async def test_a_change_of_a_newer_version_stops_the_member(tmp_path: Path) -> None:
    state, _ = make(tmp_path / "s", FIRST)
    with pytest.raises(UnknownRequest, match="upgrade this member"):
        await state.feed([Entry(1, b"F" + b"\x08\x09", kind=CONFIGURATION)])
    state.close()
