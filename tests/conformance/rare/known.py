"""What may differ where members fail: more rows of differential/known.py."""

from collections.abc import Callable
from typing import Final

from tests.conformance.differential.known import OLD, Known, Seen
from tests.conformance.differential.sides import is_late

LEARNER: Final = "etcdserver: rpc not supported for learner"
CAPABLE: Final = "FAILED_PRECONDITION: etcdserver: not capable"
GONE: Final = "UNAVAILABLE: Stream removed"  # says grpcio of a connection that has ended
NO_VERSION: Final = "etcdserver: cluster version not found during downgrade"


def _said(etcd: str, ours: str) -> Callable[[Seen], bool]:
    """Ends of their answer, and of ours."""
    return lambda seen: seen.etcd.endswith(etcd) and seen.ours.endswith(ours)


RARE: Final = {
    "learner code": Known(
        "code of a refusal by a learner",
        "Unavailable",
        "FailedPrecondition, as etcd 3.6",
        fits=_said(f"UNAVAILABLE: {LEARNER}", f"FAILED_PRECONDITION: {LEARNER}"),
    ),
    "write without leader": Known(
        "a write at a member that knows no leader",
        "Unknown, context deadline exceeded",
        "request timed out, as the reads",
        fits=_said("UNKNOWN: context deadline exceeded", "UNAVAILABLE: etcdserver: request timed out"),
    ),
    "change without leader": Known(
        "a change of members at a member that knows no leader", "unhealthy cluster", "no leader; not asked"
    ),
    "deadline code": Known(
        "code of context deadline exceeded, when the caller still listens; a write",
        "Unknown; request timed out",
        "DeadlineExceeded, as etcd 3.6; the same",
        fits=lambda seen: (
            seen.ours == "DEADLINE_EXCEEDED: context deadline exceeded"
            and (seen.etcd == "UNKNOWN: context deadline exceeded" or is_late(seen.etcd))
        ),
    ),
    "read over change": Known(
        "a read that waits while the leader changes",
        "leader changed: ask again",
        "asks the new leader, and answers",
        fits=lambda seen: seen.etcd.endswith("leader changed") and seen.ours.startswith("RangeResponse"),
    ),
    "lost to a leader": Known(
        "a write that was sent to a leader that does not answer any more, and there is a new one",
        "request timed out, possibly due to previous leader failure: after its whole timeout",
        "leader changed, at once: both say that nobody knows what became of it",
        fits=_said("previous leader failure", "leader changed"),
    ),
    "late leader": Known(
        "a write at a member whose leader has died, and the next one comes in time",
        "request timed out, possibly due to connection lost",
        "waits for the next leader, and is done; leader changed if it was sent already",
        fits=lambda seen: (
            seen.etcd.endswith("possibly due to connection lost")
            and (seen.ours.startswith("PutResponse") or seen.ours.endswith("leader changed"))
        ),
    ),
    "removed": Known(
        "calls that wait at a member that is removed",
        "server stopped; hardly anybody hears it, as the process ends at once",
        "the connection ends: a member that cannot go on says nothing more",
        fits=lambda seen: seen.etcd.endswith("server stopped") and seen.ours.startswith(GONE),
    ),
    "told to stop": Known(
        "calls that wait at a member that is told to stop",
        "the connection ends",
        "server stopped, after 2 s",
        fits=lambda seen: seen.etcd.startswith(GONE) and seen.ours.endswith("server stopped"),
    ),
    "version dies": Known(
        "a header client-api-version that is no UTF-8",
        "dies of it",
        "invalid client api version, as newer etcd",
        fits=_said("closed", "invalid client api version"),
    ),
    "overload code": Known(
        "code of too many requests",
        "Unknown",
        "ResourceExhausted, as etcd's table says; from 10,000 waiting calls on",
        fits=_said("UNKNOWN: etcdserver: too many requests", "RESOURCE_EXHAUSTED: etcdserver: too many requests"),
    ),
    "lease behind": Known(
        "TimeToLive and KeepAlive at a leader that is more than a second behind with applying",
        "request timed out, waiting for the applied index took too long",
        "waits as long as other reads do, and answers",
        judges=OLD,
        fits=lambda seen: (
            seen.etcd.endswith("waiting for the applied index took too long")
            and seen.ours.startswith(f"{seen.call}Resp")
        ),
    ),
    "undecided code": Known(
        "code of cluster version not found during downgrade",
        "Unavailable",
        "FailedPrecondition, as etcd 3.6",
        judges=("3.5.1",),
        fits=_said(f"UNAVAILABLE: {NO_VERSION}", f"FAILED_PRECONDITION: {NO_VERSION}"),
    ),
    "no downgrade": Known(
        "Downgrade",
        "has no such RPC",
        "served, as etcd 3.5",
        judges=OLD,
        fits=lambda seen: seen.call == "Downgrade" and seen.etcd.startswith("UNIMPLEMENTED: "),
    ),
    "undecided alarm": Known(
        "alarm CORRUPT before it is known what all members can do",
        "raised",
        "not capable: older members of ours would not know it",
        fits=lambda seen: seen.call == "Alarm" and seen.etcd.startswith("AlarmResponse") and seen.ours == CAPABLE,
    ),
}
