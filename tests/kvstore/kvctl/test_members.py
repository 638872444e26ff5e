"""Members come and go by kvctl as by etcdctl: the same output, and refusals that say what to do."""

import json
import re
import time

import pytest

from tests.kvstore.client.clusters import Cluster
from tests.kvstore.kvctl.processes import Outcome, etcdctl, kvctl
from tests.ports import free_ports

HEALTHY_SECONDS = 30.0


def run(tool: str, cluster: Cluster, *arguments: str) -> Outcome:
    """Again while the cluster is too young for it."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while True:
        outcome = kvctl(cluster, *arguments) if tool == "kvctl" else etcdctl(cluster, list(arguments))
        if "unhealthy cluster" not in outcome.error or time.monotonic() > deadline:
            return outcome
        time.sleep(0.2)


def members(cluster: Cluster) -> dict[str, int]:
    """Ids by name; the one that has not started is "" ."""
    found = json.loads(kvctl(cluster, "member", "list", "-w", "json").ok())["members"]
    return {member.get("name", ""): member["ID"] for member in found}


def steady(output: bytes, new: int) -> object:
    """Without what differs between two runs."""
    text = output.replace(b"%16x" % new, b"NEW").replace(b"%d" % new, b"0")
    if text.startswith(b"{"):
        answer = json.loads(text)
        for name in ("member_id", "raft_term"):
            answer.get("header", {}).pop(name, None)
        return (
            list(answer),
            sorted(answer.get("members", []), key=lambda member: int(member["ID"])),
            answer.get("member"),
        )
    by_id = re.compile(rb'(?<=ETCD_INITIAL_CLUSTER=")[^"]*')
    return by_id.sub(lambda match: b",".join(sorted(match[0].split(b","))), text)


@pytest.mark.parametrize("write_out", ["simple", "json"])
def test_as_etcdctl_prints_it(cluster: Cluster, write_out: str) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    def play(tool: str) -> list[object]:
        out = ["-w", write_out]
        added = run(tool, cluster, "member", "add", "m9", f"--peer-urls={url}", "--learner", *out).ok()
        known = members(cluster)
        new, voter = known[""], known["m1"]
        outputs = [added]
        peers = json.loads(kvctl(cluster, "member", "list", "-w", "json").ok())["members"]
        own = next(member["peerURLs"][0] for member in peers if member["ID"] == voter)
        outputs.append(run(tool, cluster, "member", "update", f"{voter:x}", f"--peer-urls={own}", *out).ok())
        outputs.append(run(tool, cluster, "member", "remove", f"{new:x}", *out).ok())
        run("kvctl", cluster, "move-leader", f"{known['m0']:x}").ok()
        outputs.append(run(tool, cluster, "move-leader", f"{known['m2']:x}", *out).ok())
        return [steady(output, new) for output in outputs]

    ours = play("kvctl")
    time.sleep(1.1 - time.time() % 1)  # ids of added members follow from the second
    assert ours == play("etcdctl")


def test_refusals_say_what_to_do(cluster: Cluster) -> None:
    known = members(cluster)
    voter = f"{known['m1']:x}"
    kvctl(cluster, "member", "promote", voter).failed(1, "can only promote a learner member")
    kvctl(cluster, "member", "remove", "abc").failed(1, "member not found", "kvctl member list")
    kvctl(cluster, "member", "remove", "xyz").failed(2, "no member id", "kvctl member list")
    kvctl(cluster, "member", "add", "m9").failed(2, "--peer-urls")
    kvctl(cluster, "member", "add", "m9", "--peer-urls=,").failed(2, "names no URL")
    kvctl(cluster, "member", "add", "m9", "--peer-urls=x").failed(1, "given member URLs are invalid", "http://")
    kvctl(cluster, "member", "add", "m9", "--peer-urls=http://a:1", "-w", "table").failed(2, "use -w simple or json")
    kvctl(cluster, "move-leader", "abc").failed(1, "bad leader transferee")
    assert members(cluster) == known
