"""Locks and elections of the client, of etcd's services, and of both on one queue."""

import asyncio
import gc
from typing import Any

import grpc.aio
import pytest

from kvstore.client import Client, errors, txn
from kvstore.client.election import Election
from kvstore.client.lock import Lock, _leave
from kvstore.pb.v3election_pb2 import CampaignRequest, ResignRequest
from kvstore.pb.v3election_pb2_grpc import ElectionStub
from kvstore.pb.v3lock_pb2 import LockRequest, UnlockRequest
from kvstore.pb.v3lock_pb2_grpc import LockStub
from tests.kvstore.client.clusters import Cluster

PATIENCE = 20.0


async def queued(client: Client, prefix: str, count: int) -> list[bytes]:
    """So many keys, the oldest first, once they are there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await client.get(prefix, prefix=True, sort_by="create", order="ascend")
            if found.count == count:
                return [kv.key for kv in found.kvs]
            await asyncio.sleep(0.02)


async def test_one_holder_at_a_time_in_the_order_of_their_coming(cluster: Cluster) -> None:
    seen: list[tuple[int, int]] = []
    inside = 0

    async def work(number: int) -> None:
        nonlocal inside
        async with Client(cluster.endpoints) as client, client.lock("l/one") as lock:
            inside += 1
            assert inside == 1
            seen.append((number, lock.revision))
            # The key proves it: a transaction that compares it cannot be that of a former holder.
            await client.txn([txn.create_revision(lock.key).equals(lock.revision)], [txn.put("l/last", str(number))])
            await asyncio.sleep(0.01)
            inside -= 1

    async with Client(cluster.endpoints) as client:
        async with client.lock("l/one"):
            tasks = []
            for number in range(5):
                tasks.append(asyncio.create_task(work(number)))
                await queued(client, "l/one/", number + 2)
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
        assert seen == sorted(seen, key=lambda one: one[1]), "fencing revisions grow"
        assert (await client.get("l/last")).value == b"4"
        assert await queued(client, "l/one/", 0) == []


async def test_a_waiter_that_gives_up_leaves_the_queue(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client, client.session() as session:
        async with client.lock("l/two"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), client.lock("l/two", session=session):
                    raise AssertionError("two holders")
            assert len(await queued(client, "l/two/", 1)) == 1
        async with client.lock("l/two", session=session) as again:
            assert again.key == b"l/two/%x" % session.lease
        assert await queued(client, "l/two/", 0) == [], "given back before the session ends"
        assert not session.is_lost


async def test_an_error_of_a_leave_that_nobody_waits_for_any_more_is_not_logged() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    leaving, over = asyncio.Event(), asyncio.Event()

    class Cut:
        """A claim whose member is gone."""

        async def leave(self) -> None:
            leaving.set()
            await over.wait()
            raise errors.SessionExpired("the session has ended while no member answered")

    task = asyncio.create_task(_leave(Cut()))  # type: ignore[arg-type]
    await leaving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    over.set()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    gc.collect()
    assert not told


async def test_a_lost_session_is_told(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        async with client.session(ttl=3) as session, client.lock("l/three", session=session) as held:
            waiting = asyncio.create_task(enter(client.lock("l/three", ttl=3)))
            [_, second] = await queued(client, "l/three/", 2)
            await client.lease_revoke(int(second.rpartition(b"/")[2], 16))
            with pytest.raises(errors.SessionExpired):
                await asyncio.wait_for(waiting, PATIENCE)
            assert not held.is_lost
            await client.lease_revoke(session.lease)
            await asyncio.wait_for(held.lost(), PATIENCE)
            assert held.is_lost
        async with client.lock("l/three"):
            pass


async def test_who_was_taken_out_of_the_queue_does_not_hold(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        async with client.lock("l/six"):
            waiting = asyncio.create_task(enter(client.lock("l/six")))
            [_, second] = await queued(client, "l/six/", 2)
            await client.delete(second)
        with pytest.raises(errors.SessionExpired):
            await asyncio.wait_for(waiting, PATIENCE)


async def enter(lock: Lock) -> None:
    async with lock:
        raise AssertionError("not ours")


async def test_a_leader_change_costs_neither_holder_nor_waiter(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        statuses = [await client.status(endpoint) for endpoint in cluster.endpoints]
        leader = next(number for number, status in enumerate(statuses) if status.is_leader)

        async def second() -> int:
            async with Client(cluster.endpoints) as other, other.lock("l/four") as lock:
                return lock.revision

        async with client.lock("l/four") as held:
            waiting = asyncio.create_task(second())
            await queued(client, "l/four/", 2)
            cluster.kill(leader)
        try:
            assert await asyncio.wait_for(waiting, PATIENCE) > held.revision
        finally:
            cluster.start_member(leader)
            await asyncio.to_thread(cluster.wait_ready)


async def test_the_lock_service_and_the_client_share_a_queue(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client, grpc.aio.insecure_channel(cluster.endpoints[0]) as channel:
        service: Any = LockStub(channel)
        lease = (await client.lease_grant(60)).id
        async with client.lock("l/five"):
            waiting = asyncio.ensure_future(service.Lock(LockRequest(name=b"l/five", lease=lease)))
            await queued(client, "l/five/", 2)
        locked = await asyncio.wait_for(waiting, PATIENCE)
        mine = asyncio.create_task(held_once(client.lock("l/five")))
        await queued(client, "l/five/", 2)
        assert not mine.done()
        await service.Unlock(UnlockRequest(key=locked.key))
        await asyncio.wait_for(mine, PATIENCE)


async def held_once(lock: Lock) -> None:
    async with lock:
        pass


async def test_election(cluster: Cluster) -> None:
    async with (
        Client(cluster.endpoints) as client,
        Client(cluster.endpoints) as other,
        grpc.aio.insecure_channel(cluster.endpoints[0]) as channel,
    ):
        watched: list[bytes] = []

        async def watch() -> None:
            async for kv in Election(client, "e").observe():
                watched.append(kv.value)

        observer = asyncio.create_task(watch())
        assert await client.election("e").leader() is None
        async with client.election("e") as first, other.election("e") as second:
            await first.campaign("one")
            await until(watched, b"one")
            standing = asyncio.create_task(second.campaign("two"))
            await queued(client, "e/", 2)
            await first.proclaim("uno")
            await until(watched, b"uno")
            service: Any = ElectionStub(channel)
            third = asyncio.ensure_future(service.Campaign(CampaignRequest(name=b"e", value=b"three")))
            await queued(client, "e/", 3)
            await first.resign()
            await asyncio.wait_for(standing, PATIENCE)
            await until(watched, b"two")
            assert second.revision > 0
            with pytest.raises(errors.NotLeader):
                await first.proclaim("x")
            await second.resign()
            led = await asyncio.wait_for(third, PATIENCE)
            await until(watched, b"three")
            await service.Resign(ResignRequest(leader=led.leader))
            leader = await client.election("e").leader()
            assert leader is None
        assert watched == [b"one", b"uno", b"two", b"three"]
        observer.cancel()


async def until(watched: list[bytes], last: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        while not watched or watched[-1] != last:
            await asyncio.sleep(0.01)


async def test_a_leader_whose_key_was_taken_is_told(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client, client.election("f", ttl=3) as election:
        await election.campaign("one")
        await client.delete(election.key)
        with pytest.raises(errors.NotLeader):
            await election.proclaim("two")
