"""A real etcd of one member, and one or three of ours, as a Pair."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.differential.runner import Pair
from tests.conformance.differential.sides import Side
from tests.conformance.etcd import EtcdCluster
from tests.e2e.cluster import Cluster


@contextlib.contextmanager
def running_pair(folder: Path, members: int) -> Iterator[Pair]:
    """Of three members of ours a follower is asked: what it says has gone through the leader's log."""
    (folder / "etcd").mkdir()
    etcd = EtcdCluster(folder / "etcd", size=1)
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.stop)
        etcd.start()
        ours = stack.enter_context(Cluster(members, folder / "ours"))
        leader = ours.wait_leader()
        asked = next((member for member in ours.members if member is not leader), leader)
        sides = [Side("etcd", etcd.client_urls[0].removeprefix("http://")), Side("ours", asked.target)]
        for side in sides:
            stack.callback(side.close)
        yield Pair(sides[0], sides[1], members)
