"""What has been compared: operations by RPC, error texts reached, and how often a known difference was met."""

from collections import Counter
from typing import Final

from tests.conformance.rpcs import RPCS

RARE: Final = "compared in tests/conformance/test_rare_errors.py"
# Every error text of etcd's API; beside it, why a comparison of two healthy clusters cannot reach it.
ERRORS: Final = {
    "key is not provided": "",
    "key not found": "",
    "value is provided": "",
    "lease is provided": "",
    "too many operations in txn request": "",
    "duplicate key given in txn request": "",
    "invalid client api version": "only a header that is no UTF-8 gives it, and grpcio sends none",
    "invalid sort option": "new in etcd 3.6; ours is asked alone",
    "given member URLs are invalid": "",
    "request is too large": "",
    "user name is empty": "",
    "role name is empty": "",
    "authentication failed, invalid user ID or password": "",
    "permission not given": "",
    "invalid auth management": "",
    "revision of auth store is old": "etcd before 3.6 has another text for it: see above",
    "wrong downgrade target version format": "",
    "invalid downgrade target version": "",
    "mvcc: required revision has been compacted": "",
    "mvcc: required revision is a future revision": "",
    "too large lease TTL": "",
    "mvcc: database space exceeded": "",
    "too many requests": "5,000 entries committed and not applied: an overload",
    "requested lease not found": "",
    "member not found": "",
    "lease already exists": "",
    "member ID already exist": "an id is a hash of the time: two members added in one second with the same URLs",
    "Peer URLs already exists": "",
    "re-configuration failed due to not enough started members": "",
    "can only promote a learner member": "",
    "can only promote a learner member which is in sync with leader": "",
    "too many learner members in cluster": "",
    "cluster ID mismatch": "between members only",
    "root user does not exist": "",
    "root user does not have root role": "",
    "user name already exists": "",
    "user name not found": "",
    "role name already exists": "",
    "role name not found": "",
    "role is not granted to the user": "",
    "permission is not granted to the role": "",
    "authentication is not enabled": "",
    "not leader": f"needs an etcd of several members: {RARE}",
    "not capable": "in the middle of a rolling upgrade",
    "rpc not supported for learner": f"needs a learner to ask: {RARE}",
    "bad leader transferee": "",
    "cluster version not found during downgrade": "in the first moments of a cluster",
    "cluster has a downgrade job in progress": "",
    "no inflight downgrade job": "",
    "permission denied": "",
    "invalid auth token": "",
    "corrupt cluster": "",
    "watch canceled": "of the Go client only",
    "request canceled": "the caller has cancelled and hears nothing",
    "context deadline exceeded": "the caller's own deadline: grpcio answers it by itself",
    "no leader": f"needs a cluster without quorum: {RARE}",
    "leader changed": "needs a change of leader in the middle of a read",
    "server stopped": "needs a member that stops while it is asked",
    "request timed out": f"needs a cluster without quorum: {RARE}",
    "request timed out, possibly due to previous leader failure": "needs an election while the call waits",
    "request timed out, possibly due to connection lost": "needs a leader that has lost its members unnoticed",
    "request timed out, waiting for the applied index took too long": "needs a member that applies too slowly",
    "unhealthy cluster": f"needs members that are down: {RARE}",
}
# The same of one judge.
NO_DOWNGRADE: Final = "etcd 3.4 has no Downgrade"
LACKS: Final[dict[str, dict[str, str]]] = {
    "3.4.23": {
        **{"Downgrade": "etcd 3.4 has no such RPC", "AuthStatus": "etcd 3.4 has no such RPC"},
        "permission not given": "etcd 3.4 dies of the request: it is not asked",
        "wrong downgrade target version format": NO_DOWNGRADE,
        "invalid downgrade target version": NO_DOWNGRADE,
        "cluster has a downgrade job in progress": NO_DOWNGRADE,
        "no inflight downgrade job": NO_DOWNGRADE,
    },
    "3.5.1": {},
}
PREFIX: Final = "etcdserver: "
CREATES: Final = "Watch create"


class Coverage:
    """Counts of one search, against one judge."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()

    @property
    def operations(self) -> int:
        return self.calls.total()

    def count(self, call: str) -> None:
        self.calls[call] += 1

    def see(self, text: str) -> None:
        """An answer to both sides' satisfaction; what is no error is not looked at."""
        if text and "\n" not in text:
            self.errors[text.rpartition(PREFIX)[2] if PREFIX in text else text] += 1

    def calls_of(self, rpc: str) -> int:
        return sum(count for call, count in self.calls.items() if call.partition(" ")[0] == rpc)

    def as_json(self) -> dict[str, dict[str, int]]:
        return {
            name: dict(sorted(counts.items()))
            for name, counts in (("calls", self.calls), ("errors", self.errors), ("excused", self.excused))
        }

    def add(self, found: dict[str, dict[str, int]]) -> None:
        self.calls.update(found["calls"])
        self.errors.update(found["errors"])
        self.excused.update(found["excused"])

    def report(self, judge: str) -> str:
        """A few lines for a terminal."""
        lacks = LACKS[judge]
        calls = ", ".join(f"{name} {count}" for name, count in sorted(self.calls.items()))
        missing = [name for name in RPCS if not self.calls_of(name) and name not in lacks]
        reached = [f"{text} ({self.errors[text]})" for text in ERRORS if self.errors[text]]
        owed = [text for text, reason in ERRORS.items() if not reason and not self.errors[text] and text not in lacks]
        lines = [
            f"compared: {calls}",
            f"RPCs not compared: {', '.join(missing) or 'none'}",
            f"error texts reached: {len(reached)} of {len(ERRORS)}: {'; '.join(reached)}",
            f"error texts owed: {'; '.join(owed) or 'none'}",
            f"known differences met: {', '.join(f'{name} {count}' for name, count in sorted(self.excused.items()))}",
        ]
        other = sorted(set(self.errors) - set(ERRORS))
        return "\n".join([*lines, f"other texts: {'; '.join(other)}"] if other else lines)
