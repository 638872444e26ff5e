"""Who the others are, and where: what the transport is told, and whom it may talk to.

    table      the members as of what this member has applied
    pending    members that a configuration in its log adds, not applied yet: raft counts them already
    told       the members as another one has them, while that is newer than our table

The third is for a member that is behind: one that has just joined, or comes back after a long time. It may
be led by somebody it has never heard of, whose entries are the only way to hear of him (thesis 4.2.1: who is
not in our configuration is listened to). So an unknown peer is let in; but to answer him, one needs his
address. Members therefore exchange what they know of each other when a stream between them comes up (rpc
Members), and whoever is behind learns.

Refused are only those who can do harm: a member that was removed (it never comes back, and would go on
campaigning), and one that has lost its data directory. The refused one learns it from the refusal, since
nobody replicates to it any more, and ends.
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.config import url_problem
from kvstore.errors import MALFORMED, KvError
from kvstore.pb.command_pb2 import MemberChange
from kvstore.pb.peer_pb2 import MemberRow, MembersRequest, MemberView
from kvstore.server.traffic import PeerTraffic
from kvstore.state.cluster import Member
from kvstore.version import ETCD_VERSION
from raft.errors import PeerRefused
from raft.transport.grpc import PeerIdentity
from raft.transport.identity import SOMEBODY_ELSE
from raft.types import Configuration, Index, NodeId

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

LEAVING_ELECTIONS: Final = 2  # election timeouts that a removed member is still talked to
NEVER: Final = 2**64
LOOK_UP_SECONDS: Final = 1.0  # one member's time to answer, and the least between two rounds
REMOVED: Final = (
    "this member has been removed from the cluster, for ever; move its data directory away. To bring it back, add "
    "it as a new one (kvctl member add) and start it with an empty --data-dir and --initial-cluster-state=existing"
)
LOST_DATA: Final = (
    "this member has started from another data directory before: what it had acknowledged is lost, so it must stay "
    "out; put the old data directory back"
)


@final
class Told:
    """The members as some member had them at `index`."""

    __slots__ = ("index", "members", "removed")

    def __init__(self, view: MemberView) -> None:
        """Raises ValueError when it cannot be true."""
        self.index: Index = view.index
        self.members = [Member.of(row.member, row.instance) for row in view.members]
        self.removed = list(view.removed)
        if not all(member.id and member.peer_urls for member in self.members):
            raise ValueError("a member without id or URLs")
        for url in [url for member in self.members for url in member.peer_urls]:
            if problem := url_problem(url):
                raise ValueError(f"{url}: {problem}")


@final
class Peers:
    """One per member. `refresh` after anything has changed that it is made of."""

    def __init__(self, server: "KvServer", told: Told | None) -> None:
        self._server = server
        self._told = told
        self.traffic = PeerTraffic(server.transport)
        self._pending: list[tuple[Index, Member]] = []  # until that index is applied
        self._to_ask: set[NodeId] = set()
        self._wanted = asyncio.Event()  # somebody is to be asked
        self._leaving: dict[NodeId, tuple[Member, float]] = {}  # removed just now, and until when we talk to it
        self._refusals: dict[NodeId, PeerRefused] = {}  # by the peer that has refused us
        self._connected: dict[NodeId, float] = {}  # since when
        self._table: dict[NodeId, Member] = {}
        self._members: dict[NodeId, Member] = {}
        self._removed: set[NodeId] = set()
        self.refresh()

    # What others ask

    def table(self) -> list[Member]:
        """The members as applied, in id order; the same objects until the table changes."""
        return list(self._table.values())

    def member(self, node_id: NodeId) -> Member | None:
        """Applied, or told by somebody who is ahead of us."""
        return self._members.get(node_id)

    @property
    def own(self) -> Member | None:
        """This member's row; None while it is behind its own addition, and once it is removed."""
        return self._table.get(self._server.member_id)

    def voters(self) -> list[Member]:
        return [member for member in self._table.values() if not member.is_learner]

    def name_of(self, node_id: NodeId) -> str:
        member = self._members.get(node_id)
        return (member.name if member is not None else "") or f"{node_id:x}"

    def urls_of(self, node_id: NodeId) -> list[str]:
        member = self._members.get(node_id)
        return [] if member is None else list(member.peer_urls)

    def connected_since(self, node_id: NodeId) -> float | None:
        """In seconds of the server's clock; None while there is no stream to it."""
        return self._connected.get(node_id)

    def is_pending(self, node_id: NodeId) -> bool:
        """A configuration in our log adds it, and is on our disk; it need not be committed."""
        return any(member.id == node_id for _, member in self._pending)

    def rows(self) -> list[Member]:
        """The members as applied, and those who are being added: they may be starting already."""
        rows = {member.id: member for _, member in self._pending}
        return list((rows | self._table).values())

    # What it is made of

    def refresh(self) -> None:
        cluster, applied = self._server.cluster, self._server.store.applied_index
        before, self._table = self._table, {member.id: member for member in cluster.members()}
        self._removed = set(cluster.removed())
        self._members = dict(self._table)
        if self._told is not None and self._told.index <= applied:
            self._told = None
        if self._told is not None:
            self._members = {member.id: member for member in self._told.members}
            self._removed.update(self._told.removed)
        if self._server.member_id in self._removed:
            self._server.removed()
        self._pending = [(until, member) for until, member in self._pending if until > applied]
        for _, member in self._pending:
            self._members.setdefault(member.id, member)
        self._refusals = {one: error for one, error in self._refusals.items() if one in self._members}
        self._let_leave([member for member in before.values() if member.id in self._removed])
        peers = [*self._members.values(), *(member for member, _ in self._leaving.values())]
        self._server.transport.set_peers(
            {one.id: list(one.peer_urls) for one in peers if one.id != self._server.member_id}
        )

    def _let_leave(self, removed: list[Member]) -> None:
        """The leader tells those who leave that they do (raft/core/membership.py): for that long, keep the streams."""
        server = self._server
        now = server.now()
        self._leaving = {one: left for one, left in self._leaving.items() if left[1] > now}
        seconds = LEAVING_ELECTIONS * server.config.election_timeout / 1000
        for member in removed:
            self._leaving[member.id] = (member, now + seconds)

    def expire(self, now: float) -> None:
        """Often, and cheap: stop talking to who has left."""
        if self._leaving and min([until for _, until in self._leaving.values()]) <= now:
            self.refresh()

    def on_configuration(self, configurations: list[tuple[Index, Configuration, bytes]]) -> None:
        """What the log holds has changed."""
        pending = []
        for index, configuration, context in configurations:
            # A joint one stays until its C_new is in the log, applied or not: the table does not follow it.
            until = NEVER if configuration.voters_outgoing and index == configurations[-1][0] else index
            if context and until > self._server.store.applied_index:
                change = MemberChange.FromString(context)
                if change.op == MemberChange.ADD:
                    pending.append((until, Member.of(change.member)))
        self._pending = pending
        self.refresh()

    def note_connected(self, connected: frozenset[NodeId], now: float) -> None:
        for node_id in sorted(connected - self._connected.keys()):
            self._connected[node_id] = now
            self._refusals.pop(node_id, None)
            self._ask([node_id])
        self._connected = {one: since for one, since in self._connected.items() if one in connected}

    # Who may talk to whom

    def check(self, peer: PeerIdentity) -> str | None:
        """Why `peer`, which is of this cluster, may not talk to us."""
        if peer.node_id in self._removed:
            return REMOVED
        member = self._members.get(peer.node_id)
        if member is None:
            self._ask(list(self._members))
            return None
        return LOST_DATA if member.instance not in (0, peer.instance) else None

    def refused(self, error: PeerRefused) -> None:
        """A peer does not talk to us."""
        text = str(error)
        if REMOVED in text:
            self._server.fail(PeerRefused(REMOVED))
        elif LOST_DATA in text:
            self._server.fail(error)
        elif SOMEBODY_ELSE in text:
            # Whom our table has there was replaced meanwhile. We are behind, and are told by whoever calls us.
            self._ask(list(self._members))
        else:
            self._refusals[int(text.partition(" ")[0], 16)] = error
            self._ask(list(self._members))

    def _ask(self, node_ids: list[NodeId]) -> None:
        self._to_ask.update(node_ids)
        self._wanted.set()

    async def run(self) -> None:
        """Ask whom there is to ask, until the server stops."""
        if self.own is None:
            self._ask(list(self._members))
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            asked, self._to_ask = sorted(self._to_ask - {self._server.member_id}), set()
            await asyncio.gather(*[self._exchange(node_id) for node_id in asked])
            self._judge()
            await asyncio.sleep(LOOK_UP_SECONDS)

    async def _exchange(self, node_id: NodeId) -> None:
        request = MembersRequest(view=view_of(self._server)).SerializeToString()
        try:
            answer = await self._server.leader_calls.ask(node_id, "Members", request, LOOK_UP_SECONDS)
            self._learn(MemberView.FromString(answer))
        except (KvError, DecodeError) as error:
            log.debug("no answer about the members", peer=self.name_of(node_id), reason=str(error))
            if node_id in self._connected:
                # It is there, and what it or we do not know yet may be the address of whoever leads.
                self._ask([node_id])

    def _learn(self, view: MemberView) -> None:
        """Believe whoever has applied more than we and everybody before."""
        known = self._server.store.applied_index if self._told is None else self._told.index
        if view.cluster_id == self._server.cluster_id and view.index > max(known, self._server.store.applied_index):
            try:
                self._told = Told(view)
            except ValueError as error:
                log.warning("dropped what a peer says about the members", reason=str(error))
                return
            self.refresh()

    async def answer(self, request: bytes) -> bytes:
        """`Members`: for whoever asks, also one who is only about to join."""
        try:
            asked = MembersRequest.FromString(request)
        except DecodeError:
            raise MALFORMED.fresh() from None
        if asked.HasField("view"):
            self._learn(asked.view)
        return view_of(self._server).SerializeToString()

    def _judge(self) -> None:
        """Fatal when so many refuse us that nobody is left to lead or to follow."""
        left = len(self._members) - len(self._refusals)
        if self.own is not None and self._refusals and left <= len(self._members) // 2:
            self._server.fail(next(iter(self._refusals.values())))


def view_of(server: "KvServer") -> MemberView:
    """The members as this one has them."""
    cluster = server.cluster
    return MemberView(
        cluster_id=server.cluster_id,
        index=server.store.applied_index,
        members=[MemberRow(member=one.message(), instance=one.instance) for one in server.peers.rows()],
        first=[one.message() for one in cluster.first()],
        removed=cluster.removed(),
        version=ETCD_VERSION,
    )
