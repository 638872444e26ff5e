"""One cluster for all of these tests, of etcd or of ours.

kvctl against a real etcd is for `make test-all`: each command is a process, and etcdctl's answers are compared with
kvctl's on our members anyway.
"""

import os
from collections.abc import Iterator

import pytest

from tests.kvstore.client.clusters import SERVERS, Cluster

WANTED = os.environ.get("KVSTORE_TEST_SERVERS", ",".join(SERVERS)).split(",")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.long) if name == "etcd" else name for name in WANTED]
)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One suite over real etcd and over ours. Tests leave all members running."""
    running = Cluster(request.param, tmp_path_factory.mktemp(request.param))
    try:
        running.start()
        yield running
    finally:
        running.stop()
