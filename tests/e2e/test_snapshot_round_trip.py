"""etcd -> ours -> etcd by snapshot files: nobody can tell the last from the first."""

import asyncio
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from kvstore.client import Client
from kvstore.client.errors import Compacted
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from kvstore.pb.auth_pb2 import Role, User
from kvstore.snapshot.save import FILES_MAX
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.etcd_state import (
    Etcd,
    dump,
    etcd_hash_kv,
    etcdctl,
    etcdutl,
    fill,
    hash_kv_of,
    leases_of,
    restore,
    revisions_of,
)
from tests.kvstore.bbolt.files import decode
from tests.kvstore.snapshot.programs import ETCD_34, ETCDCTL_34

MakeCluster = Callable[..., Cluster]


def restored(cluster: Cluster, snapshot: Path, *flags: str) -> Cluster:
    """Give each member a directory from the file; as an operator would, one after the other."""
    for member in cluster.members:
        said = restore(
            snapshot,
            f"--name={member.name}",
            f"--data-dir={member.data_dir}",
            f"--initial-cluster={cluster.initial_cluster}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            *flags,
        )
        print(f"{member.name}: {said.splitlines()[0]}")
    cluster.start()
    return cluster


def database(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    return decode(path, path.stat().st_size // 512 * 512)


async def same_everywhere(first: str, others: list[str], revisions: list[int]) -> None:
    """Full dumps at these revisions, and the leases with their keys."""
    for revision in revisions:
        expected = await dump(first, revision)
        for url in others:
            assert await dump(url, revision) == expected, f"{url} at {revision}"
        print(f"revision {revision}: {len(expected)} keys, equal on {1 + len(others)}")
    leases = await leases_of(first)
    for url in others:
        assert await leases_of(url) == leases
    print(f"{len(leases)} leases with {sum(len(keys) for _, keys in leases.values())} keys, equal")


# Some are deleted again: of 115,000 more than 100,000 are left.
@pytest.mark.parametrize(
    "keys", [5000, pytest.param(115_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])], ids=["5k", "100k"]
)
def test_round_trip(make_cluster: MakeCluster, tmp_path: Path, keys: int) -> None:
    first_file, second_file = tmp_path / "first.db", tmp_path / "second.db"
    ours = make_cluster(3)
    with Etcd(tmp_path / "first") as first:
        asyncio.run(fill(first.client_url, keys, seed=keys))
        add_users(first.client_url)
        etcdctl(first.client_url, "snapshot", "save", str(first_file))
        compact = asyncio.run(hash_kv_of(first.client_url, 0))[1]
        newest = asyncio.run(revisions_of(first.client_url))
        revisions = [compact, compact + 1, (compact + newest) // 2, newest - 1, newest]
        print(f"etcd: revision {newest}, compacted {compact}: {etcdutl('snapshot', 'status', str(first_file))}")

        restored(ours, first_file)
        urls = [member.client_url for member in ours.members]
        asyncio.run(same_everywhere(first.client_url, urls, revisions))
        assert len({asyncio.run(hash_kv_of(url, newest)) for url in urls}) == 1

        etcdctl(urls[0], "snapshot", "save", str(second_file))
        print(f"ours: {etcdutl('snapshot', 'status', str(second_file))}")
        before, after = database(first_file), database(second_file)
        assert after[b"key"] == before[b"key"]
        assert after[b"lease"] == before[b"lease"]
        same_users(before, after)
        etcdutl("snapshot", "restore", str(second_file), "--data-dir", str(tmp_path / "second"))
        with Etcd(tmp_path / "second") as second:
            asyncio.run(same_everywhere(first.client_url, [second.client_url], revisions))
            for revision in revisions[1:]:
                hashes = {asyncio.run(hash_kv_of(url, revision)) for url in (first.client_url, second.client_url)}
                assert hashes == {(etcd_hash_kv(after[b"key"], revision, compact), compact)}
                print(f"hashkv of both etcds and of our rows at {revision}: {hashes}")
            assert etcdctl(second.client_url, "put", "more", "1").stdout == "OK\n"
            assert asyncio.run(revisions_of(second.client_url)) == newest + 1


def same_users(before: dict[bytes, dict[bytes, bytes]], after: dict[bytes, dict[bytes, bytes]]) -> None:
    """An absent authEnabled means the same as 0."""
    off = {b"authEnabled": b"\0"}
    assert off | after[b"auth"] == off | before[b"auth"]
    for bucket, kind in ((b"authUsers", User), (b"authRoles", Role)):
        found = [{name: kind.FromString(row) for name, row in one[bucket].items()} for one in (before, after)]
        assert found[0] == found[1]
        print(f"{len(found[0])} rows of {bucket.decode()}, equal")


ASKED_OF_AUTH = [
    ["auth", "status"],
    ["user", "list"],
    ["role", "list"],
    *(["user", "get", name, "-w", "json"] for name in ("root", "alice", "bob", "cert")),
    *(["role", "get", name] for name in ("reader", "writer")),
]


def add_users(url: str) -> None:
    for command in (
        *("user add root:secret", "user grant-role root root", "role add root"),
        *("user add alice:wonder", "user add bob:builder", "user add cert --no-password"),
        *("role add reader", "role add writer", "role add nobody"),
        *("role grant-permission reader read k --prefix", "role grant-permission reader read z --from-key"),
        *("role grant-permission writer readwrite w", "role grant-permission writer write k1 k3"),
        *("user grant-role alice reader", "user grant-role alice writer", "user grant-role bob writer"),
        *("role delete nobody", "user grant-role cert reader"),
    ):
        etcdctl(url, *command.split())


def answers_about_users(url: str) -> list[str]:
    """What etcdctl says to root about users and roles, and to others about what they may do."""

    def said(user: str, *arguments: str) -> str:
        done = etcdctl(url, f"--user={user}", *arguments, check=False)
        error = done.stderr.strip().splitlines()[-1] if done.returncode else ""
        return f"{arguments}: {done.returncode} {_without_header(done.stdout)} {error}"

    found = [said("root:secret", *arguments) for arguments in ASKED_OF_AUTH]
    found += [said(user, "get", "k1") for user in ("alice:wonder", "bob:builder", "alice:wrong", "nobody:x", "cert:x")]
    found += [said("alice:wonder", *arguments) for arguments in (["get", "a"], ["get", "zz"], ["put", "k1", "v1"])]
    found += [said("alice:wonder", "put", key, "x") for key in ("k3", "z")]
    return [*found, said("bob:builder", "user", "list")]


def _without_header(text: str) -> str:
    return re.sub(r'"header":\{[^}]*\},?', "", text)


def test_users_and_roles(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Passwords, roles, ranges, and that they are asked for: the same on all three."""
    save = ["--user=root:secret", "snapshot", "save"]
    first_file, second_file = tmp_path / "first.db", tmp_path / "second.db"
    with Etcd(tmp_path / "first") as first:
        etcdctl(first.client_url, "put", "k1", "v1")
        add_users(first.client_url)
        etcdctl(first.client_url, "auth", "enable")
        expected = answers_about_users(first.client_url)
        print("\n".join(expected))
        etcdctl(first.client_url, *save, str(first_file))
    ours = restored(make_cluster(1), first_file)
    url = ours.members[0].client_url
    assert answers_about_users(url) == expected
    denied = etcdctl(url, "--user=bob:builder", "snapshot", "save", str(second_file), check=False)
    assert "etcdserver: permission denied" in denied.stderr  # 3.5.1 says so in other words, later ones in these
    etcdctl(url, *save, str(second_file))
    before, after = database(first_file), database(second_file)
    same_users(before, after)
    etcdutl("snapshot", "restore", str(second_file), "--data-dir", str(tmp_path / "second"))
    with Etcd(tmp_path / "second", user="root:secret") as second:
        assert answers_about_users(second.client_url) == expected


@pytest.fixture
def small(make_cluster: MakeCluster) -> Cluster:
    """One member with ten keys, of 64 KiB each."""
    cluster = make_cluster(1)
    cluster.start()
    for number in range(10):
        cluster.kv(cluster.members[0]).Put(rpc_pb2.PutRequest(key=b"k%d" % number, value=bytes([number]) * 65536))
    return cluster


def test_the_database_of_a_running_etcd(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A copy of member/snap/db has no hash, and free pages in it."""
    with Etcd(tmp_path / "first") as first:
        asyncio.run(fill(first.client_url, 500, seed=3))
        newest = asyncio.run(revisions_of(first.client_url))
        expected = asyncio.run(dump(first.client_url, newest))
        etcdctl(first.client_url, "snapshot", "save", str(tmp_path / "flushed.db"))  # commits what waits
        copy = tmp_path / "copy.db"
        copy.write_bytes((tmp_path / "first/member/snap/db").read_bytes())
    ours = restored(make_cluster(1), copy, "--skip-hash-check")
    assert asyncio.run(dump(ours.members[0].client_url, newest)) == expected


def test_the_programs_of_etcd_3_4(small: Cluster, tmp_path: Path) -> None:
    if not ETCD_34.exists() or not ETCDCTL_34.exists():
        pytest.skip("etcd 3.4 is not installed (Debian packages etcd-server, etcd-client)")
    url, file = small.members[0].client_url, tmp_path / "file.db"
    etcdctl(url, "snapshot", "save", str(file), program=ETCDCTL_34)
    etcdctl(url, "snapshot", "restore", str(file), "--data-dir", str(tmp_path / "old"), program=ETCDCTL_34)
    with Etcd(tmp_path / "old", ETCD_34) as old:
        asyncio.run(same_everywhere(url, [old.client_url], [11]))
        assert etcdctl(old.client_url, "put", "more", "1").stdout == "OK\n"


def test_a_revision_is_never_used_again(small: Cluster, make_cluster: MakeCluster, tmp_path: Path) -> None:
    """etcd #16028: who remembers a revision of the old cluster is told that it is gone, by get and by watch."""
    file = tmp_path / "file.db"
    etcdctl(small.members[0].client_url, "snapshot", "save", str(file))
    ours = restored(make_cluster(3), file, "--bump-revision=1000", "--mark-compacted")
    url = ours.members[0].client_url

    async def check() -> None:
        async with Client([url]) as client:
            found = await client.get("k", prefix=True)
            assert (found.header.revision, found.count, found.kvs[3].mod_revision) == (1011, 10, 5)
            for revision in (5, 11, 12, 1010):
                with pytest.raises(Compacted):
                    await client.get("k1", revision=revision)
                with pytest.raises(Compacted) as told:
                    async with client.watch("k", prefix=True, start_revision=revision) as watch:
                        await anext(aiter(watch))
                assert told.value.compact_revision == 1011
            async with client.watch("k", prefix=True, start_revision=1011) as watch:
                assert (await client.put("k1", "new")).header.revision == 1012
                event = (await anext(aiter(watch))).events[0]
                assert (event.kv.mod_revision, event.kv.version) == (1012, 2)
            assert (await client.get("k1", revision=1011)).value == b"\1" * 65536
            await client.compact(1012)
            with pytest.raises(Compacted):
                await client.get("k1", revision=1011)

    asyncio.run(check())

    async def hashed(url: str) -> tuple[int, int]:
        async with Client([url]) as client:
            await client.get("k")  # what was acknowledged is applied there
        return await hash_kv_of(url, 1012)

    assert len({asyncio.run(hashed(member.client_url)) for member in ours.members}) == 1


def test_a_new_member_of_a_restored_cluster(small: Cluster, make_cluster: MakeCluster, tmp_path: Path) -> None:
    """What was restored is in no log: the new member gets it as a snapshot."""
    file = tmp_path / "file.db"
    etcdctl(small.members[0].client_url, "snapshot", "save", str(file))
    ours = restored(make_cluster(1), file)
    new = ours.add_member()
    new.start()
    new.wait_ready()
    asyncio.run(same_everywhere(small.members[0].client_url, [new.client_url], [5, 11]))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".sst"))


def spooled(member: Member) -> list[str]:
    """Open files of the member's directory that have no name."""
    found: list[str] = []
    for path in Path(f"/proc/{member.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.append(str(path.readlink()))
    return [name for name in found if str(member.data_dir) in name and name.endswith("(deleted)")]


def test_killed_while_it_sends_a_snapshot(small: Cluster) -> None:
    (member,) = small.members
    for number in range(40):  # more than sockets and windows hold
        small.kv(member).Put(rpc_pb2.PutRequest(key=b"large%d" % number, value=bytes(1 << 20)))
    before = [name for name in names(member.data_dir) if "/" not in name]
    stub = rpc_pb2_grpc.MaintenanceStub(member.channel)
    # Four clients that do not read on are all there may be; when they go, their files go.
    streams = [stub.Snapshot(rpc_pb2.SnapshotRequest()) for _ in range(FILES_MAX)]
    assert len({next(stream).remaining_bytes for stream in streams}) == 1
    assert len(spooled(member)) == FILES_MAX
    with pytest.raises(grpc.RpcError, match="too many requests"):
        next(stub.Snapshot(rpc_pb2.SnapshotRequest()))
    for stream in streams:
        stream.cancel()
    wait_for(lambda: not spooled(member), "the files of clients that are gone are closed")
    stream = stub.Snapshot(rpc_pb2.SnapshotRequest())
    first = next(stream)
    assert first.remaining_bytes > 40_000_000
    # The file has no name, and its blocks go with the process.
    assert len(spooled(member)) == 1
    assert [name for name in names(member.data_dir) if "/" not in name] == before
    member.kill()
    with pytest.raises(grpc.RpcError):
        list(stream)
    member.start()
    member.wait_ready()
    assert [name for name in names(member.data_dir) if "/" not in name] == before
    assert len(list(rpc_pb2_grpc.MaintenanceStub(member.channel).Snapshot(rpc_pb2.SnapshotRequest()))) > 1000


def test_kvctl_killed_while_it_saves(small: Cluster, tmp_path: Path) -> None:
    """FILE is never half of one; what is left is FILE.part, and the next save replaces it."""
    (member,) = small.members
    url, file, part = member.client_url, tmp_path / "file.db", tmp_path / "file.db.part"
    save = [
        sys.executable,
        "-c",
        "from kvstore.kvctl.main import main; main()",
        f"--endpoints={url}",
        "snapshot",
        "save",
    ]
    stopped = (
        "import kvstore.kvctl.commands.snapshot_save as s, os, signal\n"
        "s.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file.write_bytes(b"an older one")
    killed = [*save[:2], stopped + save[2], *save[3:], str(file)]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert file.read_bytes() == b"an older one"
    assert part.exists()
    done = subprocess.run([*save, str(file)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"Snapshot saved at {file}\n"), done.stderr
    assert not part.exists()
    etcdctl(url, "snapshot", "save", str(tmp_path / "etcdctl.db"))
    assert file.read_bytes() == (tmp_path / "etcdctl.db").read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for write_out in ("simple", "json", "table", "fields"):
        status = ["snapshot", "status", str(file), "-w", write_out]
        ours = subprocess.run([*save[:3], *status], check=True, capture_output=True, text=True)
        assert ours.stdout == etcdutl(*status)
    file.write_bytes(file.read_bytes()[:40_000])
    bad = subprocess.run([*save[:3], "snapshot", "status", str(file)], check=False, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "bytes are here; copy it again" in bad.stderr
