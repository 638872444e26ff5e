"""The mutants fit the code as it is; whether they are seen is `make jepsen-mutants`."""

import pytest

from tests.jepsen.faults import FAULTS
from tests.jepsen.guard import ROOT
from tests.jepsen.mutants.case import Case, read_cases
from tests.jepsen.workloads import WORKLOADS


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: case.name)
def test_fits(case: Case) -> None:
    assert case.edits
    for edit in case.edits:
        assert (ROOT / edit.file).read_text().count(edit.old) == 1, edit
    assert case.options.workload in WORKLOADS
    assert set(case.options.nemeses) <= FAULTS.keys()
