"""Puts/s and reads/s of three of our members beside three of etcd's, in one run: `make bench`.

Turns alternate (etcd, ours, etcd, ours), each on a fresh cluster, so that a slow minute of the machine hits both.
Keys are unique, values 256 bytes, connections spread over the members. After each row of puts the revision must
have moved by exactly the number of answered puts. CPU per operation is that of all three members together; the
load generator runs on the same cores, and its share is printed too.

    python -m bench [--quick] [--rounds N] [--seconds S] [--only kvstore|etcd] [--readme]
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import report
from bench.load import Load, Measured, connect
from tests.conformance.etcd import BIN, running_etcd
from tests.e2e.cluster import Cluster

VALUE = b"v" * 256
IN_FLIGHT = (1, 50, 1000)
PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"


@contextlib.contextmanager
def running(system: str) -> Iterator[tuple[list[str], list[int]]]:
    """A fresh cluster: its client URLs, the leader's first, and its process ids."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        if system == "etcd":
            etcd = stack.enter_context(running_etcd(Path(scratch)))
            urls, pids = etcd.client_urls, etcd.pids
        else:
            ours = stack.enter_context(Cluster(3, Path(scratch)))
            ours.wait_leader()
            urls, pids = ours.endpoints, [member.pid for member in ours.members]
        leader = next(url for url, state in zip(urls, status(urls), strict=True) if is_leader(state))
        yield [leader, *(url for url in urls if url != leader)], pids


def status(urls: list[str]) -> list[dict[str, Any]]:
    """Maintenance.Status of each member, from etcdctl, which treats both systems alike."""
    command = [str(BIN / "etcdctl"), "endpoint", "status", "-w", "json", f"--endpoints={','.join(urls)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "ETCDCTL_API": "3"})
    answers = {answer["Endpoint"]: answer["Status"] for answer in json.loads(done.stdout)}
    return [answers[url] for url in urls]


def is_leader(state: dict[str, Any]) -> bool:
    return bool(state["leader"] == state["header"]["member_id"])


def length_prefixed(tag: int, value: bytes) -> bytes:
    """A bytes field of protobuf; `tag` is its number, values are below 16 KiB."""
    size = len(value)
    length = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    return bytes([tag << 3 | 2]) + length + value


class Messages:
    """The requests: puts of keys never used before, gets of keys that are there."""

    def __init__(self) -> None:
        self._put_tail = length_prefixed(2, VALUE)
        self._numbers = itertools.count()
        self._written = 0
        self._read = itertools.count()

    def put(self) -> bytes:
        self._written = next(self._numbers)
        return length_prefixed(1, b"bench/%012d" % self._written) + self._put_tail

    def linearizable(self) -> bytes:
        # A step that shares no factor with most counts visits keys in no pattern a cache would like.
        return length_prefixed(1, b"bench/%012d" % (next(self._read) * 7919 % max(1, self._written - 2000)))

    def serializable(self) -> bytes:
        return self.linearizable() + b"\x38\x01"


async def row(system: str, urls: list[str], pids: list[int], messages: Messages, **shape: Any) -> dict[str, Any]:
    """One shape on one cluster."""
    operation, in_flight, seconds = shape["operation"], shape["in_flight"], shape["seconds"]
    before = status(urls)[0]
    connections = await connect(urls, in_flight)
    load = Load(connections, PUT if operation == "put" else RANGE, getattr(messages, operation))
    measured = await load.run(in_flight, seconds, pids)
    for connection in connections:
        connection.close()
    after = status(urls)[0]
    check(system, operation, measured, before, after)
    entries = after["raftIndex"] - before["raftIndex"]
    return {
        "system": system,
        "operation": operation,
        "in_flight": in_flight,
        "rate": measured.rate,
        "p50_ms": measured.p50 * 1000,
        "p99_ms": measured.p99 * 1000,
        "cpu_us": measured.server_cpu / max(1, measured.done) * 1e6,
        "generator_cpu_us": measured.generator_cpu / max(1, measured.done) * 1e6,
        "batch": measured.total / max(1, entries) if operation == "put" else 0.0,
        "seconds": measured.seconds,
        "failed": measured.failed,
    }


def check(system: str, operation: str, measured: Measured, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A figure counts only when every call succeeded and the store says the same."""
    moved = after["header"]["revision"] - before["header"]["revision"]
    expected = measured.total if operation == "put" else 0
    if measured.failed or moved != expected or not measured.done:
        raise SystemExit(
            f"{system} {operation}: {measured.failed} calls failed, {measured.done} succeeded, "
            f"the revision moved by {moved} instead of {expected}: this run shows nothing"
        )
    if before["raftTerm"] != after["raftTerm"]:
        print(f"  {system}: an election in this row (term {before['raftTerm']} -> {after['raftTerm']})")


async def turn(system: str, seconds: float) -> list[dict[str, Any]]:
    """Every shape on one fresh cluster."""
    rows = []
    with running(system) as (urls, pids):
        messages = Messages()
        for operation in report.OPERATIONS:
            for in_flight in IN_FLIGHT:
                shape = {"operation": operation, "in_flight": in_flight, "seconds": seconds}
                one = await row(system, urls, pids, messages, **shape)
                rows.append(one)
                print(
                    f"  {system:8} {operation:13} {in_flight:5} in flight {one['rate']:9,.0f}/s"
                    f"  p50 {one['p50_ms']:7.2f}  p99 {one['p99_ms']:7.2f} ms  CPU {one['cpu_us']:6.0f} us/op"
                    f"  (generator {one['generator_cpu_us']:.0f})"
                    + (f"  {one['batch']:.1f} puts per entry" if one["batch"] else ""),
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="puts/s and reads/s beside etcd's")
    parser.add_argument("--quick", action="store_true", help="one round of one second per row")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row")
    parser.add_argument("--only", choices=["kvstore", "etcd"], help="leave the other out")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    systems = [options.only] if options.only else ["etcd", "kvstore"]
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run  # type: ignore[assignment]
    name = report.commit()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, etcd 3.5.1"
    print(f"{name}, {machine}")
    rows = []
    for number in range(rounds):
        for system in systems:
            print(f"round {number + 1}: {system}")
            rows += [{**one, "round": number, "time": time.time()} for one in run(turn(system, seconds))]
    path = report.append(rows, name)
    print(f"\n{report.table(rows)}\n\nrows: {path}")
    if options.readme:
        report.into_readme(f"{report.table(rows)}\n\nMedians of {rounds} rounds at {name} on {machine}.")


if __name__ == "__main__":
    main()
