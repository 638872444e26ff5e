"""What a fault is, and what it acts on."""

from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import dataclass, field
from typing import Any

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member
from tests.jepsen.disk import Disk
from tests.jepsen.network import Network

HOW_MANY = ("one", "leader", "minority", "majority", "all")


@dataclass
class System:
    """What faults act on. A context manager: members run within."""

    network: Network
    cluster: Cluster
    disks: dict[str, Disk] = field(default_factory=dict)  # of each member, where a fault needs them

    def __enter__(self) -> System:
        self.cluster.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        for disk in self.disks.values():
            disk.wake()  # who waits for it cannot be killed
        self.cluster.__exit__(*raised)

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.cluster.members]


def push(members: list[Member], seconds: float = 1.0, size: int = 64 << 10, count: int = 1) -> None:
    """Writes at once that take room in everybody's log. Whether they go through is nobody's concern."""
    request = rpc_pb2.PutRequest(key=b"push", value=bytes(size))
    for member in members:
        stub = rpc_pb2_grpc.KVStub(member.channel)
        with contextlib.suppress(grpc.RpcError):
            for call in [stub.Put.future(request, timeout=seconds) for _ in range(count)]:
                call.result()
            return


class Fault:
    """Begun, then ended; in between it may be asked whether it really is there."""

    needs: tuple[str, ...] = ()
    layer = ""  # faults of two layers can be there at once; "": none beside it
    ours = False  # only our own members can be asked what it asks
    leaves_majority = False  # of members that run and reach each other at full speed

    def __init__(self, system: System, rng: random.Random) -> None:
        self.system = system
        self.rng = rng

    def begin(self) -> str:
        """Returns what is done to whom, in a few words."""
        raise NotImplementedError

    def bites(self) -> str:
        """ "" when it shows, else what is seen instead."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def healed(self) -> str:
        """ "" when nothing of it is left."""
        raise NotImplementedError

    def pick(self, how_many: str) -> list[Member]:
        """Members, running ones if there are any, by a word of HOW_MANY; all numbers are of the whole cluster."""
        members = self.system.cluster.members
        running = self.system.cluster.running or members
        if how_many == "leader":
            return [self.system.cluster.leader() or self.rng.choice(running)]
        count = {"one": 1, "minority": (len(members) - 1) // 2, "majority": len(members) // 2 + 1, "all": len(members)}
        return self.rng.sample(running, min(count[how_many], len(running)))


class Repeated(Fault):
    """`again` is done over and over, in a thread of its own, until the end. Its errors come out there."""

    def begin(self) -> str:
        what = self.prepare()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return what

    def prepare(self) -> str:
        raise NotImplementedError

    def again(self) -> None:
        raise NotImplementedError

    def pause(self, low: float, high: float) -> None:
        """Within `again`: some seconds, fewer when the end has come."""
        self._over.wait(self.rng.uniform(low, high))

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self.again()
        except BaseException as error:  # it is raised by `end`
            self._error = error

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@dataclass
class Told:
    """A fault as the report tells it. Times are seconds from the start of the run."""

    name: str
    what: str
    began: float
    ended: float = 0.0
    beside: str = ""  # another fault at the same time
    unavailable: float = field(default=0.0)  # the longest time without an acknowledged operation, in seconds
