"""Leases by an oracle with uncertainty (RELIABILITY 2f).

never early     a key is away only when its lease was revoked, or not renewed for its TTL: an answered renewal counts
                from when it was asked for
never back      once a lease has been seen to be gone, nothing renews it and none of its keys is there
never longer    no answer promises more than was granted
together        all keys of a lease go in one revision
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from kvstore.pb import kv_pb2
from tests.e2e.checkers import Truth
from tests.jepsen.record import NEVER, Call

SECOND = 10**9
GONE = 0  # the answer to a keep-alive of a lease that is not there


@dataclass
class _Lease:
    ttl: int = 0  # granted; 0: nobody knows
    renewals: list[Call] = field(default_factory=list)  # answered with a TTL, the grant among them
    revokes: list[Call] = field(default_factory=list)
    bound: dict[str, Call] = field(default_factory=dict)
    away: list[Call] = field(default_factory=list)  # what has seen that it is gone
    there: list[Call] = field(default_factory=list)

    @property
    def revoking(self) -> int:
        """When it may have been revoked first."""
        return min((one.invoked for one in self.revokes if one.type != "fail"), default=NEVER)

    def renewed(self, before: int) -> int:
        """When the last renewal was asked for that was answered before then."""
        return max((one.invoked for one in self.renewals if one.returned < before), default=0)


def _gather(calls: list[Call]) -> dict[int, _Lease]:
    leases: dict[int, _Lease] = defaultdict(_Lease)
    owner: dict[str, int] = {}
    for call in calls:
        if call.f == "grant" and call.ok:
            lease = leases[int(call.key)]
            lease.ttl = call.value
            lease.renewals.append(call)
        elif call.f == "bind":
            owner[call.key] = int(call.asked)
            leases[int(call.asked)].bound[call.key] = call
        elif call.f == "revoke":
            leases[int(call.key)].revokes.append(call)
            if call.ok:
                leases[int(call.key)].away.append(call)
        elif call.f == "keepalive" and call.ok:
            lease = leases[int(call.key)]
            (lease.away if call.value == GONE else lease.renewals).append(call)
    for call in calls:
        if call.f == "read" and call.ok and call.key in owner:
            lease = leases[owner[call.key]]
            if call.value is not None:
                lease.there.append(call)
            elif lease.bound[call.key].ok and lease.bound[call.key].returned < call.invoked:
                lease.away.append(call)
    return leases


def check_lease(calls: list[Call], truth: Truth | None, fastest: float = 1.0) -> list[str]:
    """fastest: how fast a member's clock may have run."""
    complaints: list[str] = []
    for number, lease in sorted(_gather(calls).items()):
        if not lease.ttl:
            continue
        who = f"lease {number} of {lease.ttl} s"
        for call in lease.away:
            renewed = lease.renewed(call.invoked)
            if call.returned < min(renewed + int(lease.ttl * SECOND / fastest), lease.revoking):
                complaints.append(f"{who}: renewed at {renewed}, gone too early for {call}")
        first = min((call.returned for call in lease.away), default=NEVER)
        for call in (*lease.renewals, *lease.there):
            if call.invoked > first:
                complaints.append(f"{who}: gone at {first}, and there again for {call}")
        complaints += [f"{who}: promised {one.value} s: {one}" for one in lease.renewals if one.value > lease.ttl]
        if truth is not None:
            ends = {revision for key in lease.bound for revision in _deletions(truth, key)}
            if len(ends) > 1:
                complaints.append(f"{who}: its keys went in the revisions {sorted(ends)}")
    return complaints


def _deletions(truth: Truth, key: str) -> list[int]:
    return [
        revision
        for revision in truth.revisions_of(key.encode())
        for event in truth.events[revision]
        if event.kv.key == key.encode() and event.type == kv_pb2.Event.DELETE
    ]
