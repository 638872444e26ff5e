"""One cluster for all of these tests, of etcd or of ours."""

import os
from collections.abc import Iterator

import pytest

from tests.kvstore.client.clusters import SERVERS, Cluster


@pytest.fixture(scope="module", params=os.environ.get("KVSTORE_TEST_SERVERS", ",".join(SERVERS)).split(","))
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One suite over real etcd and over ours. Tests leave all members running."""
    running = Cluster(request.param, tmp_path_factory.mktemp(request.param))
    try:
        running.start()
        yield running
    finally:
        running.stop()
