"""The quota of one member: who is refused before anything is proposed, and when the alarm comes and comes again."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import NO_SPACE
from kvstore.pb import rpc_pb2 as pb
from kvstore.rpc import make_channel
from kvstore.server.quota import DEFAULT_BYTES, Quota
from kvstore.state.command import Op
from tests.kvstore.server.live import until
from tests.kvstore.services.member import RunningMember
from tests.kvstore.services.test_services import Peer, refused

QUOTA = 100_000
ALARM = pb.AlarmMember(memberID=0xA1, alarm=pb.AlarmType.NOSPACE)
DISARM = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=0xA1, alarm=pb.AlarmType.NOSPACE)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with (
        RunningMember(tmp_path / "state", quota_backend_bytes=QUOTA) as member,
        make_channel(member.url) as channel,
    ):
        yield Peer(member.server, channel)


def ops(peer: Peer) -> list[Op]:
    """What was proposed since the last call."""
    found = [one.op for one in peer.server.proposed]
    peer.server.proposed.clear()
    return found


async def test_what_does_not_fit_is_refused_before_it_is_proposed(peer: Peer) -> None:
    await peer.put(b"a", b"v" * 60_000)
    assert ops(peer) == [Op.PUT]
    value = b"v" * 60_000
    assert await refused(peer.put(b"b", value)) == NO_SPACE
    # The alarm is there by the time that its reason is heard.
    assert peer.server.alarms.active == [ALARM]
    assert ops(peer) == [Op.ALARM]
    await peer.maintenance.Alarm(DISARM)
    txn = pb.TxnRequest(failure=[pb.RequestOp(request_put=pb.PutRequest(key=b"b", value=value))])
    assert await refused(peer.kv.Txn(txn)) == NO_SPACE
    assert ops(peer) == [Op.ALARM, Op.ALARM]
    await peer.maintenance.Alarm(DISARM)
    ops(peer)
    await peer.put(b"c", b"v" * 30_000)  # one that fits
    await peer.kv.DeleteRange(pb.DeleteRangeRequest(key=b"a"))
    assert ops(peer) == [Op.PUT, Op.DELETE_RANGE]


async def test_an_alarm_comes_again_with_a_write_and_not_by_itself(peer: Peer) -> None:
    server = peer.server
    # Let in by a member with a larger quota: this one meets them in apply.
    for key in (b"a", b"b"):
        await server.propose_one(Op.PUT, pb.PutRequest(key=key, value=b"v" * 60_000).SerializeToString())
    await until(lambda: server.alarms.active == [ALARM], "the alarm")
    ops(peer)
    await peer.maintenance.Alarm(DISARM)
    assert server.alarms.active == []
    assert ops(peer) == [Op.ALARM]
    grant = pb.LeaseGrantRequest(TTL=60, ID=5).SerializeToString()
    await server.propose_one(Op.LEASE_GRANT, grant)
    await until(lambda: server.alarms.active == [ALARM], "the alarm again")


async def test_what_the_flag_means(tmp_path: Path) -> None:
    def quota(flag: int) -> Quota:
        server: Any = RunningMember(tmp_path / f"{flag}", quota_backend_bytes=flag).server
        server.store.close()
        return Quota(server)

    assert (quota(0).flag, quota(0).tight) == (DEFAULT_BYTES, False)
    assert (quota(-1).flag, quota(-1).tight) == (-1, False)
    assert quota(1).tight
