"""Data directories from a snapshot file: whole or not there, of the right members, alike on all of them."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.config import ServerConfig
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.store import MvccStore
from kvstore.server import restore as module
from kvstore.server.bootstrap import OpenMember, first_members, open_member
from kvstore.server.restore import RestoreError, restore
from kvstore.state.cluster import cluster_id
from tests.kvstore.snapshot.files import save
from tests.kvstore.state.support import State, state_hash

CLUSTER = (("a", ("http://a:2380",)), ("b", ("http://b:2380",)), ("c", ("http://c:2380",)))


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    state = State(tmp_path / "s")
    for number in range(300):
        await state.put(b"k%d" % (number % 100), b"v" * number)
    await save(state.store, tmp_path / "file.db")
    state.close()
    return tmp_path / "file.db"


def config_of(tmp_path: Path, name: str = "a") -> ServerConfig:
    return ServerConfig(
        name=name, data_dir=tmp_path / "data" / name, initial_cluster=CLUSTER, initial_cluster_given=True
    )


def close(member: OpenMember) -> None:
    member.storage.close()
    member.store.close()
    member.release()


async def restored(config: ServerConfig, file: Path, **options: int) -> module.Restored:
    return await asyncio.to_thread(lambda: restore(config, file, **options))  # type: ignore[arg-type]


async def test_all_members_begin_alike(tmp_path: Path, file: Path) -> None:
    hashes, identities = set(), []
    for name, _ in CLUSTER:
        config = config_of(tmp_path, name)
        made = await restored(config, file)
        member = await open_member(config)  # as a start does
        assert member.identity.member_id == made.member_id
        assert member.identity.cluster_id == made.cluster_id == cluster_id([one.id for one in first_members(config)])
        assert member.loaded.configuration.voters == tuple(sorted(one.id for one in first_members(config)))
        assert (member.storage.first_index, member.storage.last_index) == (2, 1)
        assert (member.loaded.hard_state.term, member.loaded.hard_state.commit) == (1, 1)
        assert member.store.current_revision == 301
        hashes.add((state_hash(member.store), await hash_kv(member.store, 0)))
        identities.append(member.identity)
        close(member)
    assert len(hashes) == 1
    assert len({one.instance for one in identities}) == 3, "each is a directory of its own"
    assert len({one.member_id for one in identities}) == 3


async def test_what_is_told_adds_up(tmp_path: Path, file: Path) -> None:
    told: list[int] = []
    await asyncio.to_thread(lambda: restore(config_of(tmp_path), file, told=told.append))
    total = module.work_bytes(file, skip_hash_check=False)
    assert 0.5 * total < sum(told) <= total


async def test_a_directory_that_exists_is_refused(tmp_path: Path, file: Path) -> None:
    config = config_of(tmp_path)
    config.data_dir.mkdir(parents=True)
    await restored(config, file)  # an empty one is none
    before = state_of(config.data_dir)
    with pytest.raises(RestoreError, match="exists already; give another --data-dir"):
        await restored(config, file)
    assert state_of(config.data_dir) == before


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_damaged_files(tmp_path: Path, file: Path) -> None:
    data = file.read_bytes()
    bad = tmp_path / "bad.db"
    config = config_of(tmp_path)

    async def refusal(content: bytes, skip: bool = False) -> str:
        bad.write_bytes(content)
        with pytest.raises(RestoreError) as refused:
            await restored(config, bad, skip_hash_check=skip)
        assert not config.data_dir.exists()
        return str(refused.value)

    flipped = data[:20_000] + bytes([data[20_000] ^ 1]) + data[20_001:]
    assert "its SHA-256 is another one" in await refusal(flipped)
    assert "ends without a SHA-256" in await refusal(data[:-32])
    assert "ends without a SHA-256" in await refusal(data[:-7])
    assert "no valid meta page" in await refusal(b"", skip=True)
    assert "no valid meta page" in await refusal(b"x" * 512 * 9, skip=True)
    noise = b"x" * 512 * 9
    assert "no valid meta page" in await refusal(noise + hashlib.sha256(noise).digest())
    assert "bytes are here" in await refusal(data[: len(data) // 2 // 512 * 512], skip=True)
    bad.unlink()
    with pytest.raises(RestoreError, match=r"bad\.db: No such file"):
        await restored(config, bad)


async def test_a_copy_without_a_hash(tmp_path: Path, file: Path) -> None:
    """As DATA/member/snap/db of an etcd."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.read_bytes()[:-32])
    made = await restored(config_of(tmp_path), copy, skip_hash_check=True)
    assert made.loaded.revision == 301


async def test_without_room_nothing_begins(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_BYTES", 1 << 62)
    with pytest.raises(RestoreError, match=r"needs about \d+ bytes of disk"):
        await restored(config_of(tmp_path), file)
    assert not any((tmp_path / "data").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from kvstore.config import ServerConfig
from kvstore.server import restore
from kvstore.server.state_folders import StateFolders
from kvstore.snapshot import load

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

owner, name = {"rows": (load._Loading, "_bind_leases"), "current": (StateFolders, "swing"),
               "identity": (restore, "write_identity"), "rename": (Path, "rename")}[sys.argv[3]]
setattr(owner, name, die)
config = ServerConfig(name="a", data_dir=Path(sys.argv[2]), initial_cluster=(("a", ("http://a:1",)),))
restore.restore(config, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("where", ["rows", "current", "identity", "rename"])
async def test_killed_in_the_middle(tmp_path: Path, file: Path, where: str) -> None:
    place = tmp_path / "data"
    command = [sys.executable, "-c", KILLED, str(file), str(place), where]
    for _ in range(2):  # and killed again over what was left
        killed = await asyncio.to_thread(lambda: subprocess.run(command, check=False, capture_output=True))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not place.exists()
    config = ServerConfig(name="a", data_dir=place, initial_cluster=(("a", ("http://a:1",)),))
    await restored(config, file)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("data")] == ["data"]
    member = await open_member(config)
    assert member.store.current_revision == 301
    close(member)


async def test_two_at_once(tmp_path: Path, file: Path) -> None:
    """The second is refused and does no harm to the first."""
    config = config_of(tmp_path)
    found: list[str] = []

    def second(_: int) -> None:
        if not found:
            with pytest.raises(RestoreError) as refused:
                restore(config, file)
            found.append(str(refused.value))

    # While the first reads rows it holds the lock.
    await asyncio.to_thread(lambda: restore(config, file, skip_hash_check=True, told=second))
    assert "is in use by another process" in found[0]
    member = await open_member(config)
    close(member)


def kvstore(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "ETCD_"))}
    return subprocess.run(
        [sys.executable, "-m", "kvstore", "restore", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**environment, "COLUMNS": "200"},
    )


def test_the_command(tmp_path: Path, file: Path) -> None:
    done = kvstore("--from", str(file), "--name", "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "restored 100 keys and 0 leases at revision 301 (compacted: 0) to m.kvstore",
        "member 8e9e05c52164694d of cluster cdf818194e3a8c32: start it with the same options",
    ]
    assert json.loads((tmp_path / "m.kvstore" / "member.json").read_text())["name"] == "m"
    again = kvstore("--from", str(file), "--name", "m", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "kvstore: m.kvstore exists already; give another --data-dir, or move it away\n"
    shutil.rmtree(tmp_path / "m.kvstore")
    bumped = kvstore("--from", str(file), "--bump-revision", "1000", "--mark-compacted", "--name", "m", cwd=tmp_path)
    assert "at revision 1301 (compacted: 1301)" in bumped.stdout
    store = MvccStore.open(tmp_path / "m.kvstore" / "state-1")
    assert (store.current_revision, store.compact_revision) == (1301, 1301)
    store.close()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--bump-revision", "5"], 2, "belong together"),
        (["--mark-compacted"], 2, "belong together"),
        (["--name", "x", "--initial-cluster", "y=http://y:2380"], 2, "--name=x, is not in it"),
        (["--initial-cluster", "nonsense"], 2, "name=url is needed"),
        (["--data-dir", "file.db"], 1, "exists already"),
    ],
)
def test_wrong_usage(tmp_path: Path, file: Path, arguments: list[str], code: int, text: str) -> None:
    done = kvstore("--from", str(file), *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.db", "s"]
