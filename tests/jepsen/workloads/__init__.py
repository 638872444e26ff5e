"""What clients do, a file for each workload; base.py has what they share."""

from collections.abc import Callable

from tests.jepsen.workloads.append import Append
from tests.jepsen.workloads.base import Workload
from tests.jepsen.workloads.counter import Counter
from tests.jepsen.workloads.lease import Lease
from tests.jepsen.workloads.lock import Lock
from tests.jepsen.workloads.queue import Queue
from tests.jepsen.workloads.reads import Reads
from tests.jepsen.workloads.register import Register
from tests.jepsen.workloads.set import Set
from tests.jepsen.workloads.watch import Watch

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "register": Register,
    "append": Append,
    "set": Set,
    "counter": Counter,
    "queue": Queue,
    "reads": Reads,
    "lock": Lock,
    "lease": Lease,
    "watch": Watch,
}
