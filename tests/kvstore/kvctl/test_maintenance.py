"""Alarms, defragmenting and downgrades by kvctl: what etcdctl prints, and refusals that say what to do."""

import asyncio
import json

import pytest

from kvstore.client import Alarm, Client
from kvstore.client.errors import InvalidRequest
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.client.clusters import Cluster
from tests.kvstore.kvctl.processes import etcdctl, kvctl


@pytest.fixture
def alarm(cluster: Cluster) -> int:
    """One NOSPACE alarm, on a member that there is not."""

    async def activate() -> None:
        async with Client(cluster.endpoints) as client:
            request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=7, alarm=pb.AlarmType.NOSPACE)
            await client._mutate(lambda e: e.maintenance.Alarm, request, None)

    asyncio.run(activate())
    return 7


def without_header(output: bytes) -> object:
    if output.startswith(b"{"):
        return {name: value for name, value in json.loads(output).items() if name != "header"}
    return [line for line in output.splitlines() if b'ID" : ' not in line or b"MemberID" in line][-4:]


@pytest.mark.parametrize("write_out", ["simple", "json", "fields"])
def test_as_etcdctl_prints_it(cluster: Cluster, alarm: int, write_out: str) -> None:
    # To one member, for the header names who answers.
    theirs = etcdctl(cluster, ["alarm", "list", "-w", write_out]).ok()
    ours = kvctl(cluster, "alarm", "list", "-w", write_out).ok()
    assert without_header(ours) == without_header(theirs)
    if write_out == "simple":
        assert ours == b"memberID:7 alarm:NOSPACE \n"
        assert kvctl(cluster, "alarm", "disarm").ok() == ours
        assert kvctl(cluster, "alarm", "disarm").ok() == kvctl(cluster, "alarm", "list").ok() == b""


def test_while_there_is_an_alarm(cluster: Cluster, alarm: int) -> None:
    kvctl(cluster, "put", "k", "v").failed(1, "space exceeded", "kvctl compact", "kvctl alarm disarm")
    assert kvctl(cluster, "endpoint", "health").code == 1
    if cluster.kind == "kvstore":
        (found,) = json.loads(kvctl(cluster, "endpoint", "status", "-w", "json").ok())[:1]
        assert found["Status"]["errors"] == ["memberID:7 alarm:NOSPACE "]
        assert found["Status"]["dbSizeQuota"] == 2 << 30
    table = kvctl(cluster, "alarm", "list", "-w", "table").ok().decode().splitlines()
    assert [cell.strip() for cell in table[3].split("|")[1:3]] == ["7", "NOSPACE"]
    kvctl(cluster, "alarm", "disarm").ok()
    kvctl(cluster, "put", "k", "v").ok()


def test_defrag(cluster: Cluster) -> None:
    lines = kvctl(cluster, "defrag", "--cluster").ok().decode().splitlines()
    assert sorted(lines) == sorted(f"Finished defragmenting etcd member[http://{one}]" for one in cluster.endpoints)
    assert kvctl(cluster, "defrag", "-w", "json").ok() == b"{}\n"
    down = kvctl(cluster, "defrag", "--endpoints=127.0.0.1:1", "--dial-timeout=200ms")
    down.failed(1, "1 of 1 members were not defragmented", "127.0.0.1:1")


def test_downgrade(cluster: Cluster) -> None:
    if cluster.kind != "kvstore":
        pytest.skip("etcd 3.5.1 never answers a downgrade that it enables")
    assert kvctl(cluster, "downgrade", "validate", "3.5").ok() == b"Downgrade validate success, cluster version 3.6\n"
    kvctl(cluster, "downgrade", "validate", "3.3").failed(1, "invalid downgrade target version", "below the cluster's")
    kvctl(cluster, "downgrade", "validate", "x").failed(1, "wrong downgrade target version format", "such as 3.5")
    kvctl(cluster, "downgrade", "cancel").failed(1, "no inflight downgrade job")
    assert json.loads(kvctl(cluster, "downgrade", "enable", "3.5", "-w", "json").ok())["version"] == "3.6"
    # It is a job until it is over or cancelled, also after the cluster's version has gone down.
    kvctl(cluster, "downgrade", "enable", "3.4").failed(1)
    (status,) = json.loads(kvctl(cluster, "endpoint", "status", "-w", "json").ok())[:1]
    assert status["Status"]["downgradeInfo"] == {"enabled": True, "targetVersion": "3.5.0"}
    assert kvctl(cluster, "downgrade", "cancel").ok().startswith(b"Downgrade cancel success, cluster version 3.")


def test_the_client(cluster: Cluster) -> None:
    async def use() -> None:
        async with Client(cluster.endpoints) as client:
            unknown = Alarm(member_id=99, type="CORRUPT")
            assert (await client.alarm_disarm(unknown)).alarms == ()
            await client.defragment(cluster.endpoints[1])
            status = await client.status(cluster.endpoints[0])
            assert status.db_size_in_use > 0
            if cluster.kind == "kvstore":
                assert (status.db_size_quota, status.storage_version, status.downgrade) == (2 << 30, "3.6.0", "")
                assert (await client.downgrade("validate", "3.5")).version == "3.6"
            with pytest.raises(InvalidRequest):
                await client.downgrade("validate", "1.0")

    asyncio.run(use())
