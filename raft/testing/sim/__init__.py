"""A deterministic simulation of a Raft cluster: one thread, virtual time, one seed.

    from raft.testing.sim import Plan, run

    outcome = run(Plan.of(seed=7))
    assert outcome.ok, outcome.violation

A seed decides the cluster, its settings, its faults and its clients. The real core runs over a simulated
network and disk, by a driver that does what raft/node.py does; after each turn of a node every invariant
of the node and of the cluster is checked, and at the end the clients' histories.

    options.py    what a seed decides                 world.py     the cluster, phases and verdict
    clock.py      virtual time                        process.py   one node and its driver
    network.py    messages                            nemesis.py   the schedule of faults
    disk.py       logs, and what crashes leave        workload.py  the schedule of requests
    members.py    the operator of the members         directed.py  schedules for particular bugs
    snapshots.py  transfers of snapshots              exhaustive.py  all runs of a small cluster
    checker.py    invariants of the cluster           history.py   linearizability
    machine.py    the replicated registers            marks.py     rare situations that must be met
    plan.py       run one                             shrink.py    make a failure small
"""

from raft.testing.sim.plan import Outcome, Plan, run

__all__ = ["Outcome", "Plan", "run"]
