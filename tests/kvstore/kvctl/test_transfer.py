"""Import and export: round trips, what is left out, and going on after a kill."""

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kvstore.kvctl.commands.export import refusal
from kvstore.kvctl.transfer import decode_line
from tests.kvstore.client.clusters import BIN, Cluster
from tests.kvstore.kvctl.processes import environment, kvctl

LIMIT = 1536 * 1024


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for number in range(40):
        file = root / f"d{number % 3}" / f"f{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(number * 100))
    (root / "odd \u20ac name").write_bytes(b"\xff\x00")
    (root / "empty").write_bytes(b"")
    return root


def test_a_folder_comes_back_byte_for_byte(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    acked, state = tmp_path / "acked", {"XDG_STATE_HOME": str(tmp_path / "state")}
    outcome = kvctl(cluster, "import", str(source), "--prefix=f/", f"--acked={acked}", **state)
    assert outcome.ok().startswith(b"acknowledged 42 (")
    records = [json.loads(line) for line in acked.read_bytes().splitlines()]
    assert {base64.b64decode(r["key"]) for r in records} == {b"f/" + os.fsencode(name) for name in tree(source)}
    assert all(r["revision"] > 0 for r in records)
    assert list((tmp_path / "state").rglob("*.jsonl")) == []
    assert kvctl(cluster, "export", "--prefix=f/", str(tmp_path / "out")).ok().startswith(b"exported 42 keys")
    assert tree(tmp_path / "out") == tree(source)

    lines = tmp_path / "f.jsonl"
    kvctl(cluster, "export", "--prefix=f/", str(lines)).ok()
    kvctl(cluster, "import", str(lines), "--prefix=g/", **state).ok()
    kvctl(cluster, "export", "--prefix=g/", str(tmp_path / "out2")).ok()
    assert tree(tmp_path / "out2") == tree(source)


def test_what_cannot_be_imported_is_listed(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "folder").mkdir(parents=True)
    (root / "fits").write_bytes(b"x" * (LIMIT - 200))
    (root / "larger").write_bytes(b"x" * LIMIT)
    (root / "link").symlink_to("fits")
    (root / "linked folder").symlink_to("folder")
    os.mkfifo(root / "pipe")
    outcome = kvctl(cluster, "import", str(root), "--prefix=o/", "-w", "json", XDG_STATE_HOME=str(tmp_path))
    outcome.failed(5, "4 left out")
    told = json.loads(outcome.out)
    assert told["acknowledged"] == 1
    assert sorted(told["left_out"]) == ["larger", "link", "linked folder", "pipe"]
    assert "left out: larger: 1572864 bytes are over the request limit" in outcome.error
    assert kvctl(cluster, "get", "o/", "--prefix", "--keys-only").ok() == b"o/fits\n\n"
    # With the limit lifted here it is the server that says no.
    outcome = kvctl(
        cluster, "import", str(root), "--prefix=o/", "--max-request-bytes=9999999", XDG_STATE_HOME=str(tmp_path)
    )
    outcome.failed(5, "4 left out")
    assert "larger: 1572864 bytes are over the server's request limit" in outcome.error


def test_lines_made_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"key_utf8": "a", "value_utf8": "\u20ac"}\n\n{"key": "Yg==", "value": "/w=="}\nnonsense\n{"value": ""}\n'
    )
    outcome = kvctl(cluster, "import", str(file), "--prefix=l/", XDG_STATE_HOME=str(tmp_path))
    outcome.failed(5, "2 left out")
    assert "line 4" in outcome.error
    assert "line 5" in outcome.error
    assert kvctl(cluster, "get", "l/", "--prefix").ok() == "l/a\n€\nl/b\n".encode() + b"\xff\n"


def test_keys_that_leave_the_folder_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "leads out").symlink_to(tmp_path)
    for key in ("e/../up", "e//abs", "e/", "e/a", "e/a/b", "e/leads out/x", "e/sub", "e/ok/../../x"):
        kvctl(cluster, "put", key, "v").ok()
    outcome = kvctl(cluster, "export", "--prefix=e/", str(out), "-w", "json")
    outcome.failed(5, "7 keys left out")
    assert json.loads(outcome.out)["exported"] == 1
    assert (out / "a").read_bytes() == b"v"
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "up").exists()
    assert list(out.rglob(".kvctl-*")) == []


@pytest.mark.parametrize("name", [b"", b"/a", b"..", b"a/../b", b"a//b", b"a/", b"./a", b"a\0b"])
def test_refused_names(name: bytes) -> None:
    assert refusal(name)


def test_bad_lines() -> None:
    for line in (b"[]", b"{", b'{"value":"eA=="}', b'{"key":"***"}', b'{"key":5}'):
        with pytest.raises(ValueError, match=r"."):
            decode_line(line)


def import_process(
    cluster: Cluster, source: Path, prefix: str, tmp_path: Path, *more: str
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            str(BIN / "kvctl"),
            f"--endpoints={','.join(cluster.endpoints)}",
            "import",
            str(source),
            f"--prefix={prefix}",
            f"--acked={tmp_path / 'acked'}",
            "--concurrency=4",
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
    )


def wait_for_lines(file: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while not file.exists() or len(file.read_bytes().splitlines()) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(1200):
        (root / f"{number:04}").write_bytes(b"%d" % number * 20)
    return root


def test_goes_on_after_kill_9_of_itself(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    process = import_process(cluster, many, "k/", tmp_path)
    wait_for_lines(tmp_path / "acked", 50, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = [json.loads(line) for line in (tmp_path / "acked").read_bytes().splitlines()]
    # A line torn by the kill must do no harm; nor may a deleted key or a changed file be taken for done.
    [journal] = (tmp_path / "state").rglob("*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"name": "tor')
    kvctl(cluster, "del", f"k/{before[0]['name']}").ok()
    (many / before[1]["name"]).write_bytes(b"changed")
    done = len(journal.read_bytes().splitlines()) - 2
    process = import_process(cluster, many, "k/", tmp_path)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert f"{done - 2} of them by an earlier run" in out.decode()
    assert not journal.exists()
    kvctl(cluster, "export", "--prefix=k/", str(tmp_path / "out")).ok()
    assert tree(tmp_path / "out") == tree(many)
    after = {
        record["name"]: record["revision"] for record in map(json.loads, (tmp_path / "acked").read_bytes().splitlines())
    }
    assert len(after) == 1200
    kept = [record for record in before[2:] if after[record["name"]] == record["revision"]]
    assert len(kept) >= len(before) - 2


def test_goes_on_by_itself_while_a_member_dies(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    process = import_process(cluster, many, "m/", tmp_path, "--no-resume")
    wait_for_lines(tmp_path / "acked", 50, process)
    cluster.kill(0)
    cluster.start_member(0)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert b"acknowledged 1200" in out
    cluster.wait_ready()
    kvctl(cluster, "export", "--prefix=m/", str(tmp_path / "out")).ok()
    assert tree(tmp_path / "out") == tree(many)


def test_two_imports_of_one_source_do_not_share_a_journal(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    first = import_process(cluster, many, "two/", tmp_path)
    wait_for_lines(tmp_path / "acked", 1, first)
    second = import_process(cluster, many, "two/", tmp_path)
    _, error = second.communicate(timeout=30)
    first.communicate(timeout=60)
    if second.returncode != 0:
        assert b"another import of the same source runs" in error
    assert first.returncode == 0
