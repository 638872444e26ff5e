"""Who talks to whom: both ends of every call between members check it before anything else is said.

The caller's identity travels in the call's metadata, the receiver's in its Hello. A data directory from
another cluster, an address that now belongs to someone else and a member that came back without its disk
are refused with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raft.codec import FORMAT, decode_hello
from raft.errors import MalformedMessage
from raft.types import NodeId

SOMEBODY_ELSE: Final = "this node is"  # begins what a caller is told whose addresses are old: it is not refused itself
METADATA_KEYS: Final = ("raft-format", "raft-cluster", "raft-from", "raft-to", "raft-instance")


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a process is."""

    cluster_id: int
    node_id: NodeId
    instance: int  # of the data directory: differs once a member has lost its disk


CheckPeer = Callable[[PeerIdentity], str | None]  # why this peer may not talk to us, or None


def metadata_of(own: PeerIdentity, to: NodeId) -> list[tuple[str, str]]:
    """What a call from `own` to `to` carries."""
    values = (FORMAT, own.cluster_id, own.node_id, to, own.instance)
    return [(key, f"{value:x}") for key, value in zip(METADATA_KEYS, values, strict=True)]


def identify(
    metadata: dict[str, str | bytes], own: PeerIdentity, check_peer: CheckPeer
) -> tuple[PeerIdentity | None, str]:
    """Who calls `own`, or why it may not."""
    try:
        form, cluster_id, sender, to, instance = [int(metadata[key], 16) for key in METADATA_KEYS]
    except (KeyError, ValueError):
        return None, "the call does not say who it comes from"
    peer = PeerIdentity(cluster_id, sender, instance)
    if form != FORMAT:
        return None, f"this node speaks format {FORMAT} of the peer protocol, not {form}"
    if cluster_id != own.cluster_id:
        return None, f"this node belongs to cluster {own.cluster_id:x}, not to {cluster_id:x}"
    if to != own.node_id:
        return None, f"{SOMEBODY_ELSE} {own.node_id:x}, not {to:x}"
    if sender in {0, to}:
        return None, f"{sender:x} cannot be a peer's id"
    reason = check_peer(peer)
    return (peer, "") if reason is None else (None, reason)


def check_hello(data: object, own: PeerIdentity, to: NodeId, check_peer: CheckPeer) -> None:
    """Whether `to` has answered. Raises MalformedMessage."""
    if not isinstance(data, bytes):
        raise MalformedMessage("the peer ended the stream without a Hello")
    form, cluster_id, node_id, instance = decode_hello(data)
    if form != FORMAT or cluster_id != own.cluster_id or node_id != to:
        raise MalformedMessage(
            f"found {node_id:x} of cluster {cluster_id:x}, format {form}, in place of {to:x} "
            f"of cluster {own.cluster_id:x}"
        )
    reason = check_peer(PeerIdentity(cluster_id, node_id, instance))
    if reason is not None:
        raise MalformedMessage(f"not spoken to: {reason}")
