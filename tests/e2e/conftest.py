"""Fixtures of the tests that run real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Cluster


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """`make_cluster(size, flags=[...])`, with any option of Cluster: not started yet, and killed after the test."""
    made: list[Cluster] = []

    def make(size: int, **options: Any) -> Cluster:
        cluster = Cluster(size, tmp_path / f"cluster{len(made)}", **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.stop()
