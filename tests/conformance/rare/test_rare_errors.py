"""What members say when others fail, hang or stop, and when they fall behind: etcd and ours, the same calls."""

from pathlib import Path

import pytest

from tests.conformance.differential.servers import JUDGES, judge_is_here
from tests.conformance.rare.scenario import Scenario
from tests.conformance.rare.scenarios import SCENARIOS

pytestmark = pytest.mark.long


@pytest.mark.parametrize("judge", list(JUDGES))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario, judge: str, tmp_path: Path) -> None:
    if not judge_is_here(judge):
        pytest.skip(f"etcd {judge} is not installed: {JUDGES[judge]}")
    coverage, differences = scenario.compare(tmp_path, judge)
    assert not differences
    assert not scenario.lacking(coverage, judge), coverage.errors
