"""/health, /version and /metrics, asked of members as they are."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from kvstore.errors import TIMEOUT
from kvstore.gateway.app import Pages, make_app
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.server.live import Live, LiveMember, until

HEALTHY = (200, '{"health":"true","reason":""}')
PLAIN = "text/plain; charset=utf-8"


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    @property
    def short(self) -> tuple[int, str]:
        return self.status, self.body.decode()


async def ask(app: Starlette, target: str, method: str = "GET") -> Answer:
    """As a server calls the application."""
    path, _, query = target.partition("?")
    answer = Answer()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            answer.status = int(str(message["status"]))
            pairs: list[tuple[bytes, bytes]] = message["headers"]  # type: ignore[assignment]
            answer.headers = {name.decode(): value.decode() for name, value in pairs}
        else:
            body = message.get("body", b"")
            assert isinstance(body, bytes)
            answer.body += body

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    return answer


def metrics_of(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, 3) as live:
        yield live


def app_of(member: LiveMember, **options: bool) -> Starlette:
    return make_app(Pages(member.server), **options)


async def test_health_version_and_what_is_not_there(live: Live) -> None:
    app = app_of(await live.follower())
    for target in ("/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/health?serializable=x"):
        answer = await ask(app, target)
        assert answer.short == HEALTHY
        assert answer.headers["content-type"] == PLAIN
    version = await ask(app, "/version")
    assert version.short == (200, '{"etcdserver":"3.6.0","etcdcluster":"3.6.0","storage":"3.6.0"}')
    assert version.headers["content-type"] == "application/json"
    for part in json.loads(version.body).values():
        assert [int(digits) for digits in part.split(".")]  # some clients do this
    for target in ("/", "/nope", "/health/", "/v3/kv/range"):
        answer = await ask(app, target)
        assert answer.short == (404, "404 page not found\n")
        assert answer.headers["x-content-type-options"] == "nosniff"
    variables = await ask(app, "/debug/vars")
    assert (variables.status, variables.headers["content-type"]) == (200, "application/json; charset=utf-8")
    found = json.loads(variables.body)
    assert set(found) == {"cmdline", "file_descriptor_limit", "kvstore", "raft.status"}
    assert (found["cmdline"], found["kvstore"]["revision"]) == (sys.orig_argv, 1)
    of_leader = json.loads((await ask(app_of(await live.leader()), "/debug/vars")).body)["raft.status"]
    assert (found["raft.status"]["raftState"], of_leader["raftState"]) == ("StateFollower", "StateLeader")
    assert found["raft.status"]["lead"] == of_leader["lead"] == of_leader["id"]
    assert {one["state"] for one in of_leader["progress"].values()} == {"StateReplicate"}
    posted = await ask(app, "/debug/vars", "POST")
    assert posted.short == (405, "Method Not Allowed\n")
    posted = await ask(app, "/health", "POST")
    assert posted.short == (405, "Method Not Allowed\n")
    assert "GET" in posted.headers["allow"]
    only = app_of(await live.leader(), metrics_only=True)
    assert (await ask(only, "/health")).short == HEALTHY
    assert (await ask(only, "/metrics")).status == 200
    assert (await ask(only, "/version")).status == (await ask(only, "/debug/vars")).status == 404


async def test_without_a_quorum_a_member_is_unhealthy_unless_it_is_asked_for_itself(live: Live) -> None:
    survivor = await live.follower()
    app = app_of(survivor)
    for member in live.running:
        if member is not survivor:
            await member.stop()
    await until(lambda: not survivor.server.has_leader, "the leader is missed")
    answer = await ask(app, "/health")
    assert answer.short == (503, '{"health":"false","reason":"RAFT NO LEADER"}\n')
    assert (await ask(app, "/health?serializable=true")).short == HEALTHY
    found = metrics_of((await ask(app, "/metrics")).body.decode())
    assert found["etcd_server_has_leader"] == 0
    assert (found["etcd_server_health_success"], found["etcd_server_health_failures"]) == (1, 1)
    assert not [name for name in found if name.startswith("etcd_network_active_peers")]


async def test_a_read_that_fails_or_never_ends_is_unhealthy(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = await live.leader()
    app = app_of(leader)

    async def fails() -> None:
        raise TIMEOUT.fresh()

    monkeypatch.setattr(leader.server, "linearizable", fails)
    assert (await ask(app, "/health")).short == (
        503,
        '{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}\n',
    )
    monkeypatch.setattr(leader.server, "linearizable", asyncio.Event().wait)
    monkeypatch.setattr(type(leader.config), "request_timeout", 0.01)
    assert (await ask(app, "/health")).short == (
        503,
        '{"health":"false","reason":"RANGE ERROR:context deadline exceeded"}\n',
    )


async def test_metrics_tell_the_state(live: Live) -> None:
    leader = await live.leader()
    follower = await live.follower()
    app, other = app_of(leader), app_of(follower)
    await leader.kv.Put(pb.PutRequest(key=b"k", value=b"v"))
    call = leader.stub_watch.Watch()
    await call.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
    assert (await call.read()).created

    answer = await ask(app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    found = metrics_of(text)
    server = leader.server
    assert found["etcd_server_has_leader"] == found["etcd_server_is_leader"] == 1
    assert found["etcd_server_is_learner"] == 0
    assert found["etcd_server_proposals_applied_total"] == server.store.applied_index
    assert found["etcd_server_proposals_committed_total"] == server.status().commit
    assert found["etcd_debugging_mvcc_current_revision"] == 2
    assert found["etcd_debugging_mvcc_keys_total"] == 1
    assert found["etcd_debugging_mvcc_watch_stream_total"] == found["etcd_debugging_mvcc_watcher_total"] == 1
    assert found["etcd_mvcc_db_total_size_in_bytes"] > 0
    assert found[f'etcd_server_id{{server_id="{leader.id:x}"}}'] == 1
    assert found['etcd_cluster_version{cluster_version="3.6"}'] == 1
    peers = {
        f'etcd_network_active_peers{{Local="{leader.id:x}",Remote="{one:x}"}}' for one in server.transport.connected()
    }
    assert len(peers) == 2
    assert peers <= set(found)
    assert found["process_resident_memory_bytes"] > 0
    # By these types dashboards know them.
    assert "# TYPE etcd_server_proposals_committed_total gauge" in text
    assert "# TYPE etcd_server_leader_changes_seen_total counter" in text
    call.cancel()

    found = metrics_of((await ask(other, "/metrics")).body.decode())
    assert (found["etcd_server_has_leader"], found["etcd_server_is_leader"]) == (1, 0)
    changes = found["etcd_server_leader_changes_seen_total"]
    await leader.server.move_leader(follower.id)
    await until(lambda: follower.leads, "it leads")
    found = metrics_of((await ask(other, "/metrics")).body.decode())
    assert found["etcd_server_leader_changes_seen_total"] == changes + 1
    assert found["etcd_server_is_leader"] == 1


async def test_a_request_without_a_result_is_counted_as_failed(live: Live) -> None:
    leader = await live.leader()
    app = app_of(leader)
    before = metrics_of((await ask(app, "/metrics")).body.decode())["etcd_server_proposals_failed_total"]
    for member in live.running:
        if member is not leader:
            await member.stop()
    put = asyncio.ensure_future(leader.kv.Put(pb.PutRequest(key=b"k", value=b"v"), timeout=30))
    await until(lambda: leader.server.waiting_requests, "it waits for a quorum that is gone")
    assert metrics_of((await ask(app, "/metrics")).body.decode())["etcd_server_proposals_pending"] == 1
    await until(put.done, "it has waited long enough")
    assert put.exception() is not None
    assert metrics_of((await ask(app, "/metrics")).body.decode())["etcd_server_proposals_failed_total"] == before + 1


async def test_livez_and_readyz(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    survivor = await live.follower()
    app = app_of(survivor)
    names = ["data_corruption", "serializable_read", "linearizable_read", "non_learner"]
    for target in ("/livez", "/readyz", "/livez/serializable_read", *(f"/readyz/{name}" for name in names)):
        answer = await ask(app, target)
        assert answer.short == (200, "ok\n"), target
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == (PLAIN, "nosniff")
    whole = "".join(f"[+]{name} ok\n" for name in names)
    assert (await ask(app, "/readyz?verbose")).short == (200, f"{whole}ok\n")
    less = whole.replace("[+]linearizable_read ok\n", "")
    assert (await ask(app, "/readyz?verbose&exclude=linearizable_read&exclude=nope")).short == (200, f"{less}ok\n")
    assert (await ask(app, "/livez/serializable_read?verbose")).short == (200, "[+]serializable_read ok\nok\n")
    assert (await ask(app, "/livez", "POST")).status == 405
    assert (await ask(app, "/livez/linearizable_read")).status == 404

    monkeypatch.setattr("kvstore.gateway.health.alarms", lambda server: ["CORRUPT"])
    corrupt = whole.replace("[+]data_corruption ok", "[-]data_corruption failed: alarm activated: CORRUPT")
    assert (await ask(app, "/readyz")).short == (503, f"{corrupt}\n")
    assert (await ask(app, "/livez")).status == 200
    assert (await ask(app, "/health")).short == (503, '{"health":"false","reason":"ALARM CORRUPT"}\n')
    assert (await ask(app, "/health?exclude=CORRUPT")).short == HEALTHY
    monkeypatch.undo()

    async def fails() -> None:
        raise TIMEOUT.fresh()

    monkeypatch.setattr(survivor.server, "linearizable", fails)
    monkeypatch.setattr(type(survivor.server), "is_learner", True)
    answer = await ask(app, "/readyz?exclude=data_corruption")
    assert answer.short == (
        503,
        "[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n"
        "[-]non_learner failed: not supported for learner\n\n",
    )
    assert (await ask(app, "/livez")).status == 200


async def test_metrics_of_the_network_and_the_disk(live: Live) -> None:
    leader = await live.leader()
    follower = await live.follower()
    await leader.kv.Put(pb.PutRequest(key=b"k", value=b"v"))
    await until(lambda: follower.id in leader.server.peers.traffic.round_trips, "a heartbeat is answered")
    found = metrics_of((await ask(app_of(leader), "/metrics")).body.decode())
    to = f'To="{follower.id:x}"'
    assert found[f"etcd_network_peer_sent_bytes_total{{{to}}}"] > 0
    assert found[f'etcd_network_peer_received_bytes_total{{From="{follower.id:x}"}}'] > 0
    assert found[f"etcd_network_peer_round_trip_time_seconds_count{{{to}}}"] > 0
    assert found[f'etcd_network_peer_round_trip_time_seconds_bucket{{{to},le="0.0001"}}'] >= 0
    for name in ("etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"):
        assert found[f"{name}_count"] > 0
        assert found[f'{name}_bucket{{le="0.001"}}'] <= found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"]
        assert found[f"{name}_sum"] > 0
    assert 0 < found["os_fd_used"] <= found["os_fd_limit"]


async def test_metrics_of_what_was_applied(live: Live) -> None:
    """On every member, whoever was asked."""
    leader, follower = await live.leader(), await live.follower()
    apps = [app_of(leader), app_of(follower)]
    before = [metrics_of((await ask(app, "/metrics")).body.decode()) for app in apps]
    watching = follower.stub_watch.Watch()
    await watching.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", range_end=b"l")))
    assert (await watching.read()).created

    put = pb.PutRequest(key=b"k", value=b"v" * 1000)
    nested = pb.RequestOp(request_txn=pb.TxnRequest(success=[pb.RequestOp(request_delete_range={"key": b"x"})]))  # type: ignore[arg-type]
    calls = [
        leader.kv.Put(put),
        follower.kv.Put(pb.PutRequest(key=b"k2", prev_kv=True)),
        leader.kv.Txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put)])),
        leader.kv.Txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put), nested])),
        leader.kv.DeleteRange(pb.DeleteRangeRequest(key=b"k", range_end=b"l")),
        leader.kv.DeleteRange(pb.DeleteRangeRequest(key=b"nothing")),
    ]
    for call in calls:
        await call
    lease = leader.stub_lease
    for number in (1, 2):
        await lease.LeaseGrant(pb.LeaseGrantRequest(ID=number, TTL=100))
    for key in (b"a", b"b"):
        await leader.kv.Put(pb.PutRequest(key=key, lease=1))
    await lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=1))
    alive = lease.LeaseKeepAlive()
    await alive.write(pb.LeaseKeepAliveRequest(ID=2))
    assert (await alive.read()).TTL == 100
    alive.cancel()
    await leader.kv.Compact(pb.CompactionRequest(revision=leader.server.store.current_revision, physical=True))
    compactors = [member.server.compactor for member in live.running]
    await until(lambda: all(one.removed and not one.running for one in compactors), "all have done it")
    for member in (leader, follower):
        await member.maintenance.Hash(pb.HashRequest())
        await member.maintenance.HashKV(pb.HashKVRequest())
        await member.maintenance.Defragment(pb.DefragmentRequest())
        assert [blob async for blob in member.maintenance.Snapshot(pb.SnapshotRequest())]

    for app, earlier in zip(apps, before, strict=True):
        text = (await ask(app, "/metrics")).body.decode()
        found = metrics_of(text)
        grown = {name: value - earlier[name] for name, value in found.items() if name in earlier}
        debugging = "etcd_debugging"
        assert (grown["etcd_mvcc_put_total"], grown["etcd_mvcc_txn_total"]) == (6, 2)
        assert grown["etcd_mvcc_delete_total"] == 3 + 2, "requests and operations, and keys of the lease"
        assert 3000 < grown[f"{debugging}_mvcc_total_put_size_in_bytes"] < 5000
        assert grown["etcd_disk_wal_write_bytes_total"] > 3000
        assert grown[f"{debugging}_lease_granted_total"] == 2
        assert grown[f"{debugging}_lease_revoked_total"] == 1
        assert grown[f'{debugging}_lease_ttl_total_bucket{{le="64"}}'] == 0
        assert grown[f'{debugging}_lease_ttl_total_bucket{{le="128"}}'] == 2
        assert f'{debugging}_lease_ttl_total_bucket{{le="8.388608e+06"}}' in found, "as Go writes it"
        assert grown[f"{debugging}_mvcc_db_compaction_keys_total"] > 0
        assert found[f"{debugging}_mvcc_db_compaction_last"] > 1.7e9
        for name in (
            *("etcd_mvcc_hash", "etcd_mvcc_hash_rev", "etcd_disk_backend_defrag", "etcd_disk_backend_snapshot"),
            f"{debugging}_mvcc_db_compaction_total",
        ):
            unit, wanted = ("milliseconds", 3) if "compaction" in name else ("seconds", 2)
            assert grown[f"{name}_duration_{unit}_count"] == wanted, "of all members: they share this process"
        applies = 'op="Batch",success="true",version="v3"'
        assert grown[f"etcd_server_apply_duration_seconds_count{{{applies}}}"] > 0
        assert found["etcd_server_snapshot_apply_in_progress_total"] == 0
        assert found["promhttp_metric_handler_requests_in_flight"] == 1
        assert "# TYPE etcd_server_health_success counter\n" in text
    assert found[f"{debugging}_mvcc_events_total"] == 6, "to its watcher: 4 puts, 2 deletions"
    assert grown[f"{debugging}_lease_renewed_total"] == 0, "the leader renews"
    watching.cancel()
