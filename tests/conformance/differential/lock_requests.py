"""Random requests of Lock and Election. The keys of a lock end in the hex of a lease: see Names."""

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import v3election_pb2 as pb_election
from kvstore.pb import v3lock_pb2 as pb_lock
from tests.conformance.differential.cases import BASE, LEADER, LEASE, Draw, Step

NAMES = [*[b"l"] * 24, *[b"m"] * 8, b""]
ONE_NAME = [b"l"]  # so that a lease's keys are in one election: "auth of txn" in known.py would tell of others too late
GRANTED = [1, 77, LEASE, LEASE + 1]
LEASES = [*GRANTED, *GRANTED, LEASE + 20, LEASE + 21, LEASE + 22, 4711]  # LEASE + 20 and on: the server's own


class LockRequests:
    def __init__(self, draw: Draw, names: list[bytes] = NAMES) -> None:
        self._draw = draw
        self._names = names

    def prologue(self) -> list[Step]:
        return [Step("LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=100)) for lease in GRANTED]

    def lock(self) -> pb_lock.LockRequest:
        return pb_lock.LockRequest(name=self._name(), lease=self._lease())

    def unlock(self) -> pb_lock.UnlockRequest:
        return pb_lock.UnlockRequest(key=self.key())

    def campaign(self) -> pb_election.CampaignRequest:
        return pb_election.CampaignRequest(name=self._name(), lease=self._lease(), value=self._value())

    def proclaim(self) -> pb_election.ProclaimRequest:
        if self._draw.chance(0.05):
            return pb_election.ProclaimRequest()
        return pb_election.ProclaimRequest(leader=self._leader(), value=self._value())

    def leader(self) -> pb_election.LeaderRequest:
        return pb_election.LeaderRequest(name=self._name())

    def resign(self) -> pb_election.ResignRequest:
        return (
            pb_election.ResignRequest() if self._draw.chance(0.05) else pb_election.ResignRequest(leader=self._leader())
        )

    def put(self) -> pb.PutRequest:
        return pb.PutRequest(key=self.key(), value=self._value())

    def delete(self) -> pb.DeleteRangeRequest:
        if self._draw.chance(0.2):
            return pb.DeleteRangeRequest(key=b"l/", range_end=b"l0")
        return pb.DeleteRangeRequest(key=self.key())

    def range(self) -> pb.RangeRequest:
        """In the order of time: that of the keys depends on ids that a server picked."""
        created = pb.RangeRequest.SortTarget.CREATE
        return pb.RangeRequest(key=b"l/", range_end=b"l0", sort_order="ASCEND", sort_target=created)

    def revoke(self) -> pb.LeaseRevokeRequest:
        return pb.LeaseRevokeRequest(ID=self._lease())

    def key(self) -> bytes:
        if self._draw.chance(0.05):
            return self._draw.pick([b"", b"l", b"l/", b"l/zz"])
        return b"%b/%x" % (self._name(), self._lease())

    def _name(self) -> bytes:
        return self._draw.pick(self._names)

    def _lease(self) -> int:
        return self._draw.pick(LEASES)

    def _value(self) -> bytes:
        return self._draw.pick([b"", b"1", b"2"])

    def _leader(self) -> pb_election.LeaderKey:
        name, lease = self._name(), self._lease()
        revision = self._draw.pick([LEADER, LEADER, LEADER, BASE + 1, BASE + 2, BASE + 3, 0])
        key = self.key() if self._draw.chance(0.1) else b"%b/%x" % (name, lease)
        return pb_election.LeaderKey(name=name, key=key, rev=revision, lease=lease)
