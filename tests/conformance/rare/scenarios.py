"""All stories, and what the judges say in each."""

from typing import Final

from tests.conformance.rare import alone, elections, falling_apart
from tests.conformance.rare.scenario import Scenario

TIMED_OUT: Final = "request timed out"


def _both(*texts: str) -> dict[str, tuple[str, ...]]:
    return {"3.4.23": texts, "3.5.1": texts}


SCENARIOS: Final = [
    Scenario(
        falling_apart.falling_apart,
        _both("not leader", "rpc not supported for learner", "unhealthy cluster", "no leader", TIMED_OUT),
    ),
    Scenario(falling_apart.deadlines, _both("context deadline exceeded")),
    Scenario(elections.a_read_waits, _both("leader changed")),
    Scenario(
        elections.a_write_is_sent_to_a_leader_that_hangs, _both(f"{TIMED_OUT}, possibly due to previous leader failure")
    ),
    Scenario(elections.a_write_is_sent_to_a_leader_that_died, _both(f"{TIMED_OUT}, possibly due to connection lost")),
    Scenario(elections.stopping, _both("server stopped", "told to stop")),
    Scenario(
        alone.first_moments,
        {"3.4.23": (), "3.5.1": ("cluster version not found during downgrade",)},
        is_started=False,
    ),
    Scenario(
        alone.an_old_token,
        {"3.4.23": ("revision of auth store is old",), "3.5.1": ("old revision",)},
        size=1,
        flags=alone.jwt_flags,
    ),
    Scenario(alone.two_members_in_a_second, _both("member ID already exist"), size=1),
    Scenario(alone.a_version_that_is_no_text, _both("version dies"), size=1),
    Scenario(
        alone.a_large_delete,
        {
            "3.4.23": ("too many requests", f"{TIMED_OUT}, waiting for the applied index took too long"),
            "3.5.1": ("too many requests",),
        },
        size=1,
    ),
]
