"""Side by side with the real etcdctl: the same arguments, the same bytes on stdout."""

import asyncio
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from kvstore.client import Client
from tests.kvstore.client.clusters import BIN, Cluster
from tests.kvstore.kvctl.processes import environment, etcdctl, kvctl

FORMATS = ["simple", "json", "fields"]
ODD = b'a "b"\\\t\x00\xff\x7f \xe2\x82\xac\xc2\xa0\xf0\x9f\x98\x80 <&>\n'

READS = [
    ["get", "s/a"],
    ["get", "s/none"],
    ["get", "s/", "--prefix"],
    ["get", "s/", "--prefix", "--keys-only"],
    ["get", "s/a", "s/c"],
    ["get", "s/b", "--from-key", "--limit=1"],
    ["get", "s/", "--prefix", "--sort-by=VERSION", "--order=DESCEND"],
    ["get", "s/", "--prefix", "--sort-by=modify"],
    ["get", "s/", "--prefix", "--sort-by=CREATE", "--order=ascend"],
    ["get", "s/", "--prefix", "--sort-by=VALUE", "--limit=2"],
    ["get", "s/a", "--consistency=s"],
    ["get", "", "--prefix", "--limit=1"],
    ["member", "list"],
]


@pytest.fixture(scope="module")
def filled(cluster: Cluster) -> Cluster:
    async def fill() -> None:
        async with Client(cluster.endpoints) as client:
            for key, value in (("s/a", b"1"), ("s/b", ODD), ("s/a", b"2"), ("s/c", b""), ("s/b", ODD)):
                await client.put(key, value)

    asyncio.run(fill())
    return cluster


def steady(output: bytes) -> bytes:
    """Without what differs between two calls: who answered, and the revision and time of now."""
    output = re.sub(rb'"member_id":\d+,?', b"", output)
    output = re.sub(rb'"header":\{([^}]*)"revision":\d+', rb'"header":{\1"revision":N', output)
    output = re.sub(rb'"(MemberID|Revision|Took)" : \S+', rb'"\1" : N', output)
    return re.sub(rb"\d+(\.\d+)?(ms|s|\xc2\xb5s)\b", b"TIME", output)


@pytest.mark.parametrize("write_out", FORMATS)
@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_reads(filled: Cluster, write_out: str, arguments: list[str]) -> None:
    command = [*arguments, "-w", write_out]
    expected = etcdctl(filled, command)
    assert steady(kvctl(filled, *command).ok()) == steady(expected.ok())


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "s/", "--prefix", "--print-value-only"],
        ["get", "s/", "--prefix", "--count-only", "-w", "fields"],
        ["member", "list", "-w", "table"],
    ],
    ids=" ".join,
)
def test_reads_of_one_format(filled: Cluster, arguments: list[str]) -> None:
    assert steady(kvctl(filled, *arguments).ok()) == steady(etcdctl(filled, arguments).ok())


@pytest.mark.parametrize("write_out", [*FORMATS, "table"])
@pytest.mark.parametrize("verb", ["status", "hashkv", "health"])
def test_endpoints(filled: Cluster, write_out: str, verb: str) -> None:
    def lines(outcome: bytes) -> list[bytes]:
        # Both ask all at once; etcdctl prints health in the order of the answers. Widths follow the times.
        outcome = re.sub(rb',"(storageVersion|dbSizeQuota)":("[^"]*"|\d+)', b"", outcome)  # etcdctl 3.6 prints these
        return sorted(re.sub(rb"[ -]+", b" ", steady(outcome)).replace(b'"health"', b'"health"').splitlines())

    arguments = ["endpoint", verb, "-w", write_out]
    ours, theirs = kvctl(filled, *arguments).ok(), etcdctl(filled, arguments).ok()
    if verb == "health" and write_out == "json":
        assert sorted(re.findall(rb"\{[^}]*\}", steady(ours))) == sorted(re.findall(rb"\{[^}]*\}", steady(theirs)))
    else:
        assert lines(ours) == lines(theirs)


WRITES = [
    (["put", "w/a", "1"], b""),
    (["put", "w/a", "2", "--prev-kv"], b""),
    (["put", "w/a", "--ignore-value", "--prev-kv"], b""),
    (["put", "w/b"], ODD),
    (["get", "w/", "--prefix"], b""),
    (
        ["txn"],
        b'value("w/a") = "2"\nmod("w/a") > "0"\n\nput w/c "x\\n\\x41\\u20ac"\nget w/ --prefix\ndel w/b --prev-kv\n\n\n',
    ),
    (["txn"], b'version("w/a") < "1"\nc("w/a") != "0"\n\nput w/z 1\n\nget w/a\nput w/d "a b" --prev-kv\n\n'),
    (["txn", "-i"], b'\nput w/e "\xe2\x82\xac"\n\n\n'),
    (["del", "w/none"], b""),
    (["del", "w/a", "--prev-kv"], b""),
    (["del", "w/", "--prefix", "--prev-kv"], b""),
]


@pytest.mark.parametrize("write_out", FORMATS)
def test_writes(cluster: Cluster, write_out: str) -> None:
    """The same writes by each tool, one after the other, from the same state: the outputs are the same."""

    def play(tool: str) -> list[bytes]:
        outputs = []
        for arguments, stdin in WRITES:
            command = [*arguments, "-w", write_out]
            outcome = kvctl(cluster, *command, stdin=stdin) if tool == "kvctl" else etcdctl(cluster, command, stdin)
            text = steady(outcome.ok())
            # Revisions of the two runs are a constant apart; what is left says whether they were set at all.
            outputs.append(re.sub(rb'(revision":|Revision" : )\d+', rb"\1N", text))
        return outputs

    for (arguments, _), ours, theirs in zip(WRITES, play("kvctl"), play("etcdctl"), strict=True):
        assert ours == theirs, arguments


@pytest.mark.parametrize("write_out", FORMATS)
async def test_watch(cluster: Cluster, write_out: str) -> None:
    async with Client(cluster.endpoints) as client:
        await client.delete("v/", prefix=True)
        revision = (await client.put("v/a", b"1")).header.revision
        await client.put("v/a", ODD.rstrip(b"\n"))
        await client.delete("v/a")
        await client.put("v/last", b"end")

    def watch(tool: str) -> bytes:
        arguments = ["watch", "v/", "--prefix", f"--rev={revision}", "--prev-kv", "-w", write_out]
        # One member, so that both are told by the same one.
        command = [str(BIN / tool), f"--endpoints={cluster.endpoints[0]}", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            output = b""
            while not re.search(rb"end\n|ZW5k|Value\" : \"end\"\n\"Lease\" : 0\n", output):
                line = process.stdout.readline()
                assert line, "the watch ended"
                output += line
            process.send_signal(signal.SIGINT)
            process.wait(10)
            if tool == "kvctl":
                assert process.returncode == 130
        return output

    assert steady(watch("kvctl")) == steady(watch("etcdctl"))


def test_compaction_under_both_names(cluster: Cluster) -> None:
    for verb in ("compact", "compaction"):
        header = kvctl(cluster, "put", "x", "1", "-w", "fields").ok()
        [revision] = re.findall(rb'"Revision" : (\d+)', header)
        assert kvctl(cluster, verb, revision.decode()).ok() == b"compacted revision " + revision + b"\n"
        kvctl(cluster, "get", "x", "--rev=1").failed(1, "required revision has been compacted", "kvctl history")


@pytest.mark.parametrize("write_out", FORMATS)
def test_leases(cluster: Cluster, write_out: str) -> None:
    """A lease through its life, each step by both tools; a grant and its revoke once by each."""
    granted = [tool(["lease", "grant", "300", "-w", write_out]) for tool in (_kvctl(cluster), _etcdctl(cluster))]
    ids = [_lease_id(output) for output in granted]
    assert steady(_nameless(granted[0], ids)) == steady(_nameless(granted[1], ids))
    lease = f"{ids[0]:016x}"
    kvctl(cluster, "put", "lease/a", "1", f"--lease={lease}").ok()
    for arguments in (
        ["lease", "timetolive", lease],
        ["lease", "timetolive", lease, "--keys"],
        ["lease", "timetolive", "77"],
        ["lease", "keep-alive", "--once", lease],
        ["lease", "list"],
    ):
        ours, theirs = [tool([*arguments, "-w", write_out]) for tool in (_kvctl(cluster), _etcdctl(cluster))]
        assert _sorted(steady(_aged(ours))) == _sorted(steady(_aged(theirs))), arguments
    revoked = [
        tool(["lease", "revoke", f"{one:016x}", "-w", write_out])
        for tool, one in zip((_kvctl(cluster), _etcdctl(cluster)), ids, strict=True)
    ]
    assert steady(_nameless(revoked[0], ids)) == steady(_nameless(revoked[1], ids))
    ours, theirs = [tool(["lease", "keep-alive", lease]) for tool in (_kvctl(cluster), _etcdctl(cluster))]
    assert ours == theirs
    kvctl(cluster, "lease", "revoke", lease).failed(1, "requested lease not found")
    kvctl(cluster, "lease", "keep-alive", "--once", lease).failed(1, "requested lease not found")


def _kvctl(cluster: Cluster) -> Callable[[list[str]], bytes]:
    return lambda arguments: kvctl(cluster, *arguments).ok()


def _etcdctl(cluster: Cluster) -> Callable[[list[str]], bytes]:
    return lambda arguments: etcdctl(cluster, arguments).ok()


def _lease_id(output: bytes) -> int:
    found = re.search(rb'lease ([0-9a-f]{16}) |"ID" ?: ?(\d+)', output)
    assert found is not None, output
    return int(found[1], 16) if found[1] else int(found[2])


def _nameless(output: bytes, ids: list[int]) -> bytes:
    for one in ids:
        output = output.replace(b"%d" % one, b"LEASE").replace(b"%016x" % one, b"LEASE")
    return re.sub(rb'("revision":|"Revision" : )\d+', rb"\1N", output)


def _aged(output: bytes) -> bytes:
    """Seconds pass between the two calls; a follower lists leases in no order that means something."""
    return re.sub(rb'(remaining\(|"ttl":|"TTL" : )\d+', rb"\1N", output)


def _sorted(output: bytes) -> list[bytes]:
    return sorted(re.split(rb"[\n,\[\]]", output))
