"""Nemeses: each does something bad to some members, shows that it bites, and undoes it. A file for each family.

Whether this machine can do a fault is the probe's answer to `needs`. docs/JEPSEN.md has the table.
"""

from tests.jepsen.faults.base import Fault, System, Told
from tests.jepsen.faults.clocks import CLOCKS
from tests.jepsen.faults.disks import DISKS
from tests.jepsen.faults.failpoints import FAILPOINTS
from tests.jepsen.faults.links import LINKS
from tests.jepsen.faults.members import MEMBERS
from tests.jepsen.faults.partitions import PARTITIONS
from tests.jepsen.faults.processes import PROCESSES
from tests.jepsen.faults.scenarios import SCENARIOS
from tests.jepsen.faults.versions import VERSIONS

__all__ = ["FAULTS", "NEMESES", "Fault", "System", "Told"]

FAULTS: dict[str, type[Fault]] = {
    **PARTITIONS,
    **LINKS,
    **PROCESSES,
    **DISKS,
    **CLOCKS,
    **MEMBERS,
    **FAILPOINTS,
    **VERSIONS,
}
NEMESES = {**FAULTS, **SCENARIOS}  # by their names; "all" are FAULTS, of which the scenarios are made
