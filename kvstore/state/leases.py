"""Grant, revoke and checkpoint of leases, as the log orders them.

Apply knows no time: a lease is there from its grant to its revoke. What the leader's lessor asks for
carries the term in which it looked at its clock, and counts only in an entry of that term. A leader that
was stalled past its deposition would otherwise revoke, through its successor, leases that the successor
has kept alive (etcd#15247).
"""

from hashlib import blake2b
from struct import Struct
from typing import Final

from kvstore import errors
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.command_pb2 import LeaseCheckpoints, Request
from kvstore.pb.rpc_pb2 import LeaseGrantResponse
from kvstore.state.checks import LEASE_TTL_MAX
from kvstore.state.txn import AppliedResult

_IDENTITY: Final = Struct(">QQQQ")


def apply_grant(group: WriteGroup, request: Request) -> AppliedResult | errors.KvError:
    wanted = request.lease_grant
    if wanted.TTL > LEASE_TTL_MAX:
        return errors.LEASE_TTL_TOO_LARGE
    lease = wanted.ID or _draw(group, request)
    if group.has_lease(lease):
        return errors.LEASE_EXISTS
    ttl = max(wanted.TTL, 1)  # where it came in it was raised to the least that this member's timing allows
    group.leases.grant(lease, ttl)
    return AppliedResult(group.current_revision, LeaseGrantResponse(ID=lease, TTL=ttl).SerializeToString())


def _draw(group: WriteGroup, request: Request) -> int:
    """A free positive id. It follows from the request's identity, so every member draws the same one."""
    attempt = 0
    while True:
        identity = _IDENTITY.pack(request.member, request.boot, request.sequence, attempt)
        lease = int.from_bytes(blake2b(identity, digest_size=8).digest(), "big") >> 1
        if lease and not group.has_lease(lease):
            return lease
        attempt += 1


def leases_to_revoke(group: WriteGroup, request: Request, entry_term: int) -> list[int] | errors.KvError:
    """Those of the request that end now, each with a revision of its own where keys are bound to it."""
    revoke = request.lease_revoke
    granted = [lease for lease in dict.fromkeys(revoke.ids) if group.has_lease(lease)]
    if revoke.term:
        return granted if revoke.term == entry_term else []
    return granted or errors.LEASE_NOT_FOUND


def apply_checkpoint(group: WriteGroup, checkpoints: LeaseCheckpoints, entry_term: int) -> AppliedResult:
    for checkpoint in checkpoints.checkpoints if checkpoints.term == entry_term else ():
        row = group.leases.get(checkpoint.ID)
        if row is not None:
            group.leases.checkpoint(checkpoint.ID, row, min(max(checkpoint.remaining_TTL, 0), row.ttl))
    return AppliedResult(group.current_revision, b"")
