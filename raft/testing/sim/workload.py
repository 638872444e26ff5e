"""What clients ask, drawn before the simulation starts: when, of which node, of which register.

Registers are few and change every few seconds, so that operations meet on them and each register's
history stays short enough to be searched.
"""

from typing import Final, NamedTuple

from raft.testing.sim.clock import SECOND
from raft.testing.sim.history import READ, SWAP, WRITE
from raft.testing.sim.options import Options
from raft.testing.sim.rng import SimRng
from raft.types import NodeId

_REGISTERS: Final = 4  # in use at a time
PERIOD: Final = 3 * SECOND  # then new ones


class Request(NamedTuple):
    at: int
    number: int  # also the value that it writes
    node_id: NodeId  # whom the client asks
    kind: str
    register: int
    expected: int | None


def draw_requests(options: Options) -> list[Request]:
    rng = SimRng(options.seed, "workload")
    gap = SECOND / (options.writes + options.reads)
    share = options.reads / (options.writes + options.reads)
    requests: list[Request] = []
    written: dict[int, list[int]] = {}
    at = rng.exponential(gap)
    while at < options.safety:
        number = len(requests) + 1
        register = at // PERIOD * _REGISTERS + rng.below(_REGISTERS)
        node_id = rng.choice(options.nodes)
        kind, expected = READ, None
        if not rng.chance(share):
            values = written.setdefault(register, [0])
            kind = WRITE
            if rng.chance(0.3):
                kind, expected = SWAP, rng.choice(values[-4:])
            values.append(number)
        requests.append(Request(at, number, node_id, kind, register, expected))
        at += rng.exponential(gap)
    return requests
