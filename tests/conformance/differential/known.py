"""What may differ, and why: the judges are etcd 3.5.1 and 3.4.23, and we follow the newer ones.

This table is all there is. A row with `fits` is an excuse for a difference that was seen; a row without is a request
that the runner does not compare, or asks of us only, and it says so where it does (`Coverage.excused` counts both).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.v3election_pb2 import CampaignRequest, ProclaimRequest
from kvstore.pb.v3lock_pb2 import LockRequest
from tests.conformance.differential.cases import MEMBER, OWN_PEER_URL, PEER_URLS
from tests.conformance.differential.sides import is_late

OLD: Final = ("3.4.23",)
BOTH: Final = ("3.4.23", "3.5.1")
COMPACTED: Final = "OUT_OF_RANGE: etcdserver: mvcc: required revision has been compacted"
NO_SPACE: Final = "RESOURCE_EXHAUSTED: etcdserver: mvcc: database space exceeded"
FUTURE: Final = "OUT_OF_RANGE: etcdserver: mvcc: required revision is a future revision"
REFUSALS_OF_TXN: Final = {  # that its operations give reason to
    COMPACTED,
    FUTURE,
    "INVALID_ARGUMENT: etcdserver: key not found",
    "NOT_FOUND: etcdserver: requested lease not found",
}
GOOD_URLS: Final = {*PEER_URLS, OWN_PEER_URL}


@dataclass(frozen=True)
class Seen:
    """A request and what was answered to it, as text."""

    call: str
    message: Message
    etcd: str
    ours: str
    compact_revision: int


@dataclass(frozen=True)
class Known:
    what: str
    etcd: str
    we: str
    judges: tuple[str, ...] = BOTH
    fits: Callable[[Seen], bool] | None = None
    ends: bool = False  # the two sides part here: the rest of the case says nothing


def _txn_refused_otherwise(seen: Seen) -> bool:
    return isinstance(seen.message, pb.TxnRequest) and {seen.etcd, seen.ours} <= REFUSALS_OF_TXN


def _hash_at_compact_revision(seen: Seen) -> bool:
    message = seen.message
    return isinstance(message, pb.HashKVRequest) and message.revision == seen.compact_revision


REFUSED_BY_AUTH: Final = (
    *("permission denied", "user name is empty", "invalid auth token"),
    "revision of auth store is old",
)
ASKS_NOBODY: Final = {"Status", "Alarm", "LeaseTimeToLive", "LeaseLeases"}


ASKS_NOBODY_OLD: Final = {"LeaseKeepAlive", "MemberList", "MoveLeader", "Downgrade", "Txn"}


def by_auth(answer: str) -> bool:
    """Whether it is a refusal for who asked."""
    return answer.endswith(tuple(f"etcdserver: {text}" for text in REFUSED_BY_AUTH))


def _has_reversed(message: Any) -> bool:
    if isinstance(message, pb.TxnRequest):
        ops = [getattr(op, op.WhichOneof("request") or "request_put") for op in (*message.success, *message.failure)]
        return any(map(_has_reversed, [*message.compare, *ops]))
    end = getattr(message, "range_end", b"")
    return end not in (b"", b"\0") and end <= message.key


def _sorts(message: Any) -> bool:
    if isinstance(message, pb.TxnRequest):
        branches = (*message.success, *message.failure)
        return any(_sorts(op.request_txn) or _sorts(op.request_range) for op in branches)
    return isinstance(message, pb.RangeRequest) and bool(message.sort_order or message.sort_target)


def _same_in_another_order(seen: Seen) -> bool:
    """A limit cuts after the sort, so that other keys may be left: as many, in answers that are equal otherwise."""
    etcd, ours = seen.etcd.splitlines(), seen.ours.splitlines()
    return sorted(etcd) == sorted(ours) or ("limit" in str(seen.message) and _without_keys(etcd) == _without_keys(ours))


def _without_keys(lines: list[str]) -> list[str]:
    kept, depth = [], 0
    for line in map(str.strip, lines):
        if depth or line == "kvs {":
            depth += line.endswith("{") - (line == "}")
        if not depth:
            kept.append(line)  # of each key its closing brace
    return kept


def _nests(message: Message) -> bool:
    return isinstance(message, pb.TxnRequest) and any(
        op.HasField("request_txn") for op in (*message.success, *message.failure)
    )


def _puts_need_more(message: Message) -> bool:
    """Also those that recipes make."""
    if isinstance(message, (LockRequest, CampaignRequest, ProclaimRequest)):
        return True
    return isinstance(message, pb.TxnRequest) and any(
        op.request_put.prev_kv or op.request_put.lease for op in (*message.success, *message.failure)
    )


def _only_header_lacks(seen: Seen) -> bool:
    return seen.call == "Alarm" and re.sub(r"header \{[^}]*\}\n", "", seen.ours) == seen.etcd


KNOWN: Final = {
    "sort": Known(
        "range with an unknown sort order or target",
        "sorts as if there was none, or dies",
        "refused, as etcd 3.6",
    ),
    "negative watch": Known(
        "watch from a negative revision", "reads on from there", "refused as compacted, as etcd 3.7"
    ),
    "txn refusal": Known(
        "refusal of a txn, when several operations give reason, or one put gives two",
        "puts, then ranges; key not found before lease not found",
        "in their order, and the lease first, as etcd 3.7",
        fits=_txn_refused_otherwise,
    ),
    "hash at compact": Known(
        "HashKV at the compact revision",
        "refused as compacted",
        "answered, as etcd 3.6",
        fits=_hash_at_compact_revision,
    ),
    "hash": Known(
        "hash and hash_revision of HashKV, hash of Hash",
        "of its own rows",
        "of ours; members of one kind are compared elsewhere",
    ),
    "progress": Known(
        "progress request with a watch that is not synced", "answered at once (etcd#15220)", "when synced, as etcd 3.6"
    ),
    "future progress": Known(
        "the same with a watch from a future revision", "answered", "not until it begins (etcd#20221)"
    ),
    "compact 0": Known("Compact(0) before any other compaction", "done, once", "refused: 0 is where a store begins"),
    "update urls": Known(
        "MemberUpdate with URLs that are none",
        "done: the member cannot be reached any more",
        "refused, as MemberAdd does everywhere",
    ),
    "lost change": Known(
        "a change of members at once after another",
        "may be dropped, and is never answered",
        "done; etcd is asked again",
    ),
    "same second": Known(
        "the URLs of a member that was removed in the same second are added again",
        "member not found: an id is a hash of URLs and second, so it is that of the removed one",
        "added, with another id",
        fits=lambda seen: seen.call == "MemberAdd" and seen.etcd.endswith("etcdserver: member not found"),
        ends=True,
    ),
    "nested cost": Known(
        "puts in a nested txn while NOSPACE is on",
        "cost nothing, so they are done",
        "refused as other puts, as newer etcd",
        fits=lambda seen: seen.ours == NO_SPACE and _nests(seen.message),
        ends=True,
    ),
    "no permission": Known(
        "RoleGrantPermission without a permission", "dies", "refused, as etcd 3.5; not asked", judges=OLD
    ),
    "alarm of none": Known(
        "an alarm of no kind is raised and ended",
        "raised; dies of ending it",
        "nothing happens, as etcd 3.5; not asked",
        judges=OLD,
    ),
    "auth code": Known(
        "code of a refusal of Maintenance and MemberList",
        "Unknown, with the text of its auth store",
        "that of the API, as etcd 3.6",
        fits=lambda seen: (
            seen.etcd in {f"UNKNOWN: auth: {text}" for text in REFUSED_BY_AUTH}
            and seen.ours.endswith(f"etcdserver: {seen.etcd.removeprefix('UNKNOWN: auth: ')}")
        ),
    ),
    "old revision": Known(
        "a token (JWT) of an older auth revision, where keys are asked for",
        "Unknown, with the text of its auth store",
        "that of the API, as etcd 3.4.23 and 3.6",
        judges=("3.5.1",),
        fits=lambda seen: (
            seen.etcd == "UNKNOWN: auth: revision in header is old"
            and seen.ours.endswith(": etcdserver: revision of auth store is old")
        ),
    ),
    "auth first": Known(
        "a call that the state would refuse too, of somebody who may not call",
        "says why the state would: it is looked at first",
        "that he may not: strangers are told nothing of the state",
        fits=lambda seen: by_auth(seen.ours) and "\n" not in seen.etcd and not by_auth(seen.etcd),
    ),
    "auth of reads": Known(
        "Status, Alarm, TimeToLive and Leases while auth is on",
        "asks nobody who they are",
        "a user, and READ on the keys of a lease, as etcd 3.7",
        fits=lambda seen: seen.call in ASKS_NOBODY and by_auth(seen.ours),
    ),
    "auth of calls": Known(
        "KeepAlive, MemberList, MoveLeader, Downgrade and a txn of nothing while auth is on",
        "asks nobody who they are",
        "a user, as etcd 3.6 and 3.7; every RPC is refused unless it says whom it lets in",
        fits=lambda seen: (
            seen.call in ASKS_NOBODY_OLD and by_auth(seen.ours) and (seen.call != "Txn" or not seen.message.ByteSize())
        ),
        ends=True,
    ),
    "auth of leases": Known(
        "LeaseGrant, LeaseRevoke and Compact while auth is on",
        "asks nobody who they are",
        "a user, and for Compact root, as etcd 3.6",
        fits=lambda seen: seen.call in {"LeaseGrant", "LeaseRevoke", "Compact"} and by_auth(seen.ours),
        ends=True,
    ),
    "authenticate": Known(
        "Authenticate with a token that nobody got",
        "refused for the token",
        "not looked at, as etcd 3.5",
        judges=OLD,
        fits=lambda seen: seen.call == "Authenticate" and by_auth(seen.etcd),
        ends=True,
    ),
    "reversed": Known(
        "a range whose end is before its key, of somebody with several permissions",
        "allowed or not: the shape of its interval tree decides",
        "allowed when the key is in one of them",
        fits=lambda seen: by_auth(seen.etcd) and _has_reversed(seen.message),
        ends=True,
    ),
    "auth status": Known(
        "AuthStatus without being root",
        "refused",
        "answered, as etcd 3.7",
        fits=lambda seen: seen.call == "AuthStatus" and by_auth(seen.etcd),
    ),
    "bad permission": Known(
        "a permission over a range that is none, or none at all",
        "granted; or another reason is given first",
        "refused for that, as etcd 3.6",
        fits=lambda seen: (
            seen.call == "RoleGrantPermission"
            and seen.ours.endswith(("invalid auth management", "permission not given"))
        ),
        ends=True,
    ),
    "role root": Known(
        "RoleGet of root, when somebody has added that role",
        "with what was granted to it, if anything",
        "READWRITE on everything, as etcd 3.6",
        fits=lambda seen: seen.call == "RoleGet" and seen.message.role == "root" and 'range_end: "\\000"' in seen.ours,
    ),
    "shared watches": Known(
        "several users wait for a lock or an election",
        "all of them in the name of the first: they are refused, or let in, for its permissions",
        "each in its own; no case does it",
    ),
    "campaign left": Known(
        "a campaign of somebody who may write its key, and not read the election",
        "refused; the key is there until its lease ends, and nobody behind it wins",
        "refused, and leaves nothing; no case does it",
    ),
    "no password": Known(
        "a password that is changed to an empty one",
        "is that of the user from then on",
        "the user has none, and cannot log in by any, as etcd 3.5",
        judges=OLD,
        fits=lambda seen: (
            seen.call == "Authenticate" and seen.ours.endswith("authentication failed, invalid user ID or password")
        ),
        ends=True,
    ),
    "old stream": Known(
        "a watch on a stream that was opened while auth was on, once it is off",
        "refused",
        "served, as etcd 3.6; no case does it",
    ),
    "ties": Known(
        "order of keys that a sort finds equal, from seven keys on",
        "that of Go's sort, which is not stable",
        "that of the keys, as newer Go does up to twelve",
        fits=lambda seen: _sorts(seen.message) and _same_in_another_order(seen),
    ),
    "watch refusal": Known(
        "a watch without permission",
        "its id is the one it asked for, its reason always PermissionDenied",
        "id -1 and the reason there is, as etcd 3.6",
    ),
    "open watch": Known(
        "a watch from a key on, of somebody who may read only that key",
        "allowed: it is taken for one of the key (GHSA-xg4h-6gfc-h4m8)",
        "refused, as etcd 3.7.1",
    ),
    "silent observe": Known(
        "Observe of somebody who may not read the election",
        "ends at once, without an error",
        "says why",
        fits=lambda seen: seen.call == "Observe" and by_auth(seen.ours) and seen.etcd == "LeaderResponse {\n}",
    ),
    "auth of txn": Known(
        "permissions within a nested txn, and those that prev_kv and the lease of a put in a txn, or of a lock, need",
        "not looked at",
        "looked at, as etcd 3.7",
        fits=lambda seen: by_auth(seen.ours) and (_nests(seen.message) or _puts_need_more(seen.message)),
        ends=True,
    ),
    "downgrade": Known(
        "Downgrade ENABLE and CANCEL",
        "carried out, and not answered (then: request timed out)",
        "answered, as etcd 3.6; what they did is compared by what VALIDATE says next",
        fits=lambda seen: seen.call == "Downgrade" and seen.ours.startswith("DowngradeResponse") and is_late(seen.etcd),
    ),
    "two alarms": Known(
        "alarms of two kinds at once", "the last raised counts", "CORRUPT counts, as etcd 3.6; no case does it"
    ),
    "alarm header": Known("header of Alarm", "none", "there, as etcd 3.5", judges=OLD, fits=_only_header_lacks),
    "alarm with auth": Known(
        "an alarm is raised while auth is on",
        "auth is not looked at any more",
        "it is; no case does it",
    ),
    "late lock": Known(
        "a lock whose key went away while it waited",
        "is taken",
        "session is expired, as etcd 3.5",
        judges=OLD,
        fits=lambda seen: seen.ours == "UNKNOWN: mutex: session is expired" and seen.etcd.startswith("LockResponse"),
    ),
    "late campaign": Known(
        "a campaign whose key went away while it waited",
        "says that it won",
        "not leader",
        fits=lambda seen: seen.ours == "UNKNOWN: election: not leader" and seen.etcd.startswith("CampaignResponse"),
    ),
    "unix urls": Known(
        "a peer at unix:// or without a host",
        "accepted",
        "refused: no other member could reach it; no case asks for it",
    ),
    "update learner": Known(
        "MemberUpdate of a learner",
        "makes it a voter",
        "it stays a learner; not asked, as it takes the judge's quorum",
    ),
    "token": Known("a token that nobody got, while auth is off", "refused as invalid", "not looked at, as etcd 3.6"),
    "status": Known("version, sizes and indexes of Status", "its own", "ours"),
    "ended id": Known("id of a watch that compaction has ended", "still in use, can be cancelled", "free"),
    "watch at delete": Known(
        "watch from the compact revision, which was a delete", "forgets the delete (etcd#19179)", "shows it"
    ),
}


def excuse(judge: str, seen: Seen, rows: dict[str, Known] = KNOWN) -> str:
    """The name of the row that allows the difference; empty when none does."""
    for name, known in rows.items():
        if judge in known.judges and known.fits is not None and known.fits(seen):
            return name
    return ""


def harmful(judge: str, message: Message) -> bool:
    """What would end the judge: a shrunk case must not ask for it either."""
    if isinstance(message, pb.MemberAddRequest):  # a voter that does not run takes a single member's quorum
        return not message.isLearner and _good(message.peerURLs) and OWN_PEER_URL not in message.peerURLs
    if isinstance(message, pb.AuthRoleGrantPermissionRequest) and judge in KNOWN["no permission"].judges:
        return not message.HasField("perm")
    if isinstance(message, pb.AlarmRequest) and judge in KNOWN["alarm of none"].judges:
        return message.action != pb.AlarmRequest.GET and message.alarm == pb.NONE
    if isinstance(message, pb.MemberUpdateRequest) and _good(message.peerURLs):
        return message.ID > MEMBER or (message.ID == MEMBER and _good(message.peerURLs, own=True))
    return False


def _good(urls: Sequence[str], own: bool = False) -> bool:
    """own: other ones than its own."""
    return bool(urls) and set(urls) <= GOOD_URLS and not (own and set(urls) == {OWN_PEER_URL})


def only_ours(message: Message) -> tuple[str, set[str]]:
    """For a request that must not be asked of the judge: the row, and the answers that may be ours."""
    if isinstance(message, pb.RangeRequest) and (
        message.sort_order not in (0, 1, 2) or message.sort_target not in (0, 1, 2, 3, 4)
    ):
        return "sort", {"INVALID_ARGUMENT: etcdserver: invalid sort option"}
    if isinstance(message, pb.MemberUpdateRequest) and not _good(message.peerURLs):
        refused = "INVALID_ARGUMENT: etcdserver: given member URLs are invalid"
        return "update urls", {refused, "NOT_FOUND: etcdserver: member not found"}
    return "", set()
