"""Random requests of Lease, Cluster and Maintenance: none of them may harm the judge, which is never started anew."""

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.cases import BASE, LEASE, MEMBER, OWN_PEER_URL, PEER_URLS, Draw

TTL_MAX = 9_000_000_000
LEASES = [1, 1, 77, LEASE, LEASE, LEASE + 1, LEASE + 2, (1 << 63) - 1, -1, -(1 << 63)]
TTLS = [60, 60, 100, 3600, 1 << 31, TTL_MAX, TTL_MAX + 1, (1 << 63) - 1]  # none ends within a case
SHORT_TTLS = [2, 1, 0, -1, -(1 << 63)]
BAD_URLS = ["", "foo", "127.0.0.1:1", "http://", "http://127.0.0.1", "ftp://127.0.0.1:1"]
VERSIONS = [
    *["<lower>"] * 8,
    *("<lower>.0", "<lower>.7", "<own>", "<own>.0", "<higher>", "<lowest>", "v<lower>", "<lower>-rc.1"),
    *("<lower>.0-rc.1", "<lower>.0+x", " <lower>", "<lower>.", "0<lower>", "<lower>.0.0", "3", "", "x", "3.x"),
]
MEMBERS = [MEMBER, *(MEMBER + number for number in range(1, 7)), 0, 4711, (1 << 64) - 1]


class LeaseRequests:
    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def grant(self) -> pb.LeaseGrantRequest:
        return pb.LeaseGrantRequest(ID=self._draw.pick(LEASES), TTL=self._draw.pick(TTLS))

    def revoke(self) -> pb.LeaseRevokeRequest:
        return pb.LeaseRevokeRequest(ID=self._any())

    def keep_alive(self) -> pb.LeaseKeepAliveRequest:
        return pb.LeaseKeepAliveRequest(ID=self._any())

    def time_to_live(self) -> pb.LeaseTimeToLiveRequest:
        return pb.LeaseTimeToLiveRequest(ID=self._any(), keys=self._draw.chance(0.7))

    def _any(self) -> int:
        return self._draw.pick([*LEASES, 0, 4711])


class ClusterRequests:
    """A voter that does not run would take a single member's quorum, so only learners are added."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._added = 0

    def add(self) -> pb.MemberAddRequest:
        if self._draw.chance(0.3):
            return pb.MemberAddRequest(peerURLs=self._bad(), isLearner=self._draw.chance(0.5))
        urls = [OWN_PEER_URL] if self._draw.chance(0.15) else [PEER_URLS[self._added % len(PEER_URLS)]]
        self._added += 1  # never the same again: see Names
        if self._draw.chance(0.1):
            urls.append(self._draw.pick([*PEER_URLS[: self._added], OWN_PEER_URL]))
        return pb.MemberAddRequest(peerURLs=urls, isLearner=True)

    def remove(self) -> pb.MemberRemoveRequest:
        return pb.MemberRemoveRequest(ID=self._draw.pick(MEMBERS))

    def update(self) -> pb.MemberUpdateRequest:
        member = self._draw.pick(MEMBERS)
        if self._draw.chance(0.3):
            return pb.MemberUpdateRequest(ID=member, peerURLs=self._bad())
        urls = [OWN_PEER_URL] if member == MEMBER or self._draw.chance(0.2) else [self._draw.pick(PEER_URLS)]
        return pb.MemberUpdateRequest(ID=member, peerURLs=urls)

    def promote(self) -> pb.MemberPromoteRequest:
        return pb.MemberPromoteRequest(ID=self._draw.pick(MEMBERS))

    def list_(self) -> pb.MemberListRequest:
        return pb.MemberListRequest(linearizable=self._draw.chance(0.5))

    def _bad(self) -> list[str]:
        return [self._draw.pick(BAD_URLS) for _ in range(self._draw.pick([0, 1, 1, 1, 2]))]


class MaintenanceRequests:
    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._alarm = draw.enum([1, 1, 2])  # one kind a case: see "two alarms" in known.py

    def alarm(self) -> pb.AlarmRequest:
        return pb.AlarmRequest(
            action=self._draw.enum([0, 1, 1, 2, 2]),
            memberID=self._draw.pick([MEMBER, MEMBER, 0, 4711]),
            alarm=self._draw.enum([0, *[self._alarm] * 4]),
        )

    def downgrade(self) -> pb.DowngradeRequest:
        validate, enable, cancel, unknown = 0, 1, 2, 5
        action = self._draw.enum([*[validate] * 6, enable, enable, cancel, cancel, unknown])
        return pb.DowngradeRequest(action=action, version=self._draw.pick(VERSIONS))

    def hash_kv(self) -> pb.HashKVRequest:
        return pb.HashKVRequest(revision=self._draw.pick([0, self._draw.revision(), BASE + 1]))

    def move_leader(self) -> pb.MoveLeaderRequest:
        return pb.MoveLeaderRequest(targetID=self._draw.pick([0, 4711, MEMBER + 1]))
