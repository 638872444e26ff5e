"""World: the members, what surrounds them, the phases of a run and its verdict.

    safety      faults, clients and watchers
    liveness    faults stop for a random majority, the core; the others are killed. The core must elect a leader, answer
                whatever waits, take a write at each of its members
    the end     the others come back; all must agree: applied index, whole state, history; watchers are told everything

While it runs: an index applied by two members holds the same entry, and leaves both with the same revisions; a term has
one leader; nothing is logged as an error; nobody dies without a reason.
"""

import asyncio
import logging
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Final, final

import structlog
from structlog.typing import EventDict

from kvstore.mvcc.hash import damaged_key
from kvstore.mvcc.leases import LeaseChange
from kvstore.pb import history_pb2
from kvstore.pb import rpc_pb2 as pb
from kvstore.server import joining
from kvstore.server.bootstrap import BootstrapError
from kvstore.server.server import KvServer
from raft.errors import PeerRefused
from raft.node import Status
from raft.types import Entry, NodeId, Role
from tests.e2e.checkers import Undecided, check_linearizable
from tests.e2e.history import History, Outcome
from tests.e2e.watches import WatchLog, check_watch_logs
from tests.kvstore.state.support import live_bytes, state_hash
from tests.sim.member import checks
from tests.sim.member.admins import Administrator, check_users
from tests.sim.member.changes import Operator, ask_members
from tests.sim.member.clients import Asked, Client, compact_now_and_then
from tests.sim.member.leases import Holder, LeaseLog, check_leases
from tests.sim.member.loop import MILLISECOND, SECOND, SimLoop, Stuck
from tests.sim.member.marks import MARKS, mark_history
from tests.sim.member.member import Member
from tests.sim.member.nemesis import Fault, Nemesis
from tests.sim.member.network import Network
from tests.sim.member.options import Options
from tests.sim.member.watchers import Watcher

ELECTIONS_MAX: Final = 20  # election timeouts that the core may take to find a leader
_STEP: Final = 0.02  # seconds between two looks of the world at a condition
_ONLY_SHOWN: Final = frozenset({"client", "log", "raft"})  # events that are told only where somebody reads them
_LOUD: Final = frozenset({"error", "critical", "exception"})


class Violation(AssertionError):
    pass


@final
class World:
    def __init__(self, options: Options, faults: list[Fault], path: Path, trace: list[str] | None = None) -> None:
        self.options = options
        self.path = path
        self.loop = SimLoop()
        self.injected: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()
        self.hash = 0
        self.tracing = trace is not None
        self._trace = trace
        self.calm = False  # no more faults
        self.stopping = False  # clients begin nothing more
        self.begun = 0
        self.values = 0
        self.newest_revision = 1  # that anybody was told of
        self.compacted = 0  # the highest that anybody asked for
        self.final_revision: int | None = None
        self.history = History()
        self.watches: list[WatchLog] = []
        self.leases: list[LeaseLog] = []
        self.applied_at: dict[int, int] = {}  # index -> when anybody first applied it
        self.users_added: set[str] = set()  # acknowledged
        self.gone_at: dict[int, int] = {}  # lease -> when it was first gone anywhere
        self.pending: dict[str, Asked] = {}
        self.log: dict[int, Entry] = {}  # applied by anybody
        self._after: dict[int, tuple[int, int, int]] = {}  # index -> revisions and time behind it
        self._leaders: dict[int, NodeId] = {}  # by term
        self._complaints: list[str] = []
        self._rng = options.stream("world")
        self.network = Network(options, self.loop, self.injected)
        self.members = [Member(self, number) for number in range(1, options.members + 1)]
        self.by_name = {member.name: member for member in self.members}
        self.removing: set[NodeId] = set()  # whose removal was asked for
        self.leaving: list[Member] = []  # removed, and maybe still running
        self._operator = Operator(self)
        self._watchers = [Watcher(self, number) for number in range(options.watchers)]
        self._nemesis = Nemesis(self, faults)

    # What happens is told here

    def note(self, member: Member | None, event: str, detail: str = "") -> None:
        name = member.name if member is not None else "-"
        term, log = "-", ""
        if member is not None and member.server is not None and member.server.node._raw is not None:
            raw, store = member.server.node._raw, member.server.store
            term = f"{raw.role.name[0]} t{raw.term}"
            log = f"{store.applied_index}/{raw.commit_index}/{raw.raft.log.last_index} r{store.current_revision}"
        line = f"{self.loop.now / MILLISECOND:11.3f} {name:>4} {event:<14} {term:>6} {log:<24} {detail}"
        if event not in _ONLY_SHOWN:
            self.hash = zlib.crc32(line.encode(), self.hash)
        if self._trace is not None:
            self._trace.append(line)

    def mark(self, name: str) -> None:
        assert name in MARKS, f"no such mark: {name}"
        self.marks[name] += 1

    def complain(self, text: str) -> None:
        if len(self._complaints) < 10:
            self._complaints.append(text)
            self.note(None, "violation", text.splitlines()[0])

    def name_of(self, node_id: NodeId) -> str:
        return next((member.name for member in self.members if member.id == node_id), f"{node_id:x}")

    def answered(self, asked: Asked) -> None:
        if asked.kind != "hash":
            self.newest_revision = max(self.newest_revision, asked.revision)
        self._mark_answer(asked)

    def _mark_answer(self, asked: Asked) -> None:
        member = self.by_name[asked.member]
        if not member.leads:
            if asked.wrote:
                self.mark("forwarded")
            elif asked.method == "Range" and not asked.stale:
                self.mark("read_by_follower")
        if asked.method == "Compact":
            self.mark("compacted")
        elif asked.method == "Txn" and not asked.response.succeeded:
            self.mark("txn_failed")

    # What a member tells

    def observe(self, member: Member, server: KvServer) -> None:
        """Before it starts: look over the shoulder of its apply."""
        machine = server.node._state_machine
        apply, applied = machine.apply, server.applied

        async def observed_apply(entries: list[Entry]) -> None:
            for entry in entries:
                known = self.log.setdefault(entry.index, entry)
                self.applied_at.setdefault(entry.index, self.loop.now)
                if (known.term, known.kind, known.data) != (entry.term, entry.kind, entry.data):
                    self.complain(f"{member.name} applies {entry}, another has applied {known}")
            await apply(entries)

        def observed_applied(index: int, term: int) -> None:
            store = server.store
            now = (store.current_revision, store.compact_revision, store.last_entry_time)
            if self._after.setdefault(index, now) != now:
                self.complain(f"{member.name} is at {now} after {index}, another at {self._after[index]}")
            applied(index, term)

        lessor, changed = server.leases.lessor, server.leases.lessor.changed

        def observed_leases(changes: list[LeaseChange], now: float) -> None:
            for lease, row, _ in changes:
                if row is None:
                    self.gone_at.setdefault(lease, self.loop.now)
            changed(changes, now)

        lessor.changed = observed_leases  # type: ignore[method-assign]
        hub, cut = server.hub, server.hub._cut

        def observed_cut(watcher: Any, next_revision: int) -> None:
            self.mark("watch_cut")
            cut(watcher, next_revision)

        hub._cut = observed_cut  # type: ignore[method-assign]
        server.store.on_swap.append(lambda: self.mark("snapshot_installed"))
        machine.apply = observed_apply  # type: ignore[method-assign]
        server.applied = observed_applied  # type: ignore[method-assign]
        server.node.on_change.append(lambda status: self._changed(member, status))
        if member.boots > 1 and server.store.applied_index < max(self.log, default=0):
            self.mark("replayed")
        self.note(member, "starts", f"boot {member.boots}, applied {server.store.applied_index}")

    def _changed(self, member: Member, status: Status) -> None:
        self.note(member, "changed", f"leader {self.name_of(status.leader_id)}")
        if status.role is Role.LEADER and self._leaders.setdefault(status.term, member.id) != member.id:
            self.complain(f"{member.name} leads term {status.term}, so did {self.name_of(self._leaders[status.term])}")

    def join(self, member: Member) -> None:
        self.note(member, "joins")
        self.members.append(member)
        self.by_name[member.name] = member
        member.start()

    def restart(self, member: Member) -> None:
        if member.process is None and member in self.members:
            member.start()

    def member_failed(self, member: Member, error: BaseException) -> None:
        """It ended itself."""
        self.note(member, "died", repr(error).replace(str(self.path), ""))
        if member.id in self.removing and isinstance(error, PeerRefused):
            self.mark("member_gone")
            member.kill(power=False)
            if member in self.members:
                self.members.remove(member)
            return
        if isinstance(error, BootstrapError) and member.config.initial_cluster_state == "existing":
            # Nobody answered, or knew it yet. An operator tries again.
            member.kill(power=False)
            self.loop.at(self.loop.now + SECOND, self.restart, member, context=self.loop.root.context)
            return
        injected = "injected" in str(error) or "injected" in str(error.__cause__)
        if injected:
            self.mark("died_of_its_disk")
        else:
            self.complain(f"{member.name} died: {error!r}")
        member.kill(power=False)
        self._back_later(member)

    def power_gone(self, member: Member) -> None:
        self.note(member, "power_gone", "in a save")
        self.mark("power_cut_in_save")
        member.kill(power=True)
        self._back_later(member)

    def member_stopped(self, member: Member) -> None:
        self.note(member, "stopped")
        self.mark("stopped")
        self._back_later(member)

    def _back_later(self, member: Member) -> None:
        span = self._rng.between(1, self.options.election_timeout)
        if self.calm:  # it was going when the calm began, and belongs to the core: the others were killed
            self.loop.at(self.loop.now + span, self.restart, member, context=self.loop.root.context)
        else:
            self._nemesis.later(span, self.restart, member)

    # What is logged

    def processor(self, logger: Any, method: str, event: EventDict) -> str:
        process = self.loop.current
        if process.alive:
            text = str(event.get("event")) + "".join([f" {k}={v}" for k, v in event.items() if k != "event"])
            if method in _LOUD and process is not self.loop.root:
                self.complain(f"{process.name} logged {method}: {text}")
            elif self.tracing:
                self.note(self.by_name.get(process.name.partition(".")[0]), "log", text)
        raise structlog.DropEvent

    def note_log(self, text: str) -> None:
        process = self.loop.current
        if self.tracing and process.alive:
            self.note(self.by_name.get(process.name.partition(".")[0]), "raft", text)

    # Phases

    def run(self) -> None:
        """Raises Violation."""
        structlog.configure(processors=[self.processor], wrapper_class=structlog.BoundLogger)
        raft_log = logging.getLogger("raft")
        handler, raft_log.propagate = _LogHandler(self), False
        raft_log.addHandler(handler)
        level, raft_log.level = raft_log.level, logging.INFO if self.tracing else logging.ERROR
        asyncio.set_event_loop(self.loop)
        real_ask, joining.ask_members = joining.ask_members, self._ask_members
        try:
            self.loop.run_until_complete(self._main())
        except Stuck as error:
            raise Violation(str(error)) from error
        finally:
            joining.ask_members = real_ask
            asyncio.set_event_loop(None)
            raft_log.removeHandler(handler)
            raft_log.propagate, raft_log.level = True, level
            structlog.reset_defaults()
            self.loop.bury()

    async def _ask_members(self, url: str, timeout: float, channel_factory: object) -> bytes:
        return await ask_members(self, url, timeout)

    async def _main(self) -> None:
        for member in self.members:
            member.start()
        tasks = [asyncio.ensure_future(Client(self, n).run()) for n in range(1, self.options.clients + 1)]
        tasks += [asyncio.ensure_future(watcher.run()) for watcher in self._watchers]
        if self.options.changes:
            tasks.append(asyncio.ensure_future(self._operator.run()))
        if self.options.administered:
            tasks.append(asyncio.ensure_future(Administrator(self).run()))
        if self.options.leases:
            tasks += [asyncio.ensure_future(Holder(self, number).run()) for number in range(1, 4)]
        if self.options.compactions:
            tasks.append(
                asyncio.ensure_future(compact_now_and_then(self, self.options.compactions, lambda: self.stopping))
            )
        while self.loop.now < self.options.safety:
            self._check(tasks)
            await asyncio.sleep(0.1)
        await self._liveness(tasks)
        await self._end(tasks)

    def _check(self, tasks: "list[asyncio.Future[Any]]") -> None:
        for process, context in self.loop.errors:
            if process.alive:
                error = context.get("exception")
                self.complain(f"{process.name}: {context.get('message')}: {error!r}{_where(error)}")
        self.loop.errors.clear()
        for task in tasks:
            if task.done() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]  # a bug of the simulator
        if self._complaints:
            raise Violation("\n".join(self._complaints))

    async def _until(self, tasks: "list[asyncio.Future[Any]]", what: str, seconds: float, condition: Any) -> None:
        end = self.loop.now + int(seconds * SECOND)
        while not condition():
            self._check(tasks)
            if self.loop.now > end:
                state = "\n".join([self._state(member) for member in self.members])
                raise Violation(f"no liveness: {what} within {seconds:.1f} s\n{state}")
            await asyncio.sleep(_STEP)
        self._check(tasks)

    def _state(self, member: Member) -> str:
        if member.server is None:
            return f"{member.name} down"
        return f"{member.name} {member.server.status()} applied {member.server.store.applied_index}"

    async def _liveness(self, tasks: "list[asyncio.Future[Any]]") -> None:
        self._nemesis.stop()
        self.calm = True
        count = len(self.members)
        least = count if self.options.changes else count // 2 + 1  # a majority of which configuration?
        core = self._rng.sample(self.members, self._rng.between(least, count))
        core = [member for member in self.members if member in core]
        others = [member for member in self.members if member not in core]
        for member in others:
            if member.process is not None:
                member.kill(power=self._rng.chance(0.5))
        for member in core:
            if member.process is None:
                member.start()
            elif member.process.paused:
                member.process.resume()
            member.fail_next, member.cut_next, member.slow_until = False, 0, 0
        self.network.calm([])
        self.note(None, "calm", "core " + " ".join([member.name for member in core]))
        election = self.options.election_timeout / SECOND * 1.5  # clocks may run slowly
        await self._until(tasks, "a leader", ELECTIONS_MAX * election, lambda: any(member.leads for member in core))
        self.stopping = True
        # A request's own deadline is the last answer: etcd's 5 s and two elections.
        patience = 2 * (7.0 + self.options.election_ms / 500 + ELECTIONS_MAX * election)
        await self._until(tasks, "pending requests are answered", patience, lambda: not self.pending)
        if self.options.changes:
            settled = asyncio.ensure_future(self._operator.settle())
            await self._until(tasks, "the members are known", patience, settled.done)
            await self._until(tasks, "removed members end", patience, self._none_leaves)
            core = list(self.members)
        for member in core:
            await self._until(tasks, f"{member.name} serves", patience, lambda member=member: member.serves)
            if member.server is not None and not member.server.is_learner:
                await self._write(tasks, member, patience)
        # Whose client has given up is answered at the server's own deadline.
        await self._until(tasks, "nobody waits in the core", patience, lambda: not any(map(_waiting, core)))
        for member in others:
            member.start()

    async def _write(self, tasks: "list[asyncio.Future[Any]]", member: Member, patience: float) -> None:
        """A put that goes through, at this member."""
        client = Client(self, 1000 + self.members.index(member) + 10 * len(self.history.operations))
        end = self.loop.now + int(patience * SECOND)
        while True:
            asked = client.ask("put", member, pb.PutRequest(key=client.epoch_keys()[0], value=client.value()))
            asked.wrote = {asked.request.key: asked.request.value}
            if await client.finish(asked, "Put", pb.PutResponse, timeout=3.0) is not None:
                return
            self._check(tasks)
            if self.loop.now > end:
                raise Violation(f"no liveness: {member.name} takes no write\n{self._state(member)}")
            await asyncio.sleep(_STEP)

    async def _end(self, tasks: "list[asyncio.Future[Any]]") -> None:
        patience = 60 + 40 * self.options.election_timeout / SECOND
        await self._until(tasks, "all members serve", patience, lambda: all(member.serves for member in self.members))
        await self._until(tasks, "all members have published", patience, self._published)
        await self._until(tasks, "leases end", patience, lambda: all(_leases(member) == 0 for member in self.members))
        voters = [member for member in self.members if member.server and not member.server.is_learner]
        await self._write(tasks, self._rng.choice(voters), patience)
        await self._until(tasks, "all have applied the same", patience, self._agree)
        truth = checks.Truth(self.log)
        self.final_revision = max(truth.model.events, default=1)
        await self._until(tasks, "watchers were told everything", patience, lambda: all(task.done() for task in tasks))
        for complaint in check_leases(self.leases, truth, self.applied_at, self.gone_at, self.options.clock_error):
            self.complain(complaint)  # first: where the states differ from the model by a lease, this says why
        for member in self.members:
            await self._compare(member, truth)
        self._check(tasks)
        self._judge(truth)

    def _none_leaves(self) -> bool:
        return all(member.process is None for member in self.leaving)

    def _published(self) -> bool:
        return all(member.server is not None and member.server.published.is_set() for member in self.members)

    def _agree(self) -> bool:
        states = {member.server.store.applied_index if member.server else None for member in self.members}
        commits = {member.server.status().last_index if member.server else None for member in self.members}
        return len(states | commits) == 1

    async def _compare(self, member: Member, truth: checks.Truth) -> None:
        assert member.server is not None
        assert self.members[0].server is not None
        store, model = member.server.store, truth.model
        if state_hash(store) != state_hash(self.members[0].server.store):
            self.complain(f"the states of {member.name} and {self.members[0].name} differ at {store.applied_index}")
        if store.live.keys != live_bytes(store):
            self.complain(f"{member.name} counts {store.live.keys} live bytes, its rows have {live_bytes(store)}")
        with store.view() as view:
            if await damaged_key(view) is not None:
                self.complain(f"the rows of {member.name} contradict each other")
        if (store.current_revision, store.compact_revision) != (model.revision, model.compacted):
            self.complain(
                f"{member.name} is at {store.current_revision}/{store.compact_revision}, "
                f"the model at {model.revision}/{model.compacted}"
            )
        kvs = {key: store.get_latest(key) for key in model.keys}
        for key, kv in model.keys.items():
            if kvs[key] is None or type(kv).FromString(kvs[key]) != kv:
                self.complain(f"{member.name} has {key!r} as {kvs[key]!r}, the model {kv}")
        assert member.link is not None
        request = history_pb2.ReadHistoryRequest(key=b"\0", range_end=b"\0")
        data = await member.link.call("/kvstore.v1.History/Read", request.SerializeToString(), 60.0)
        events = [change.event for change in checks.history_changes(data)]
        expected = [event for revision in sorted(model.events) for event in model.events[revision]]
        if events != expected:
            self.complain(f"{member.name} tells a history of {len(events)} changes, the model has {len(expected)}")

    def _judge(self, truth: checks.Truth) -> None:
        operations: list[Asked] = self.history.operations  # type: ignore[assignment]
        complaints = checks.check_requests(operations, truth)
        complaints += checks.check_reads(operations, truth)
        complaints += checks.check_order(operations, truth)
        complaints += check_users(self)
        complaints += check_watch_logs(self.watches, truth, self.compacted)
        self.history.operations = [
            one for one in operations if not (one.kind == "bad" or (one.outcome is Outcome.UNKNOWN and not one.wrote))
        ]
        try:
            complaints += check_linearizable(self.history)
        except Undecided as undecided:
            complaints.append(f"undecided: {undecided}")
        mark_history(self, operations, truth)
        if complaints:
            self.complain("\n".join(complaints[:10]))
            raise Violation(f"{len(complaints)} complaints:\n" + "\n".join(complaints[:10]))


def _leases(member: Member) -> int:
    return len(member.server.leases.lessor) if member.server is not None else 0


class _LogHandler(logging.Handler):
    """What raft/ logs."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR and "dies" not in text:  # that comes as wait_failed too
            self._world.complain(f"logged {record.levelname}: {text}")
        else:
            self._world.note_log(text)


def _waiting(member: Member) -> int:
    server = member.server
    assert server is not None
    return server._batcher.waiting + len(server.reads._asked) + len(server.reads._waiting)


def _where(error: BaseException | None) -> str:
    frames = []
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " in " + " < ".join(reversed(frames[-4:])) if frames else ""
