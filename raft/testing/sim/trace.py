"""Trace: one line for each event, in fixed columns, so that `diff` of two runs finds the first divergence.

     ms node event    role term    compacted/applied/commit/stable/last detail
118.204   n2 core        C   t4                            0/9/9/11/11 t4 voted for n2
"""

from typing import Final, final

from raft.core.state import Raft
from raft.testing.sim.clock import MILLISECOND
from raft.types import Role

_ROLES: Final = {Role.FOLLOWER: "F", Role.PRE_CANDIDATE: "P", Role.CANDIDATE: "C", Role.LEADER: "L"}

HEAD: Final = f"{'ms':>11} node {'event':<13} role  term {'compacted/applied/commit/stable/last':<36} detail"


@final
class Trace:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, now: int, node: int, r: Raft | None, event: str, detail: str) -> None:
        name = f"n{node:x}" if node else "-"
        role, term, log = "-", "-", ""
        if r is not None:
            role, term = _ROLES[r.role], f"t{r.term}"
            indexes = (
                r.log.first_index - 1,
                r.log.applied_index,
                r.log.commit_index,
                r.log.stable_index,
                r.log.last_index,
            )
            log = "/".join([str(index) for index in indexes])
        self.lines.append(f"{now / MILLISECOND:11.3f} {name:>4} {event:<13} {role:>4} {term:>5} {log:<36} {detail}")
