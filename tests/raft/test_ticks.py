"""When a node ticks."""

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from raft.core.raw_node import RawNode
from tests.raft.nodes import Cluster, turns

TICK_NS = 20_000_000  # of Cluster's nodes


def watched(raw: RawNode, clock: Any, times: list[int]) -> Callable[[int], None]:
    before = raw.tick

    def tick(passed: int) -> None:
        if passed:
            times.append(clock.now)
        before(passed)

    return tick


async def test_ticks_of_nodes_that_start_together_do_not_stay_together() -> None:
    """Else two of them would campaign at one moment, over and over: split votes."""
    times: dict[int, list[int]] = {1: [], 2: []}
    async with Cluster(2, clock=True) as cluster:
        for node_id, member in cluster.members.items():
            raw: Any = member.node._raw
            raw.tick = watched(raw, cluster.clocks[node_id], times[node_id])
        for _ in range(4_000):
            for node_id, member in cluster.members.items():
                cluster.clocks[node_id].now += TICK_NS // 40
                member.node.wake()
            await turns(2)
    for found in times.values():
        gaps = [after - before for before, after in pairwise(found)]
        assert 0.74 * TICK_NS <= min(gaps) < 0.9 * TICK_NS
        assert 1.1 * TICK_NS < max(gaps) <= 1.3 * TICK_NS
        assert abs(statistics.mean(gaps) - TICK_NS) < 0.05 * TICK_NS
    assert len(set(times[1]) & set(times[2])) < 25
