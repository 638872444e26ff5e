"""What a cluster shows of its state, etcd's or ours: filled at random, and compared revision by revision."""

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kvstore.client import Client
from kvstore.client import txn as ops
from kvstore.client.types import KeyValue
from kvstore.pb.kv_pb2 import KeyValue as KeyValueMessage
from kvstore.snapshot.crc32c import crc32c
from kvstore.snapshot.schema import split_revision
from tests.kvstore.snapshot.programs import ETCD, ETCDCTL, ETCDUTL
from tests.ports import free_ports

IN_FLIGHT = 50
PAGE = 5000
TXN_PUTS = 100

Dump = dict[bytes, tuple[bytes, int, int, int, int]]


class Etcd:
    """One real etcd, of 3.5.1. A context manager."""

    def __init__(self, folder: Path, program: Path = ETCD, user: str = "") -> None:
        self._as = [f"--user={user}"] if user else []
        client, peer = free_ports(2)
        self.client_url = f"http://127.0.0.1:{client}"
        self._log = folder.with_suffix(".log")
        self._command = [
            *(str(program), f"--data-dir={folder}", f"--listen-client-urls={self.client_url}"),
            *(f"--advertise-client-urls={self.client_url}", f"--listen-peer-urls=http://127.0.0.1:{peer}"),
            *("--log-level=error", "--snapshot-count=1000000", "--bcrypt-cost=4"),
        ]

    def __enter__(self) -> "Etcd":
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        try:
            while etcdctl(self.client_url, *self._as, "endpoint", "health", check=False).returncode:
                assert self._process.poll() is None, f"etcd ended:\n{self._log.read_text()}"
                assert time.monotonic() < deadline, f"no healthy etcd:\n{self._log.read_text()}"
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def etcdctl(url: str, *arguments: str, check: bool = True, program: Path = ETCDCTL) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(program), f"--endpoints={url}", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def etcdutl(*arguments: str) -> str:
    done = subprocess.run([str(ETCDUTL), *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def fill(url: str, keys: int, seed: int) -> list[int]:
    """About `keys` live keys with history, deletions and leases, compacted in the middle. Returns the leases."""
    rng = random.Random(seed)
    async with Client([url], timeout=60) as client:
        leases = [(await client.lease_grant(rng.randint(1000, 90_000))).id for _ in range(max(10, keys // 100))]
        await _put_all(client, range(keys), b"first", rng, leases)
        await _rewrite(client, keys // 5, keys, rng, leases)
        revision = (await client.get(b"\0", from_key=True, count_only=True)).header.revision
        await client.compact(revision - keys // 10, physical=True)
        await _rewrite(client, keys // 10, keys, rng, leases)
        for lease in leases[: len(leases) // 10]:
            await client.lease_revoke(lease)
    return leases


def key_of(number: int) -> bytes:
    return b"dir%d/%07d" % (number % 7, number)


async def _put_all(client: Client, numbers: range, value: bytes, rng: random.Random, leases: list[int]) -> None:
    """Each key once, many in a transaction."""
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def put(some: range) -> None:
        async with limit:
            puts = [
                ops.put(key_of(n), value + b"%d" % n, lease=rng.choice(leases) if rng.random() < 0.1 else 0)
                for n in some
            ]
            await client.txn([], puts)

    async with asyncio.TaskGroup() as group:
        for start in range(numbers.start, numbers.stop, TXN_PUTS):
            group.create_task(put(range(start, min(start + TXN_PUTS, numbers.stop))))


async def _rewrite(client: Client, count: int, keys: int, rng: random.Random, leases: list[int]) -> None:
    """Single changes: of values, of leases; deletions of one key and of some; and keys that come back."""
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def change() -> None:
        key = key_of(rng.randrange(keys))
        chance = rng.random()
        async with limit:
            if chance < 0.7:
                lease = rng.choice([0, 0, rng.choice(leases)])
                await client.put(key, rng.randbytes(rng.choice([0, 5, 80, 900])), lease=lease)
            elif chance < 0.98:
                await client.delete(key)
            else:
                await client.delete(key, key[:-1] + b"9")

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(change())


async def dump(url: str, revision: int) -> Dump:
    """Everything at a revision."""
    found: Dump = {}
    async with Client([url], timeout=60) as client:
        key = b"\0"
        while True:
            page = await client.get(key, from_key=True, revision=revision, limit=PAGE, serializable=True)
            found |= {kv.key: _fields(kv) for kv in page.kvs}
            if not page.more:
                return found
            key = page.kvs[-1].key + b"\0"


def _fields(kv: KeyValue) -> tuple[bytes, int, int, int, int]:
    return kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease


async def leases_of(url: str) -> dict[int, tuple[int, list[bytes]]]:
    """Granted TTL and keys of all leases."""
    async with Client([url], timeout=60) as client:
        found: dict[int, tuple[int, list[bytes]]] = {}
        for lease in (await client.leases()).ids:
            answer = await client.lease_time_to_live(lease, keys=True)
            found[lease] = (answer.granted_ttl, sorted(answer.keys))
        return found


async def hash_kv_of(url: str, revision: int) -> tuple[int, int]:
    """(hash, compact revision)"""
    async with Client([url], timeout=60) as client:
        answer = await client.hash_kv(url, revision=revision)
        return answer.hash, answer.compact_revision


async def revisions_of(url: str) -> int:
    async with Client([url], timeout=60) as client:
        return (await client.status(url)).header.revision


def etcd_hash_kv(rows: dict[bytes, bytes], revision: int, compact: int) -> int:
    """What etcd 3.5.1's HashKV says of these rows of the bucket `key`: of revisions above the compaction all; of
    others those that are a key's newest at `revision` and no tombstone."""
    newest: dict[bytes, tuple[int, bytes, bool]] = {}
    for row, value in rows.items():
        main, _, is_tombstone = split_revision(row)
        if main <= revision:
            newest[KeyValueMessage.FromString(value).key] = (main, row, is_tombstone)
    keep = {row for _, row, is_tombstone in newest.values() if not is_tombstone}
    parts: list[bytes] = [b"key"]
    for row, value in rows.items():
        main = split_revision(row)[0]
        if main <= revision and (main > compact or row in keep or not keep):
            parts += (row, value)
    return crc32c(b"".join(parts))


def restore(snapshot: Path, *flags: str) -> str:
    """`kvstore restore`; its output."""
    command: list[Any] = [sys.executable, "-m", "kvstore", "restore", "--from", snapshot, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
