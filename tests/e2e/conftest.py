"""Fixtures of the tests that run real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """`make_cluster(size, flags=[...])`: a Cluster that is not started yet and is killed after the test."""
    made: list[Cluster] = []

    def make(size: int, *, flags: list[str] | None = None, environment: dict[str, str] | None = None) -> Cluster:
        cluster = Cluster(size, tmp_path / f"cluster{len(made)}", flags=flags, environment=environment)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.stop()
