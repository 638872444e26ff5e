"""Scenarios that the simulator is put into on purpose: a fault that stays, or only the classes that belong together."""

from dataclasses import replace

import pytest

from raft.testing.sim import Plan, run
from raft.testing.sim.exhaustive import Bounds, Search, Violation
from raft.testing.sim.nemesis import draw_faults
from raft.testing.sim.options import Options, draw
from raft.testing.sim.workload import draw_requests
from raft.testing.sim.world import World
from raft.types import Role


def quiet(seed: int, voters: int, **changed: object) -> Options:
    """A cluster without faults of its own."""
    plain = {"voters": voters, "learners": 0, "fault_rates": {}, "message_faults": {}, "clock_error": 0.0}
    return replace(draw(seed, 30), **{**plain, "pre_vote": True, "check_quorum": True, **changed})


@pytest.mark.parametrize("seed", range(1, 5))
def test_partial_partition_costs_no_elections(seed: int) -> None:
    """S-04: two nodes do not see each other, everybody else sees both: who leads goes on, terms do not grow."""
    options = quiet(seed, 5)
    world = World(options, [], draw_requests(options), None)
    world.clock.run(5 * options.election_timeout)
    leaders = [process for process in world.processes.values() if process.raw and process.raw.role is Role.LEADER]
    assert leaders
    other = next(process.node_id for process in world.processes.values() if process is not leaders[0])
    link = (leaders[0].node_id, other)
    world.network.cut([link, link[::-1]])
    terms = max([process.raw.term for process in world.processes.values() if process.raw])
    commits = world.commit_index
    world.clock.run(world.clock.now + 30 * options.election_timeout)
    grown = max([process.raw.term for process in world.processes.values() if process.raw]) - terms
    assert grown == 0, f"{grown} elections"
    assert world.commit_index > commits


@pytest.mark.parametrize("seed", range(1, 4))
def test_partition_with_removal_and_kill(seed: int) -> None:
    """S-32: members and leaders are removed while others are cut off and killed."""
    rates = {"member": 1.0, "partition": 0.3, "crash": 0.3, "power_cut": 0.1}
    options = quiet(seed, 3 + 2 * (seed % 2), fault_rates=rates, joiners=4, zombies=seed == 1)
    outcome = run(Plan(options, draw_faults(options), draw_requests(options)))
    assert outcome.ok, outcome.violation
    assert outcome.marks["joint"], "nothing was changed"


def test_search_tells_the_way_to_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of a small space is searched; what is found is told move by move."""
    bounds = Bounds(deliveries=4, timeouts=1, heartbeats=0, proposals=0, crashes=0)
    report = Search(bounds, pre_vote=False).run()
    assert report.elections > 0
    assert report.commits == 1
    monkeypatch.setattr("raft.testing.sim.exhaustive._MAJORITY", 3)
    with pytest.raises(Violation, match=r"is committed, only \[.*\n    n1 timeout\n"):
        Search(bounds, pre_vote=False).run()


def test_exhaustive_search_finds_nothing() -> None:
    """Three nodes, two terms, few deliveries: every order of them."""
    report = Search(Bounds(7, 2, 0, 0, 1), pre_vote=False).run()
    assert report.states > 50_000
