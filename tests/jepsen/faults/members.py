"""Members that are removed, added, promoted and lose their data; leaders that hand over; the upkeep of an operator."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Member, wait_for
from tests.jepsen.faults.base import Fault, Repeated, System, push
from tests.jepsen.faults.partitions import Partition, isolate

CALL_SECONDS = 5.0
CHANGE_SECONDS = 60.0  # all members must have been connected for some seconds before one may be added
UPKEEP_SECONDS = (0.1, 0.3)
PUSHES, PUSH_BYTES = 20, 2000  # at once, until a log has forgotten
NOT_YET = ("unhealthy cluster", "not enough started members", "in sync with leader", "leader changed")
REMOVED = "has been removed from the cluster"  # what a member says before it ends
WIPED = "from another data directory"
EXISTING = "--initial-cluster-state=existing"


class Changes:
    """What an operator asks for, from whoever answers, until it is done."""

    def __init__(self, system: System) -> None:
        self._system = system

    def ask(self, action: Callable[[rpc_pb2_grpc.ClusterStub], object], what: str) -> None:
        def done() -> bool:
            for member in self._system.cluster.running:
                try:
                    action(rpc_pb2_grpc.ClusterStub(member.channel))
                except grpc.RpcError as error:
                    if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                        continue
                    if "not supported for learner" in error.details():
                        continue
                    if any(text in error.details() for text in NOT_YET):
                        return False
                    raise
                return True
            return False

        wait_for(done, what, CHANGE_SECONDS)

    def listed(self) -> dict[str, rpc_pb2.Member]:
        """By peer URL: who is a member, as a quorum knows it."""
        found: dict[str, rpc_pb2.Member] = {}

        def read(stub: rpc_pb2_grpc.ClusterStub) -> None:
            answer = stub.MemberList(rpc_pb2.MemberListRequest(linearizable=True), timeout=CALL_SECONDS)
            found.clear()
            found.update({url: one for one in answer.members for url in one.peerURLs})

        self.ask(read, "a list of members")
        return found

    def remove(self, member: Member) -> None:
        """It may be that it is done, and not known to be."""

        def removed(stub: rpc_pb2_grpc.ClusterStub) -> None:
            row = self.listed().get(member.peer_url)
            if row is not None:
                stub.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=row.ID), timeout=CALL_SECONDS)

        self.ask(removed, f"{member.name} is removed")

    def add(self, member: Member, *, learner: bool) -> None:
        """With an empty data directory, as somebody new at the same address."""

        def added(stub: rpc_pb2_grpc.ClusterStub) -> None:
            if member.peer_url not in self.listed():
                request = rpc_pb2.MemberAddRequest(peerURLs=[member.peer_url], isLearner=learner)
                stub.MemberAdd(request, timeout=CALL_SECONDS)

        def promoted(stub: rpc_pb2_grpc.ClusterStub) -> None:
            row = self.listed()[member.peer_url]
            if row.isLearner:
                stub.MemberPromote(rpc_pb2.MemberPromoteRequest(ID=row.ID), timeout=CALL_SECONDS)

        self.ask(added, f"{member.name} is added")
        shutil.rmtree(member.data_dir, ignore_errors=True)
        if EXISTING not in member.arguments:
            member.arguments.append(EXISTING)
        member.start()
        if learner:
            self.ask(promoted, f"{member.name} is promoted")


class Removed(Fault):
    """One is removed, and later joins as somebody new: as a voter at once, or as a learner that is promoted."""

    leaves_majority = True
    who = "one"
    learner = False

    def begin(self) -> str:
        self.changes = Changes(self.system)
        self.victim = self.pick(self.who)[0]
        self.victim.expected.append(REMOVED)
        self.changes.remove(self.victim)
        return self.victim.name

    def bites(self) -> str:
        self.victim.wait_exit()  # it hears of it
        return "it is still listed" if self.victim.peer_url in self.changes.listed() else ""

    def end(self) -> None:
        with contextlib.suppress(AssertionError):  # it may be cut off, or be told late
            self.victim.wait_exit(5)
        self.victim.kill()
        self.changes.add(self.victim, learner=self.learner)

    def healed(self) -> str:
        self.victim.wait_ready()
        rows = self.changes.listed()
        learners = [url for url, row in rows.items() if row.isLearner]
        expected = {member.peer_url for member in self.system.cluster.members}
        return "" if rows.keys() == expected and not learners else f"listed are {sorted(rows)}, learners {learners}"


class Wiped(Removed):
    """One comes back without its data and with its old flags: nobody listens to it. Then it is replaced."""

    learner = True

    def begin(self) -> str:
        self.changes = Changes(self.system)
        self.victim = self.pick("one")[0]
        self.victim.expected += [WIPED, REMOVED]
        self.victim.kill()
        shutil.rmtree(self.victim.data_dir)
        self.victim.start()
        return self.victim.name

    def bites(self) -> str:
        self.victim.wait_exit()
        return "" if WIPED in self.victim.log() else self.victim.log()[-500:]

    def end(self) -> None:
        with contextlib.suppress(AssertionError):
            self.victim.wait_exit(10)
        self.victim.kill()
        self.changes.remove(self.victim)
        self.changes.add(self.victim, learner=self.learner)


class LeaderTransfer(Repeated):
    """Leadership is handed to another member, over and over."""

    layer = "upkeep"
    leaves_majority = True

    def prepare(self) -> str:
        self.moved = 0
        return "to all in turn"

    def again(self) -> None:
        leader = self.system.cluster.leader()
        other = self.rng.choice([one for one in self.system.cluster.members if one is not leader])
        status = other.status(timeout=0.5)
        if leader is not None and status is not None:
            request = rpc_pb2.MoveLeaderRequest(targetID=status.header.member_id)
            with contextlib.suppress(grpc.RpcError):
                rpc_pb2_grpc.MaintenanceStub(leader.channel).MoveLeader(request, timeout=CALL_SECONDS)
                self.moved += 1
        self.pause(*UPKEEP_SECONDS)

    def bites(self) -> str:
        wait_for(lambda: self.moved >= 3, "three transfers")
        return ""

    def healed(self) -> str:
        self.system.cluster.wait_leader()
        return ""


class Upkeep(Repeated):
    """Compaction at the newest revision, defragmentation, snapshots for a backup: of members at random."""

    layer = "upkeep"
    leaves_majority = True
    what: tuple[str, ...] = ("compact", "defrag", "snapshot")

    def prepare(self) -> str:
        self.done: Counter[str] = Counter()
        return " ".join(self.what)

    def again(self) -> None:
        member = self.rng.choice(self.system.cluster.members)
        what = self.rng.choice(self.what)
        with contextlib.suppress(grpc.RpcError):
            getattr(self, f"_{what}")(member)
            self.done[what] += 1
        self.pause(*UPKEEP_SECONDS)

    def _compact(self, member: Member) -> None:
        read = rpc_pb2.RangeRequest(key=b"push")
        revision = self.system.cluster.kv(member).Range(read, timeout=CALL_SECONDS).header.revision
        request = rpc_pb2.CompactionRequest(revision=revision, physical=self.rng.random() < 0.5)
        self.system.cluster.kv(member).Compact(request, timeout=CALL_SECONDS)

    def _defrag(self, member: Member) -> None:
        stub = rpc_pb2_grpc.MaintenanceStub(member.channel)
        stub.Defragment(rpc_pb2.DefragmentRequest(), timeout=CALL_SECONDS)

    def _snapshot(self, member: Member) -> None:
        stub = rpc_pb2_grpc.MaintenanceStub(member.channel)
        pieces = list(stub.Snapshot(rpc_pb2.SnapshotRequest(), timeout=CALL_SECONDS))
        assert pieces, "an empty snapshot"

    def bites(self) -> str:
        def all_done() -> bool:
            push(self.system.cluster.running)  # something to compact
            return self.done.keys() == set(self.what)

        wait_for(all_done, f"each of {self.what}")
        return ""

    def healed(self) -> str:
        return ""


class Lagging(Partition):
    """One is cut off until what it lacks is no longer in the log, so that it needs a snapshot. Before it is heard again
    it is started anew: else what was under way to it on an old connection comes late, and may be all that it lacks."""

    layer = ""
    shape = staticmethod(isolate)

    def begin(self) -> str:
        what = super().begin()
        self.victim = next(one for one in self.system.cluster.members if all(one.name in pair for pair in self.pairs))
        others = [one for one in self.system.cluster.running if one is not self.victim]
        push(others, size=PUSH_BYTES)  # so that the newest segments have something that it lacks
        newest = {one.name: max(_segments(one)) for one in others}

        def forgotten() -> bool:
            push(others, size=PUSH_BYTES, count=PUSHES)
            return all(min(_segments(one)) > newest[one.name] for one in others)

        wait_for(forgotten, "a log that has forgotten what somebody lacks", CHANGE_SECONDS)
        self.victim.kill()
        self.victim.start()
        return what

    def healed(self) -> str:
        wait_for(lambda: "installed a snapshot" in self.victim.log(), f"{self.victim.name} installs a snapshot")
        self.victim.wait_ready()
        return super().healed()


def _segments(member: Member) -> list[str]:
    return [path.name for path in (member.data_dir / "log").glob("*.log")]


def upkeep(*what: str) -> type[Upkeep]:
    return type("Upkeep", (Upkeep,), {"what": what})


def removed(who: str, *, learner: bool) -> type[Removed]:
    return type(f"Removed_{who}", (Removed,), {"who": who, "learner": learner})


MEMBERS: dict[str, type[Fault]] = {
    "member-remove": removed("one", learner=False),
    "member-replace": removed("one", learner=True),
    "leader-remove": removed("leader", learner=True),
    "member-wipe": Wiped,
    "leader-transfer": LeaderTransfer,
    "compact": upkeep("compact"),
    "upkeep": Upkeep,
    "needs-snapshot": Lagging,
}
