"""Between members: a Transport whose messages go through the network of the Raft level.

A message is delivered to whatever life the receiving member has then. As with the real transport, the two ends
check each other once for each pair of lives; who is refused is told so.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

from kvstore.errors import TIMEOUT, TIMEOUT_CONNECTION_LOST, KvError
from kvstore.server.leader_calls import LeaderCalls
from kvstore.server.server import KvServer
from raft.errors import PeerRefused
from raft.messages import Message
from raft.snapshot import SnapshotFailed, SnapshotHeader, SnapshotReader, SnapshotReceiver, pieces
from raft.testing.sim.network import Hold, Link, SimNetwork
from raft.transport.base import Receive, Transport
from raft.transport.grpc import PeerIdentity
from raft.types import NodeId
from tests.sim.member.loop import MILLISECOND, Process, SimLoop
from tests.sim.member.options import Options

MICROSECOND: Final = MILLISECOND // 1000
ASK_SECONDS: Final = 5.0  # then a silent peer is given up, as keepalives do


class Lost(Exception):
    """No answer came. The text says how it was lost."""


@final
class LoopClock:
    """The loop as a SimClock: microseconds."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> int:
        return self._loop.now // MICROSECOND

    def at(self, time: int, handler: Callable[[Any], None], argument: Any) -> None:
        self._loop.at(time * MICROSECOND, handler, argument, context=self._loop.root.context)

    def after(self, delay: int, handler: Callable[[Any], None], argument: Any) -> None:
        self.at(self.now + delay, handler, argument)


@final
class Network:
    """All links, and who is at their ends now."""

    def __init__(self, options: Options, loop: SimLoop, injected: Counter[str]) -> None:
        self.loop = loop
        self.options = options
        self.ends: dict[NodeId, SimTransport] = {}
        self.cuts: Counter[Link] = Counter()
        self._sim = SimNetwork(options, LoopClock(loop), injected, self._deliver)  # type: ignore[arg-type]
        self._calm = False
        self._met: set[tuple[Process, Process]] = set()  # pairs of lives that have accepted each other
        self._rng = options.stream("calls")
        self._asked: dict[asyncio.Future[Any], Process] = {}  # calls under way, and who works on them
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.piece_bytes = options.piece_bytes

    @property
    def clogged(self) -> dict[Link, int]:
        return self._sim.clogged

    def cut(self, links: list[Link]) -> None:
        self.cuts.update(links)
        self._sim.cut(links)

    def mend(self, links: list[Link]) -> None:
        self.cuts.subtract(links)
        self._sim.mend(links)
        self._met.clear()  # connections did not outlive it: who meets again checks the other again

    def hold(self, to: NodeId, kinds: tuple[type, ...]) -> Hold:
        """Messages of these kinds to `to` wait from now on."""
        return self._sim.hold(to, kinds)

    def release(self, hold: Hold) -> None:
        self._sim.release(hold)

    def calm(self, isolated: list[NodeId]) -> None:
        self.cuts.clear()
        self._sim.calm(isolated)
        self._met.clear()

    def is_open(self, sender: NodeId, to: NodeId) -> bool:
        return to in self.ends and self.ends[to].process.alive and self.cuts[sender, to] <= 0

    def send(self, process: Process, messages: list[Message]) -> None:
        """Once `process` is through with what holds it up."""
        if process.busy_until > self.loop.now:
            self.loop.at(process.busy_until, self._sim.send, messages, context=process.context)
        elif process.alive:
            self._sim.send(messages)

    # Calls: what is asked and answered, not just sent

    def _delay(self) -> int:
        return int(self.options.network_delay * MICROSECOND * (0.5 + self._rng.random()))

    async def ask(self, sender: "SimTransport", to: NodeId, work: "Work", timeout: float = ASK_SECONDS) -> Any:
        """What the coroutine that `work` makes of the other end returns there. Raises Lost, or what it raises."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        self._at_root(self._delay(), self._begin, sender, to, work, answer)
        try:
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            raise Lost("nothing was heard") from None
        finally:
            self._asked.pop(answer, None)

    def _at_root(self, delay: int, callback: Callable[..., object], *arguments: Any) -> None:
        self.loop.at(self.loop.now + delay, callback, *arguments, context=self.loop.root.context)

    def _begin(self, sender: "SimTransport", to: NodeId, work: "Work", answer: "asyncio.Future[Any]") -> None:
        end = self.ends.get(to)
        if answer.done() or self.cuts[sender.identity.node_id, to] > 0:
            return
        if end is None or not end.process.alive:
            self._at_root(self._delay(), _fail, answer, "the connection is refused")
        elif self._accepted(sender, end):
            self._asked[answer] = end.process
            end.process.call_soon(self._work, sender, end, work, answer)

    def _work(self, sender: "SimTransport", end: "SimTransport", work: "Work", answer: "asyncio.Future[Any]") -> None:
        task = self.loop.create_task(work(end))
        self._tasks[task] = None

        def done(task: "asyncio.Task[Any]") -> None:
            self._tasks.pop(task)
            self._at_root(self._delay(), self._end, sender, end, task, answer)

        task.add_done_callback(done)

    def _end(
        self, sender: "SimTransport", end: "SimTransport", task: "asyncio.Task[Any]", answer: "asyncio.Future[Any]"
    ) -> None:
        cut = self.cuts[end.identity.node_id, sender.identity.node_id] > 0
        if task.cancelled():
            _fail(answer, "the other end was stopped")
        elif answer.done() or cut or not end.process.alive:
            task.exception()
        elif task.exception() is not None:
            answer.set_exception(task.exception())  # type: ignore[arg-type]
        else:
            answer.set_result(task.result())

    def died(self, process: Process, node_id: NodeId, power: bool) -> None:
        """Its kernel resets its connections and refuses new ones; without power nobody hears anything."""
        if power:
            return
        for answer in [answer for answer, worker in self._asked.items() if worker is process]:
            self._at_root(self._delay(), _fail, answer, "the connection was reset")
        for other in list(self.ends.values()):
            link = (other.identity.node_id, node_id)
            if other.process.alive and other.process is not process and self.cuts[link] <= 0:
                self._at_root(self._delay(), other.process.call_soon, other.unreachable, node_id)

    def _deliver(self, message: Message) -> None:
        end = self.ends.get(message.to)
        sender = self.ends.get(message.sender)
        if end is None or not end.process.alive:
            return
        if sender is not None and sender.process.alive and not self._accepted(sender, end):
            return
        end.arrived(message)

    def _accepted(self, sender: "SimTransport", end: "SimTransport") -> bool:
        pair = (sender.process, end.process)
        if pair in self._met:
            return True
        for one, other in ((sender, end), (end, sender)):
            reason = other.check_peer(one.identity)
            if reason is not None:
                one.process.call_soon(one.refused, PeerRefused(f"{other.identity.node_id:x} refuses us: {reason}"))
                return False
        self._met.add(pair)
        return True


@final
class SimTransport(Transport):
    """One member's end, of one of its lives."""

    def __init__(self, network: Network, process: Process, identity: PeerIdentity) -> None:
        self.process = process
        self.identity = identity
        self.listening: list[str] = []
        self.check_peer: Callable[[PeerIdentity], str | None] = lambda peer: None
        self.on_refused: Callable[[PeerRefused], None] = lambda error: None
        self.on_unreachable: Callable[[NodeId], None] | None = None
        self._network = network
        self.calls: SimLeaderCalls | None = None
        self.receive_snapshot: SnapshotReceiver | None = None
        self._receive: Receive | None = None
        self._inbox: list[Message] = []
        self._peers: list[NodeId] = []

    async def start(self, receive: Receive, receive_snapshot: SnapshotReceiver | None = None) -> None:
        self._receive = receive
        self.receive_snapshot = receive_snapshot
        self._network.ends[self.identity.node_id] = self

    def send(self, messages: list[Message]) -> None:
        self._network.send(self.process, [message for message in messages if message.to in self._peers])

    async def send_snapshot(self, to: NodeId, header: SnapshotHeader, reader: SnapshotReader) -> None:
        """Piece by piece; any of them may be the last one that arrives."""
        if to not in self._peers:
            raise SnapshotFailed(f"{to:x} is no peer")
        network = self._network
        arrival: Any = None
        try:
            arrival = await network.ask(self, to, lambda end: end.snapshots().begin(header))
            for position, offset, size in pieces(header.files, arrival.offsets, network.piece_bytes):
                data = reader.read(header.files[position].name, offset, size)
                await network.ask(self, to, lambda end, at=(position, offset, data): arrival.write(*at))
            await network.ask(self, to, lambda end: arrival.finish(), timeout=10 * ASK_SECONDS)
        except BaseException as error:
            end = network.ends.get(to)
            if arrival is not None and end is not None:
                end.process.call_soon(arrival.abandon)
            if isinstance(error, Lost):
                raise SnapshotFailed(str(error)) from error
            raise

    def snapshots(self) -> SnapshotReceiver:
        assert self.receive_snapshot is not None
        return self.receive_snapshot

    def unreachable(self, node_id: NodeId) -> None:
        if self._receive is not None and self.on_unreachable is not None and node_id in self._peers:
            self.on_unreachable(node_id)

    def set_peers(self, peers: dict[NodeId, list[str]]) -> None:
        self._peers = [peer for peer in peers if peer != self.identity.node_id]

    def connected(self) -> frozenset[NodeId]:
        own = self.identity.node_id
        return frozenset([peer for peer in self._peers if self._network.is_open(own, peer)])

    async def stop(self) -> None:
        if self._receive is not None:
            self._receive = None
            if self._network.ends.get(self.identity.node_id) is self:
                del self._network.ends[self.identity.node_id]

    def refused(self, error: PeerRefused) -> None:
        self.on_refused(error)

    def arrived(self, message: Message) -> None:
        """What comes at the same moment is what one read brings."""
        if not self._inbox:
            self.process.call_soon(self._hand_over)
        self._inbox.append(message)

    def _hand_over(self) -> None:
        inbox, self._inbox = self._inbox, []
        if self._receive is not None:
            self._receive(inbox)


Work = Callable[[SimTransport], Coroutine[Any, Any, Any]]


def _fail(answer: "asyncio.Future[Any]", reason: str) -> None:
    if not answer.done():
        answer.set_exception(Lost(reason))


@final
class SimLeaderCalls(LeaderCalls):
    def __init__(self, host: KvServer, network: Network, transport: SimTransport) -> None:
        super().__init__(host)
        self._network = network
        self._transport = transport
        transport.calls = self

    async def ask(self, member: int, method: str, request: bytes, timeout: float) -> bytes:
        try:
            answer = await self._network.ask(
                self._transport, member, lambda end: _answer(end, method, request), timeout
            )
        except Lost as error:
            raise (TIMEOUT if "nothing" in str(error) else TIMEOUT_CONNECTION_LOST).fresh() from None
        if isinstance(answer, KvError):
            raise answer.fresh()
        return bytes(answer)

    async def close(self) -> None:
        pass


async def _answer(end: SimTransport, method: str, request: bytes) -> bytes | KvError:
    assert end.calls is not None
    try:
        return await end.calls.answer(method, request)
    except KvError as error:
        return error
