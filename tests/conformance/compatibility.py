"""docs/COMPATIBILITY.md: every RPC, flag, endpoint and metric of etcd, and what becomes of it here.

    make compatibility      # writes it anew, from a real etcd 3.5.1 and a member of ours

What exists is asked of the two: etcd's --help and our table of settings, our messages' descriptors and the running
member, both /metrics. Only the words about a difference are written here; a row without words that needs some fails.
"""

import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from kvstore.flags import SETTINGS
from kvstore.gateway.routes import ROUTES
from kvstore.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from tests.conformance.compatibility_words import (
    DIFFERENT_FLAGS,
    DIFFERENT_METRICS,
    DIFFERENT_RPCS,
    ENDPOINTS,
    MISSING_METRICS,
    RARE_METRICS,
)
from tests.conformance.etcd import BIN, EtcdCluster
from tests.e2e.cluster import Cluster

FILE = Path(__file__).parents[2] / "docs" / "COMPATIBILITY.md"
COMMAND = "make compatibility"
CALL_SECONDS = 3.0
HEAD = f"""# Compared with etcd, name by name

Made by `{COMMAND}` from a real etcd 3.5.1 and a member of ours; a test asks both again. What
the answers are is another question: [the differential test](DIFFERENTIAL.md).

- *same*: it is there, and means the same
- *differs*: it is there; how it differs
- *absent*: it is not; why

The JSON gateway, the metrics and the flags of later versions (3.6) are served where they are named below.
"""


@dataclass(frozen=True)
class Row:
    name: str
    status: str  # same, differs, absent
    words: str = ""

    def __str__(self) -> str:
        return f"| `{self.name}` | {self.status} | {self.words} |"


def rpcs(target: str) -> Iterator[Row]:
    """Each one is called, with a message of defaults: who does not serve it says so."""
    paths = {route.method: path for path, route in sorted(ROUTES.items(), key=lambda item: len(item[0]), reverse=True)}
    with grpc.insecure_channel(target) as channel:
        for module in (rpc_pb2, v3lock_pb2, v3election_pb2):
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    path = f"/{service.full_name}/{method.name}"
                    json = f"`{paths[path]}`" if path in paths else "no JSON path, as at etcd"
                    words = DIFFERENT_RPCS.get(path.lstrip("/"), "")
                    status = "absent" if _is_absent(channel, path) else "differs" if words else "same"
                    if status == "absent":
                        words = words or "not served yet"
                    yield Row(path, status, "; ".join(filter(None, (words, json))))


def _is_absent(channel: grpc.Channel, path: str) -> bool:
    # On the wire a message is a message, whether one is wanted or many.
    call = channel.unary_stream(path)(b"", timeout=CALL_SECONDS)
    try:
        next(iter(call), None)
    except grpc.RpcError as error:
        text = str(error.details())  # type: ignore[attr-defined]
        return error.code() is grpc.StatusCode.UNIMPLEMENTED and "is not served" in text  # type: ignore[attr-defined]
    finally:
        call.cancel()
    return False


def flags() -> Iterator[Row]:
    help_ = subprocess.run([str(BIN / "etcd"), "--help"], capture_output=True, text=True, check=False)
    for flag in re.findall(r"^  --(\S+)", help_.stdout + help_.stderr, re.MULTILINE):
        setting = SETTINGS.get(flag)
        words = DIFFERENT_FLAGS.get(flag, "")
        if setting is None:
            yield Row(f"--{flag}", "absent", words)
        elif setting.ignored:
            yield Row(f"--{flag}", "absent", words or "taken, and has no effect here")
        elif setting.accepts is not None:
            accepted = " or ".join(f"`{value}`" for value in setting.accepts if value) or "leaving it out"
            yield Row(f"--{flag}", "absent", words or f"only what is done anyway is taken: {accepted}")
        else:
            yield Row(f"--{flag}", "differs" if words else "same", words)


def endpoints(url: str) -> Iterator[Row]:
    for path, (wanted, words) in ENDPOINTS.items():
        status = _get(url + path)
        found = "absent" if status == 404 and not words.startswith("404") else wanted
        yield Row(f"GET {path}", found, words)


def _get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def metrics(etcd: str, ours: str) -> Iterator[Row]:
    theirs, here = _metric_types(etcd), _metric_types(ours)
    rare = dict.fromkeys(RARE_METRICS, "")
    for name, kind in sorted((rare | theirs).items()):
        words = DIFFERENT_METRICS.get(name, "")
        if name in here:
            if kind and kind != here[name]:
                words = "; ".join(filter(None, (f"{here[name]}, not {kind}", words)))
            yield Row(name, "differs" if words else "same", words)
        else:
            words = next((words for pattern, words in MISSING_METRICS.items() if re.fullmatch(pattern, name)), "")
            yield Row(name, "absent", words)


def _metric_types(url: str) -> dict[str, str]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return dict(re.findall(r"^# TYPE (\S+) (\S+)", answer.read().decode(), re.MULTILINE))


def document() -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "etcd").mkdir()
        etcd = EtcdCluster(Path(folder) / "etcd", size=3, flags=["--metrics=extensive"])
        with Cluster(3, Path(folder) / "ours", flags=["--metrics=extensive"]) as cluster:
            try:
                etcd.start()
                leader = cluster.wait_leader()
                tables = {
                    "RPCs": list(rpcs(cluster.members[0].target)),
                    "Flags of 3.5": list(flags()),
                    "HTTP endpoints": list(endpoints(leader.client_url)),
                    "Metrics": list(metrics(etcd.client_urls[0], leader.client_url)),
                }
            finally:
                etcd.stop()
    parts = [HEAD]
    for title, rows in tables.items():
        without = [row.name for row in rows if row.status != "same" and not row.words]
        assert not without, f"say in compatibility_words.py why, or how: {without}"
        counts = ", ".join(
            f"{sum(row.status == kind for row in rows)} {kind}" for kind in ("same", "differs", "absent")
        )
        parts.append(f"\n## {title}\n\n{len(rows)}: {counts}.\n\n| name | here | how, why |\n|---|---|---|\n")
        parts.append("\n".join(map(str, rows)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    FILE.write_text(document())
    print(f"written: {FILE}")
