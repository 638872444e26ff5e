"""What has been compared: operations by RPC, error texts reached, and how often a known difference was met."""

from collections import Counter
from typing import Final

from tests.conformance.rpcs import RPCS

# Every error text of etcd's API; beside it, why no comparison can reach it.
ERRORS: Final = {
    "key is not provided": "",
    "key not found": "",
    "value is provided": "",
    "lease is provided": "",
    "too many operations in txn request": "",
    "duplicate key given in txn request": "",
    "invalid client api version": "where it dies, ours says it: see above",
    "invalid sort option": "ours says it: see above",
    "given member URLs are invalid": "",
    "request is too large": "",
    "user name is empty": "",
    "role name is empty": "",
    "authentication failed, invalid user ID or password": "",
    "permission not given": "",
    "invalid auth management": "",
    "revision of auth store is old": "",
    "wrong downgrade target version format": "",
    "invalid downgrade target version": "",
    "mvcc: required revision has been compacted": "",
    "mvcc: required revision is a future revision": "",
    "too large lease TTL": "",
    "mvcc: database space exceeded": "",
    "too many requests": "",
    "requested lease not found": "",
    "member not found": "",
    "lease already exists": "",
    "member ID already exist": "",
    "Peer URLs already exists": "",
    "re-configuration failed due to not enough started members": "",
    "can only promote a learner member": "",
    "can only promote a learner member which is in sync with leader": "",
    "too many learner members in cluster": "",
    "cluster ID mismatch": "members say it to each other, in words of their own",
    "root user does not exist": "",
    "root user does not have root role": "",
    "user name already exists": "",
    "user name not found": "",
    "role name already exists": "",
    "role name not found": "",
    "role is not granted to the user": "",
    "permission is not granted to the role": "",
    "authentication is not enabled": "",
    "not leader": "",
    "not capable": "its cluster versions can all do the same; ours says it: see above",
    "rpc not supported for learner": "",
    "bad leader transferee": "",
    "cluster version not found during downgrade": "",
    "cluster has a downgrade job in progress": "",
    "no inflight downgrade job": "",
    "permission denied": "",
    "invalid auth token": "",
    "corrupt cluster": "",
    "watch canceled": "the caller has cancelled and hears nothing",
    "request canceled": "the caller has cancelled and hears nothing",
    "context deadline exceeded": "",
    "no leader": "",
    "leader changed": "",
    "server stopped": "",
    "request timed out": "",
    "request timed out, possibly due to previous leader failure": "",
    "request timed out, possibly due to connection lost": "",
    "request timed out, waiting for the applied index took too long": "",
    "unhealthy cluster": "",
}
# Those that the program of a judge does not contain, so that nothing can make it say them (test_programs.py).
NOT_SAID: Final[dict[str, tuple[str, ...]]] = {
    "3.4.23": (
        *("invalid client api version", "invalid sort option", "permission not given", "cluster ID mismatch"),
        *("wrong downgrade target version format", "invalid downgrade target version", "request canceled"),
        *("cluster version not found during downgrade", "cluster has a downgrade job in progress"),
        "no inflight downgrade job",
    ),
    "3.5.1": (
        *("invalid client api version", "invalid sort option", "revision of auth store is old", "cluster ID mismatch"),
        "request timed out, waiting for the applied index took too long",
    ),
}
# Why one judge is not asked, or does not say it.
NOT_IN_PROGRAM: Final = "not in its program"
NO_RPC: Final = "etcd 3.4 has no such RPC"
LACKS: Final[dict[str, dict[str, str]]] = {
    judge: dict.fromkeys(texts, NOT_IN_PROGRAM) for judge, texts in NOT_SAID.items()
}
LACKS["3.4.23"].update(dict.fromkeys(("Downgrade", "AuthStatus"), NO_RPC))
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
            bare = text.rpartition(PREFIX)[2] if PREFIX in text else text.partition(": ")[2]  # behind its code
            self.errors[bare if PREFIX in text or bare in ERRORS else text] += 1

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
            f"error texts not reached: {'; '.join(owed) or 'none'}",
            f"known differences met: {', '.join(f'{name} {count}' for name, count in sorted(self.excused.items()))}",
        ]
        other = sorted(set(self.errors) - set(ERRORS))
        return "\n".join([*lines, f"other texts: {'; '.join(other)}"] if other else lines)
