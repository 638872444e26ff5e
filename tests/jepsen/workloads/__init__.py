"""What clients do, a file for each workload; base.py has what they share."""

from collections.abc import Callable

from tests.jepsen.workloads.append import Append
from tests.jepsen.workloads.base import Workload
from tests.jepsen.workloads.register import Register
from tests.jepsen.workloads.set import Set

WORKLOADS: dict[str, Callable[[], Workload]] = {"register": Register, "append": Append, "set": Set}
