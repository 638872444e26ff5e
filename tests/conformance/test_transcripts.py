"""etcdctl cannot tell our three members from etcd's: same commands, same output, line for line.

`scripts/` are the commands, `recorded/` what a real etcd 3.5.1 of three members answered to etcdctl 3.5 and to
Debian's 3.4 (`python -m tests.conformance.record`). Here the same runs against us.

What differs on purpose, so the normaliser names it instead of comparing it:

| what | why |
|---|---|
| version in status | we answer as etcd 3.6.0, for clients that choose their calls by it; recorded was 3.5.1 |
| hash of hashkv | hashes our own rows; that it is equal or different among members is compared |
| sizes, raft index, term, ids, ports, times | they differ between two runs of one etcd too |
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conformance.etcd import TOKEN, member_id
from tests.conformance.record import ETCDCTLS, HERE, SCRIPTS
from tests.conformance.session import Session
from tests.e2e.cluster import Cluster, Member


class OurCluster:
    """Our members, in the order of their ids as the transcripts expect."""

    version = "3.6.0"

    def __init__(self, path: Path, *, size: int = 3, flags: Sequence[str] = ()) -> None:
        # Ids follow from the ports, and ports are given by chance: one draw of six is in order.
        while True:
            cluster = Cluster(size, path, flags=[f"--initial-cluster-token={TOKEN}", *flags])
            self.peer_urls = [member.peer_url for member in cluster.members]
            ids = [member_id(url) for url in self.peer_urls]
            if ids == sorted(ids):
                break
        self.cluster = cluster
        self.client_urls = cluster.endpoints
        self._path = path

    def join(self, name: str, client_url: str, peer_url: str) -> None:
        """Start one more, which has been added; it is stopped with the others."""
        client_port, peer_port = int(client_url.rpartition(":")[2]), int(peer_url.rpartition(":")[2])
        member = Member(name, self._path, client_port, peer_port)
        member.arguments = [
            *self.cluster.member_flags(member),
            f"--initial-cluster={self.cluster.initial_cluster},{name}={peer_url}",
            "--initial-cluster-state=existing",
        ]
        self.cluster.members.append(member)
        member.start()


@pytest.fixture(scope="module", params=list(ETCDCTLS))
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Session]]:
    name: str = request.param
    if not ETCDCTLS[name].exists():
        pytest.skip(f"{name} is not installed (Debian package etcd-client)")
    ours = OurCluster(tmp_path_factory.mktemp(name))
    with ours.cluster:
        ours.cluster.wait_leader()
        yield name, Session(str(ETCDCTLS[name]), ours)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_transcript(played: tuple[str, Session], script: Path) -> None:
    """Scripts run in order on one cluster: when several differ, mend the first."""
    name, session = played
    recorded = (HERE / "recorded" / name / script.name).read_text()
    ours = session.play(script.read_text())
    difference = difflib.unified_diff(recorded.splitlines(), ours.splitlines(), "etcd", "ours", lineterm="", n=4)
    assert ours == recorded, "\n" + "\n".join(difference)
