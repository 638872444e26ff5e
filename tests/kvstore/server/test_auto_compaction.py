"""When automatic compaction is due, by a clock that the test moves; and that it is the leader's in a real cluster."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.config import ServerConfig
from kvstore.errors import COMPACTED, TIMEOUT, KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.server import auto_compaction
from kvstore.server.auto_compaction import Newest, Periodic, policy
from tests.e2e.cluster import Cluster, wait_for

HOUR = 3600.0


def play(chosen: Any, ticks: int, revisions_per_tick: int = 1, begin: int = 1) -> list[tuple[float, int]]:
    """(hour, revision) of each compaction; all succeed. At tick n the revision is begin + n."""
    found = []
    for tick in range(ticks):
        now = tick * chosen.seconds
        due = chosen.tick(now, begin + tick * revisions_per_tick)
        if due:
            chosen.done(now, due)
            found.append((round(now / HOUR, 3), due))
    return found


def test_periodic_keeps_a_period() -> None:
    """Ten samples an hour: after five hours, and from then on each hour, what was the newest one five hours ago."""
    assert Periodic(5 * HOUR, 0.0).seconds == 360
    assert play(Periodic(5 * HOUR, 0.0), 81) == [(5.0, 1), (6.0, 10), (7.0, 20), (8.0, 30)]


def test_a_short_period_is_sampled_more_often() -> None:
    short = Periodic(600.0, 0.0)
    assert short.seconds == 60
    assert [revision for _, revision in play(short, 41)] == [1, 10, 20, 30]


def test_periodic_does_nothing_twice() -> None:
    assert play(Periodic(HOUR, 0.0), 100, revisions_per_tick=0, begin=7) == [(1.0, 7)]


def test_what_fails_is_tried_at_the_next_tick() -> None:
    chosen = Periodic(HOUR, 0.0)
    due = [chosen.tick(tick * 360.0, tick + 1) for tick in range(13)]
    assert due == [0] * 10 + [1, 1, 2]


def test_revisions() -> None:
    assert Newest(1000).seconds == 300
    assert [revision for _, revision in play(Newest(1000), 5, revisions_per_tick=600)] == [201, 801, 1401]
    assert play(Newest(10), 5, revisions_per_tick=0, begin=11) == [(0.0, 1)]
    assert not play(Newest(10), 5, revisions_per_tick=0, begin=10)


def test_it_is_off_unless_asked_for() -> None:
    assert policy(ServerConfig(), 0.0) is None
    assert isinstance(policy(ServerConfig(auto_compaction_retention=60.0), 0.0), Periodic)
    assert isinstance(policy(ServerConfig(auto_compaction_mode="revision", auto_compaction_retention=9), 0.0), Newest)


class Host:
    def __init__(self, errors: list[KvError | None]) -> None:
        self.proposed: list[int] = []
        self._errors = errors

    def now(self) -> float:
        return 0.0

    async def propose_one(self, op: object, raw: bytes, user: str = "") -> Any:
        self.proposed.append(pb.CompactionRequest.FromString(raw).revision)
        error = self._errors.pop(0)
        if error is not None:
            raise error


async def test_what_another_one_compacted_is_done() -> None:
    host, chosen = Host([TIMEOUT, COMPACTED, None]), Newest(1)
    for _ in range(2):
        due = chosen.tick(0.0, 10)
        await auto_compaction._compact(host, chosen, due)  # type: ignore[arg-type]
    assert host.proposed == [9, 9]
    assert chosen.tick(0.0, 10) == 0


@pytest.mark.parametrize("retention", ["1s"])
def test_the_leader_compacts(tmp_path: Path, retention: str) -> None:
    with Cluster(3, tmp_path, flags=[f"--auto-compaction-retention={retention}"]) as cluster:
        leader = cluster.wait_leader()
        kv = cluster.kv()
        for number in range(5):
            kept = kv.Put(pb.PutRequest(key=b"k", value=b"%d" % number)).header.revision

        def compacted() -> bool:
            try:
                kv.Range(pb.RangeRequest(key=b"k", revision=kept - 1))
            except grpc.RpcError as error:
                return error.details() == COMPACTED.message  # type: ignore[attr-defined]
            return False

        wait_for(compacted, "the old revisions go")
        assert kv.Range(pb.RangeRequest(key=b"k", revision=kept)).kvs[0].value == b"4"
        said = [member.name for member in cluster.members if "automatic compaction" in member.log()]
        assert said == [leader.name]
