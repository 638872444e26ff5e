"""Three members of which one after another is gone, and a learner."""

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.rare.side import Metadata, Side
from tests.e2e.cluster import wait_for

GET = pb.RangeRequest(key=b"a")
PUT = pb.PutRequest(key=b"a")
WATCH = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a"))
HAS_LEADER = (("hasleader", "true"),)
SOON = (b"grpc-timeout", b"300m")
WITHOUT_QUORUM: list[tuple[str, Message, Metadata]] = [
    ("Put", PUT, ()),
    ("Put", PUT, HAS_LEADER),
    ("Range", GET, ()),
    ("Range", GET, HAS_LEADER),
    ("DeleteRange", pb.DeleteRangeRequest(key=b"a"), ()),
    ("Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=PUT)]), ()),
    ("Compact", pb.CompactionRequest(revision=1), ()),
    ("LeaseGrant", pb.LeaseGrantRequest(TTL=60), ()),
    ("LeaseRevoke", pb.LeaseRevokeRequest(ID=1), ()),
    ("UserAdd", pb.AuthUserAddRequest(name="u", password="p"), ()),
    ("UserList", pb.AuthUserListRequest(), ()),
    ("Alarm", pb.AlarmRequest(action="ACTIVATE", alarm="NOSPACE"), ()),
    ("Watch", WATCH, HAS_LEADER),
]


def falling_apart(side: Side) -> None:
    leader = side.leader()
    followers = side.others(leader)
    own = side.id_of(followers[0])
    move = pb.MoveLeaderRequest(targetID=own)
    side.say(followers[0], "MoveLeader", move)
    learner = side.join()
    for call, message in (
        ("Put", PUT),
        ("Range", GET),
        ("LeaseGrant", pb.LeaseGrantRequest(TTL=60)),
        ("MemberList", pb.MemberListRequest()),
        ("UserList", pb.AuthUserListRequest()),
    ):
        side.say(learner, call, message)
    side.kill(followers[0])
    voter = pb.MemberAddRequest(peerURLs=side.peer_urls[:1])  # there is one: it is refused in any case
    wait_for(side.refuses(leader, "MemberAdd", voter, "unhealthy cluster"), "one that is down is noticed")
    side.say(leader, "MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"]))
    side.kill(followers[1])
    side.say(leader, "Put", PUT)  # while it takes itself for the leader
    wait_for(side.has_no_leader(leader), "no leader is left")
    side.say_all(leader, WITHOUT_QUORUM)


def deadlines(side: Side) -> None:
    """Of the callers, who stay and hear what the server says."""
    leader = side.leader()
    with side.paused(*side.others(leader)):
        for call, message in (("Range", GET), ("Watch", WATCH), ("Put", PUT)):
            side.note(call, message, side.raw(leader, call, message, SOON))
