"""The cluster version and a downgrade under way, as the log orders them.

    c version   -> "3.6.0"    what all members can do; the leader decides it from what each says of itself
    c downgrade -> "3.5.0"    the version that a downgrade goes to, while there is one

Requests of a new type are proposed only when the cluster version says that every member knows them, so it never goes
down but for a downgrade that somebody has asked for. The rules and texts are etcd's (server/etcdserver/version).
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from kvstore import errors
from kvstore.mvcc import schema
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.command_pb2 import ClusterVersion
from kvstore.pb.rpc_pb2 import DowngradeRequest, DowngradeResponse
from kvstore.state.txn import AppliedResult

_VERSION_ROW: Final = schema.CLUSTER + b"version"
_TARGET_ROW: Final = schema.CLUSTER + b"downgrade"

# What Go's semver takes; without the third number etcd adds it, but not behind a suffix.
_SEMVER: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})(?:\.[0-9]{1,18}(?:-[0-9A-Za-z.-]*)?(?:\+[0-9A-Za-z.-]*)?)?")

Minor = tuple[int, int]


class Versions(NamedTuple):
    """Both as major and minor; None: not decided, or no downgrade."""

    cluster: Minor | None = None
    target: Minor | None = None


def parse_minor(text: str) -> Minor | None:
    """Major and minor of a version; None when it is none."""
    found = _SEMVER.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2]))


def short(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}"


def long(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}.0"


def read_versions(get: Callable[[bytes], bytes | None]) -> Versions:
    return Versions(*[parse_minor((get(row) or b"").decode()) for row in (_VERSION_ROW, _TARGET_ROW)])


def check_downgrade(versions: Versions, request: DowngradeRequest) -> Minor | None:
    """The version to go to. Raises KvError."""
    if request.action == DowngradeRequest.CANCEL:
        if versions.target is None:
            raise errors.NO_INFLIGHT_DOWNGRADE.fresh()
        return None
    if request.action not in (DowngradeRequest.VALIDATE, DowngradeRequest.ENABLE):
        raise errors.UNKNOWN_METHOD.fresh()
    target, cluster = parse_minor(request.version), versions.cluster
    if target is None:
        raise errors.WRONG_DOWNGRADE_FORMAT.fresh()
    if cluster is None:
        raise errors.CLUSTER_VERSION_UNAVAILABLE.fresh()
    if target != (cluster[0], cluster[1] - 1):
        raise errors.INVALID_DOWNGRADE_TARGET.fresh()
    if versions.target is not None:
        raise errors.DOWNGRADE_IN_PROCESS.fresh()
    return target


def downgrade_body(versions: Versions) -> bytes:
    """An encoded DowngradeResponse without its header."""
    return DowngradeResponse(version=short(versions.cluster) if versions.cluster else "").SerializeToString()


def apply_downgrade(group: WriteGroup, request: DowngradeRequest) -> AppliedResult:
    """Raises KvError, and then changes nothing."""
    versions = read_versions(group.get_cluster_row)
    target = check_downgrade(versions, request)
    if request.action == DowngradeRequest.CANCEL:
        group.delete_cluster_row(_TARGET_ROW)
    elif request.action == DowngradeRequest.ENABLE and target is not None:
        group.put_cluster_row(_TARGET_ROW, long(target).encode())
    return AppliedResult(group.current_revision, downgrade_body(versions))


def may_become(versions: Versions, wanted: Minor) -> bool:
    """Whether the cluster version may change to this: up, or to where a downgrade goes; a leader may be behind."""
    if versions.target is not None:
        return wanted == versions.target != versions.cluster
    return versions.cluster is None or wanted > versions.cluster


def apply_cluster_version(group: WriteGroup, request: ClusterVersion) -> AppliedResult:
    wanted = parse_minor(request.version)
    if wanted is not None and may_become(read_versions(group.get_cluster_row), wanted):
        group.put_cluster_row(_VERSION_ROW, long(wanted).encode())
    return AppliedResult(group.current_revision, b"")
