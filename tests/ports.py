"""Free ports of loopback for servers of tests.

From below the range that the kernel takes ports for outgoing connections from: a member that is down finds its
port free when it comes back. Each process of a parallel run has a range of its own.
"""

import os
import socket
from itertools import count
from typing import Final

_FIRST: Final = 12_000
_SPAN: Final = 5_000  # of each worker; four of them end at 32,000, Linux's own range begins at 32,768
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_next = count(os.getpid() * 101)  # another run of the tests beside this one starts elsewhere


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now; none comes twice before all others have come."""
    ports: list[int] = []
    while len(ports) < number:
        port = _FIRST + _WORKER * _SPAN + next(_next) % _SPAN
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    return ports
