"""What is kvctl's own: exit codes, errors, options before and behind the verb, completion, history."""

import json
import subprocess
import sys
import time

import pytest

from tests.kvstore.client.clusters import BIN, Cluster
from tests.kvstore.kvctl.processes import environment, kvctl, run
from tests.ports import free_ports


def test_values_come_back_as_they_were_put(cluster: Cluster) -> None:
    value = bytes(range(256)) * 10
    for arguments in (["put", "o/v"], ["put", "o/v", "-"]):
        assert kvctl(cluster, *arguments, stdin=value).ok() == b"OK\n"
        assert kvctl(cluster, "get", "o/v", "--print-value-only").ok() == value + b"\n"
    assert kvctl(cluster, "put", "o/dash", "--", "-1").ok() == b"OK\n"
    assert kvctl(cluster, "get", "o/", "--prefix", "--count-only").ok() == b"2\n"
    table = kvctl(cluster, "get", "o/dash", "-w", "table").ok().decode().splitlines()
    assert table[1].split("|")[1].strip() == "KEY"
    assert [cell.strip() for cell in table[3].split("|")[1:3]] == ["o/dash", "-1"]
    assert kvctl(cluster, "get", "o/a", "--range-end=o/e", "--keys-only").ok() == b"o/dash\n\n"


def test_global_options_stand_before_or_behind_the_verb(cluster: Cluster) -> None:
    endpoints = ",".join(cluster.endpoints)
    assert run("kvctl", "put", "g", "1", "--endpoints", endpoints).ok() == b"OK\n"
    before = run("kvctl", "--endpoints", endpoints, "-w", "json", "get", "g").ok()
    assert json.loads(before)["count"] == 1
    assert run("kvctl", "get", "g", KVCTL_ENDPOINTS=endpoints).ok() == b"g\n1\n"
    assert run("kvctl", "get", "g", ETCDCTL_ENDPOINTS=endpoints).ok() == b"g\n1\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nope"], "kvctl --help"),
        (["get"], "kvctl get --help"),
        (["get", "k", "--bogus"], "--bogus"),
        (["get", "k", "--prefix", "--from-key"], "choose one"),
        (["get", "k", "l", "--prefix"], "choose one"),
        (["get", "k", "--sort-by=x"], "--sort-by"),
        (["get", "k", "--order=x"], "--order"),
        (["get", "k", "--consistency=x"], "consistency"),
        (["get", "k", "--print-value-only", "-w", "json"], "-w simple"),
        (["get", "k", "-w", "xml"], "xml"),
        (["put", "k", "v", "-w", "table"], "no table"),
        (["put", "k", "v", "--ignore-value"], "--ignore-value"),
        (["put", "k", "v", "--lease=xyz"], "hexadecimal"),
        (["get", "k", "--command-timeout=soon"], "duration"),
        (["get", "k", "--config=/nonexistent.yaml"], "no such config file"),
        (["compact", "x"], "kvctl compact --help"),
        (["import", "somewhere"], "--prefix"),
        (["history", "--prefix"], "KEY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2(arguments: list[str], text: str) -> None:
    run("kvctl", *arguments).failed(2, text)


def test_no_member_is_3_and_nothing_was_sent() -> None:
    [port] = free_ports(1)
    for arguments in (["get", "k"], ["put", "k", "v"], ["watch", "k"], ["txn"], ["endpoint", "status"]):
        outcome = run(
            "kvctl", f"--endpoints=127.0.0.1:{port}", "--dial-timeout=100ms", "--command-timeout=1s", *arguments
        )
        assert outcome.code == 3, (arguments, outcome.error)
        assert "Traceback" not in outcome.error


def test_errors_of_the_server_are_1(cluster: Cluster) -> None:
    kvctl(cluster, "get", "").failed(1, "key is not provided")
    kvctl(cluster, "get", "k", "--rev=100000").failed(1, "future revision")
    kvctl(cluster, "txn", stdin=b"garbage\n\n\n").failed(1, "malformed comparison: garbage")
    kvctl(cluster, "put", "k", stdin=b"x" * (1536 * 1024 + 1)).failed(1, "request is too large")
    kvctl(cluster, "get", "k", "--endpoints=ftp://127.0.0.1:1").failed(1, "only http://")


def test_an_unhealthy_endpoint_is_told_beside_the_healthy(cluster: Cluster) -> None:
    [port] = free_ports(1)
    both = f"--endpoints={cluster.endpoints[0]},127.0.0.1:{port}"
    outcome = run("kvctl", both, "--dial-timeout=200ms", "endpoint", "health", "-w", "json")
    outcome.failed(1, "unhealthy cluster")
    assert [entry["health"] for entry in json.loads(outcome.out)] == [True, False]
    outcome = run("kvctl", both, "--dial-timeout=200ms", "endpoint", "status")
    outcome.failed(3, "1 of 2 endpoints did not answer")
    assert outcome.out.startswith(cluster.endpoints[0].encode())


def test_endpoints_of_the_whole_cluster(cluster: Cluster) -> None:
    one = f"--endpoints={cluster.endpoints[0]}"
    for verb in ("status", "hashkv", "health"):
        lines = run("kvctl", one, "endpoint", verb, "--cluster").ok().decode().splitlines()
        assert {line.split(",")[0].split(" ")[0] for line in lines} == {f"http://{url}" for url in cluster.endpoints}


def test_history(cluster: Cluster) -> None:
    if cluster.kind == "etcd":
        kvctl(cluster, "history").failed(1, "does not serve it")
        return
    kvctl(cluster, "put", "hi/a", "1").ok()
    kvctl(cluster, "del", "hi/a").ok()
    first, second = kvctl(cluster, "history", "hi/a").ok().decode().splitlines()
    revision, when, member, kind, key, value = first.split("\t")
    assert (kind, key, value) == ("PUT", "hi/a", "1")
    assert when.endswith("Z")
    assert int(member, 16) > 0
    assert second.split("\t")[3] == "DELETE"
    [change] = [
        json.loads(line)
        for line in kvctl(cluster, "history", "hi/", "--prefix", "--limit=1", "-w", "json").ok().splitlines()
    ]
    assert change["kv"]["mod_revision"] == int(revision)
    assert b"| REVISION |" in kvctl(cluster, "history", "--from", revision, "-w", "table").ok()
    assert (
        b'"Type" : DELETE' in kvctl(cluster, "history", "hi/a", "--from", str(int(revision) + 1), "-w", "fields").ok()
    )


def test_a_reader_that_leaves_ends_kvctl_quietly(cluster: Cluster) -> None:
    for number in range(3):
        kvctl(cluster, "put", f"p/{number}", stdin=b"x" * 500_000).ok()
    command = f"{BIN / 'kvctl'} --endpoints={cluster.endpoints[0]} get p/ --prefix | head -c 10"
    outcome = subprocess.run(command, shell=True, capture_output=True, env=environment(), check=True)
    assert (outcome.stdout, outcome.stderr) == (b"p/0\nxxxxxx", b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path: object, shell: str) -> None:
    script = run("kvctl", "completion", "show", shell).ok().decode()
    assert "_KVCTL_COMPLETE" in script
    installed = run("kvctl", "completion", "install", shell, HOME=str(tmp_path)).ok().decode()
    path = installed.split("wrote ")[1].split(";")[0]
    assert path.startswith(str(tmp_path))
    with open(path) as file:
        assert file.read().strip() == script.strip()


def test_completion_knows_verbs_and_options() -> None:
    def words(line: str) -> list[str]:
        more = {"_KVCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return run("kvctl", **more).out.decode().split()

    assert words("kvctl endp") == ["endpoint"]
    assert words("kvctl endpoint ") == ["status", "health", "hashkv"]
    assert "--prefix" in words("kvctl get --p")


def test_help_has_examples_and_exit_codes() -> None:
    top = run("kvctl", "--help").ok().decode()
    verbs = ["put", "get", "del", "txn", "watch", "compact", "history", "import", "export", "member list", "version"]
    for verb in [*verbs, "endpoint status", "endpoint health", "endpoint hashkv", "completion install"]:
        assert verb.split()[0] in top
        text = run("kvctl", *verb.split(), "--help").ok().decode()
        assert "Exit codes" in text
        assert f"kvctl {verb}" in text.replace("Usage: kvctl", "") or verb == "version"


def test_start_up_loads_no_grpc() -> None:
    slow = ("grpc", "google.protobuf", "tenacity", "yaml")
    code = f"import sys, kvstore.kvctl.main as m; m.build(); print([x for x in {slow} if x in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_interrupting_a_watch_is_130(cluster: Cluster) -> None:
    with subprocess.Popen(
        [str(BIN / "kvctl"), f"--endpoints={cluster.endpoints[0]}", "watch", "i", "--rev=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        deadline = time.monotonic() + 20
        assert process.stdout is not None
        assert process.stderr is not None
        import select

        while not select.select([process.stdout], [], [], 0.2)[0]:
            kvctl(cluster, "put", "i", "1").ok()
            assert time.monotonic() < deadline
        process.send_signal(2)
        process.wait(10)
        assert process.returncode == 130
        assert process.stderr.read() == b""
