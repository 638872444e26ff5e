"""The read barrier: when a read of the local state is linearizable (thesis 6.4).

Whoever asks waits for one round: the leader's commit index, confirmed by a quorum of echoes to messages
sent after the question, then applied here. One round is under way at a time; all who come meanwhile share
the next one, since only a round that began after a caller's arrival proves anything to it. So rounds cost
what the network costs, not what the readers are. Who has been answered and is about to ask again is waited for
(company.py).

A round that no quorum answers stays under way. Its callers leave at their deadline; whoever comes later
waits behind it, and is answered as soon as a quorum is there again.
"""

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

from kvstore.errors import STOPPED, TOO_MANY_REQUESTS, KvError
from kvstore.failpoints import fail_async
from kvstore.server.company import Company
from raft.errors import Stopped
from raft.types import Index

SLOW_SECONDS: Final = 0.5  # of a round: after so long etcd asks again
WAITING_MAX: Final = 20_000  # callers; a list of reads is one caller

Done = Callable[[KvError | None], None]


class IndexReader(Protocol):
    """What the barrier needs of a raft.Node."""

    async def read_index(self) -> Index: ...
    async def wait_applied(self, index: Index) -> None: ...


@final
class ReadBarrier:
    def __init__(self, node: IndexReader, timeout: float, timeout_error: Callable[[float], KvError]) -> None:
        """Made on the loop."""
        self._node = node
        self._timeout = timeout  # seconds, the same for all: so the oldest caller is the first to leave
        self._timeout_error = timeout_error
        self._asked: deque[tuple[float, Done]] = deque()  # in the round under way
        self._waiting: deque[tuple[float, Done]] = deque()  # for the next
        self._reads = 0  # that these stand for
        self._company = Company(get_running_loop().call_later, self._wake)
        self._wakeup: Future[None] | None = None
        self._stopped = False
        self.failed = 0  # callers that waited in vain
        self.slow = 0  # rounds

    def add(self, done: Done, now: float, reads: int = 1) -> None:
        """`done(None)` once these reads may be served, or `done(error)`; later, and exactly once."""
        if self._stopped:
            done(STOPPED)
        elif len(self._asked) + len(self._waiting) >= WAITING_MAX:
            done(TOO_MANY_REQUESTS)
        else:
            self._waiting.append((now, done))
            self._reads += reads
            if not self._company.is_expected(self._reads):
                self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def run(self) -> None:
        """The rounds, one after another, until the node stops."""
        try:
            while True:
                while not self._waiting or self._company.is_expected(self._reads):
                    self._wakeup = get_running_loop().create_future()
                    await self._wakeup
                self._asked, self._waiting = self._waiting, deque()
                asked, self._reads = self._reads, 0
                began = get_running_loop().time()
                await fail_async("readBeforeRound")
                index = await self._node.read_index()
                await self._node.wait_applied(index)
                await fail_async("readAfterRound")
                self.slow += get_running_loop().time() - began >= SLOW_SECONDS
                confirmed, self._asked = self._asked, deque()
                for _, done in confirmed:
                    done(None)
                self._company.answered(asked, self._reads)
        except Stopped:
            self.stop()

    def expire(self, now: float) -> None:
        """Answer those who have waited for the whole timeout."""
        for waiting in (self._asked, self._waiting):
            while waiting and now - waiting[0][0] >= self._timeout:
                since, done = waiting.popleft()
                self.failed += 1
                done(self._timeout_error(since))

    def stop(self) -> None:
        self._stopped = True
        for waiting in (self._asked, self._waiting):
            while waiting:
                waiting.popleft()[1](STOPPED)
