"""Members in moments that random cases do not meet."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.servers import SECRET
from tests.conformance.differential.sides import LOST_SECONDS
from tests.conformance.rare.falling_apart import GET, PUT
from tests.conformance.rare.flood import flood
from tests.conformance.rare.side import Side, kind, port_of
from tests.e2e.cluster import wait_for

KEYS = 400_000
KEYS_OF_TXN = 128
TIMES_MAX = 10
PROBES_MAX = 40
PROBE_SECONDS = 0.1
BEHIND = ("too many requests", "waiting for the applied index took too long")
THREADS = 3 * PROBES_MAX + 2


def jwt_flags(folder: Path) -> Sequence[str]:
    (folder / "secret").write_bytes(SECRET)
    return [f"--auth-token=jwt,priv-key={folder / 'secret'},sign-method=HS256,ttl=10m", "--bcrypt-cost=4"]


def an_old_token(side: Side) -> None:
    """A JWT knows its auth revision."""
    root = pb.AuthenticateRequest(name="root", password="r")
    for call, message in (
        ("UserAdd", pb.AuthUserAddRequest(name="root", password="r")),
        ("RoleAdd", pb.AuthRoleAddRequest(name="root")),
        ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")),
        ("AuthEnable", pb.AuthEnableRequest()),
    ):
        side.ask(0, call, message)
    token = (("token", side.ask(0, "Authenticate", root).token),)
    side.ask(0, "RoleAdd", pb.AuthRoleAddRequest(name="r"), token)
    side.say(0, "Range", GET, token)
    side.say(0, "Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=PUT)]), token)


def two_members_in_a_second(side: Side) -> None:
    """Of the same URLs: an id is a hash of them and of the time in seconds."""
    own = side.id_of(0)
    for number in range(1, TIMES_MAX):
        request = pb.MemberAddRequest(peerURLs=[f"http://127.0.0.1:{number}"], isLearner=True)
        while time.time() % 1 > 0.5:
            time.sleep(0.01)
        second = int(time.time())
        # etcd may lose a change that comes at once after another.
        first, answer = (side.text(0, "MemberAdd", request, seconds=LOST_SECONDS) for _ in range(2))
        if first.startswith("MemberAddResponse") and int(time.time()) == second:
            break
        for member in side.ask(0, "MemberList", pb.MemberListRequest()).members:
            if own != member.ID:
                side.text(0, "MemberRemove", pb.MemberRemoveRequest(ID=member.ID), seconds=LOST_SECONDS)
    side.note("MemberAdd", request, answer)


def a_version_that_is_no_text(side: Side) -> None:
    side.note("Range", GET, side.raw(0, "Range", GET, (b"client-api-version", b"\xff\xfe")))


def a_large_delete(side: Side) -> None:
    """What follows it is committed long before it can be applied."""

    def load(first: int) -> None:
        puts = [pb.PutRequest(key=b"k%d" % number) for number in range(first, first + KEYS_OF_TXN)]
        side.ask(0, "Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))

    calls: list[tuple[str, Message]] = [
        ("Put", PUT),
        ("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1)),
        ("LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=1)),
    ]
    probes: list[list[Future[str]]] = []
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(load, range(0, KEYS, KEYS_OF_TXN)))
        delete = threads.submit(side.ask, 0, "DeleteRange", pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
        wait_for(lambda: side.metric(0, "etcd_server_proposals_pending"), "the delete is under way")
        flooded = threads.submit(flood, port_of(side.client_urls[0]))
        while not delete.done() and len(probes) < PROBES_MAX:
            probes.append([threads.submit(side.text, 0, *call) for call in calls])
            wait([delete], PROBE_SECONDS)
        flooded.result()
        for (call, message), answers in zip(calls, zip(*probes, strict=True), strict=True):
            said = [kind(answer.result()) for answer in answers]
            side.note(call, message, next((one for one in said if one.endswith(BEHIND)), said[0]))


def first_moments(side: Side) -> None:
    """Of a cluster: as one member hangs, nobody knows yet what all of them can do."""
    side.start(2)
    side.wait_listens(side.peer_urls[2])
    with side.paused(2):
        side.start(0, 1)
        for member in (0, 1):
            side.wait_serves(member)
        side.say(0, "Put", PUT)
        for action in ("VALIDATE", "ENABLE"):
            side.say(1, "Downgrade", pb.DowngradeRequest(action=action, version="3.4.0"))
        request = pb.AlarmRequest(action="ACTIVATE", alarm="CORRUPT")
        side.note("Alarm", request, kind(side.text(1, "Alarm", request)))
