"""The leader decides the cluster version; a downgrade lowers it, and its end raises it again."""

from pathlib import Path

import grpc.aio
import pytest

from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.server import peers, versions
from kvstore.server.bootstrap import BootstrapError, open_member
from kvstore.state.versions import Versions
from tests.kvstore.server.live import Live, refused, until

ENABLE, CANCEL = pb.DowngradeRequest.ENABLE, pb.DowngradeRequest.CANCEL


def all_at(live: Live, cluster: tuple[int, int], target: tuple[int, int] | None = None) -> bool:
    return all(member.server.versions.state == Versions(cluster, target) for member in live.running)


async def test_downgrade_and_back(tmp_path: Path) -> None:
    async with Live(tmp_path, 3) as live:
        await until(lambda: all_at(live, (3, 6)), "a cluster version")
        follower = await live.follower()
        wrong = await refused(follower.maintenance.Downgrade(pb.DowngradeRequest(version="3.6")))
        assert wrong == KvError(wrong.code, "etcdserver: invalid downgrade target version")
        answer = await follower.maintenance.Downgrade(pb.DowngradeRequest(action=ENABLE, version="3.5"))
        assert (answer.version, answer.header.member_id, answer.header.revision) == ("3.6", follower.id, 1)
        await until(lambda: all_at(live, (3, 5), (3, 5)), "the lower version")
        status = await follower.maintenance.Status(pb.StatusRequest())
        assert (status.storageVersion, status.downgradeInfo.enabled, status.downgradeInfo.targetVersion) == (
            "3.5.0",
            True,
            "3.5.0",
        )
        await follower.maintenance.Downgrade(pb.DowngradeRequest(action=CANCEL))
        await until(lambda: all_at(live, (3, 6)), "the version that all have")
        status = await follower.maintenance.Status(pb.StatusRequest())
        assert not status.downgradeInfo.enabled
        with pytest.raises(grpc.aio.AioRpcError, match="no inflight downgrade job"):
            await follower.maintenance.Downgrade(pb.DowngradeRequest(action=CANCEL))


async def test_a_downgrade_ends_when_all_are_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of 3.5 are these, saying so."""
    monkeypatch.setattr(versions, "LOOK_SECONDS", 0.1)
    async with Live(tmp_path, 3) as live:
        await until(lambda: all_at(live, (3, 6)), "a cluster version")
        leader = await live.leader()
        await leader.maintenance.Downgrade(pb.DowngradeRequest(action=ENABLE, version="3.5"))
        await until(lambda: all_at(live, (3, 5), (3, 5)), "the lower version")
        monkeypatch.setattr(versions, "OWN", (3, 5))
        monkeypatch.setattr(peers, "ETCD_VERSION", "3.5.0")
        await until(lambda: all_at(live, (3, 5)), "the end of the downgrade")


async def test_nothing_is_decided_while_a_started_member_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it can do is not known: an alarm, which an older member may not know, is not raised."""
    monkeypatch.setattr(peers, "ETCD_VERSION", "")  # members of before there was a version
    monkeypatch.setattr(versions, "RETRY_SECONDS", 0.02)
    async with Live(tmp_path, 3) as live:
        leader = await live.leader()
        monkeypatch.setattr(type(leader.config), "request_timeout", 0.3)
        raised = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, alarm=pb.AlarmType.NOSPACE)
        assert (await refused(leader.maintenance.Alarm(raised))).message == "etcdserver: not capable"
        enable = pb.DowngradeRequest(action=ENABLE, version="3.5")
        error = await refused(leader.maintenance.Downgrade(enable))
        assert error.message == "etcdserver: cluster version not found during downgrade"
        monkeypatch.setattr(peers, "ETCD_VERSION", "3.6.0")
        await until(lambda: all_at(live, (3, 6)), "a cluster version")
        assert (await leader.maintenance.Alarm(raised)).alarms


async def test_an_older_member_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Live(tmp_path, 1) as live:
        (member,) = live.running
        await until(lambda: all_at(live, (3, 6)), "a cluster version")
        await member.stop()
        monkeypatch.setattr("kvstore.server.bootstrap.ETCD_VERSION", "3.5.9")
        with pytest.raises(BootstrapError, match=r"at version 3\.6\.0 and this member at 3\.5\.9"):
            await open_member(member.config)
