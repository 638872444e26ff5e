"""Which texts of the table a judge could say at all."""

import pytest

from tests.conformance.differential.coverage import ERRORS, NOT_SAID, PREFIX
from tests.conformance.differential.servers import JUDGES, PROGRAMS, judge_is_here

OF_GO = "context deadline exceeded"  # without etcd's prefix


@pytest.mark.parametrize("judge", list(JUDGES))
def test_a_text_that_is_not_in_a_program(judge: str) -> None:
    if not judge_is_here(judge):
        pytest.skip(f"etcd {judge} is not installed: {JUDGES[judge]}")
    program = PROGRAMS[judge].read_bytes()
    found = {text for text in ERRORS if ("" if text == OF_GO else PREFIX).encode() + text.encode() in program}
    assert set(ERRORS) - found == set(NOT_SAID[judge])
