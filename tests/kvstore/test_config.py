"""Settings: where they come from, which one counts, and what is refused how."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.config import ServerConfig, SettingsError, TlsFiles, resolve
from kvstore.flags import _COMPATIBLE, _SERVED, SETTINGS


def test_without_flags_it_is_one_member_with_etcds_defaults() -> None:
    config = resolve({}, {})
    assert config == ServerConfig()
    assert config.initial_cluster == (("default", ("http://localhost:2380",)),)
    assert config.request_timeout == 7.0
    assert config.receive_bytes_max == 2 * 1024 * 1024


def test_a_flag_counts_before_our_environment_before_etcds_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "member.yaml"
    file.write_text("name: file\nsnapshot-count: 4\nheartbeat-interval: 14\nelection-timeout: 1400\n")
    environment = {
        "ETCD_CONFIG_FILE": str(file),
        "ETCD_NAME": "etcd",
        "ETCD_SNAPSHOT_COUNT": "3",
        "ETCD_HEARTBEAT_INTERVAL": "13",
        "KVSTORE_NAME": "ours",
        "KVSTORE_SNAPSHOT_COUNT": "2",
    }
    config = resolve({"name": "flag"}, environment)
    assert (config.name, config.snapshot_count, config.heartbeat_interval, config.election_timeout) == (
        "flag",
        2,
        13,
        1400,
    )


def test_the_file_takes_lists_numbers_and_booleans(tmp_path: Path) -> None:
    file = tmp_path / "member.yaml"
    file.write_text(
        "listen-client-urls: [http://10.0.0.1:2379, http://127.0.0.1:2379]\n"
        "advertise-client-urls: http://10.0.0.1:2379\n"
        "pre-vote: false\nsnapshot-count: 7\ninitial-cluster-token:\n"
    )
    config = resolve({"config-file": str(file)}, {})
    assert config.listen_client_urls == ("http://10.0.0.1:2379", "http://127.0.0.1:2379")
    assert config.pre_vote is False
    assert config.snapshot_count == 7


def test_every_setting_has_a_default_that_is_accepted() -> None:
    given = {
        flag: setting.default for flag, setting in SETTINGS.items() if setting.default and flag != "listen-client-urls"
    }
    assert replace(resolve(given, {}), initial_cluster_given=False) == ServerConfig()


def test_the_members_are_sorted_and_one_may_have_two_urls() -> None:
    config = resolve(
        {
            "name": "a",
            "initial-cluster": "b=http://b:1,a=http://a:2,a=http://a:1",
            "initial-advertise-peer-urls": "http://a:1,http://a:2",
        },
        {},
    )
    assert config.initial_cluster == (("a", ("http://a:1", "http://a:2")), ("b", ("http://b:1",)))
    assert config.data_dir == Path("a.kvstore")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"nam": "x"}, "--nam: there is no such setting; did you mean name?"),
        ({"name": ""}, "cannot be a member's name"),
        ({"snapshot-count": "many"}, "--snapshot-count: 'many' is not a whole number"),
        ({"snapshot-count": "0"}, "--snapshot-count: 0 is not in 1.."),
        ({"pre-vote": "maybe"}, "--pre-vote: 'maybe' is neither true nor false"),
        ({"initial-cluster-state": "old"}, "one of new, existing is needed"),
        ({"listen-peer-urls": ""}, "--listen-peer-urls: a URL is needed"),
        ({"listen-metrics-urls": "unix:///x"}, "a URL such as http://127.0.0.1:2379"),
        ({"rpc": "grpc"}, "one of nghttp2, grpcio is needed"),
        ({"max-concurrent-streams": "0"}, "--max-concurrent-streams: 0 is not in 1.."),
        ({"listen-peer-urls": "a:2380"}, "a URL such as http://127.0.0.1:2379 is needed"),
        ({"listen-peer-urls": "http://a"}, "host and port are needed"),
        ({"listen-peer-urls": "http://a:99999"}, "ort"),
        ({"listen-peer-urls": "http://a:1/x"}, "nothing may follow the port"),
        ({"listen-client-urls": "http://a:2379"}, "--advertise-client-urls is needed too"),
        ({"election-timeout": "400"}, "must be at least 5 times --heartbeat-interval"),
        ({"election-timeout": "60000"}, "is not in 1..50000"),
        ({"watch-progress-notify-interval": "soon"}, "is not a duration"),
        ({"initial-cluster": "b=http://b:1"}, "this member, --name=default, is not in it; it has b"),
        ({"initial-cluster": "default=http://b:1"}, "but --initial-advertise-peer-urls is http://localhost:2380"),
        ({"initial-cluster": "default"}, "name=url is needed"),
        ({"initial-cluster": "default=http://b:1,b=http://b:1"}, "one URL stands there twice"),
        ({"wal-dir": "x"}, "--wal-dir=x: not served by this version"),
        ({"auto-compaction-retention": "-1"}, "'-1' is not a duration"),
        ({"auto-compaction-retention": "1h", "auto-compaction-mode": "revision"}, "'1h' is not a whole number"),
        ({"auto-compaction-mode": "never"}, "one of periodic, revision is needed"),
        ({"force-new-cluster": "true"}, "not served by this version"),
        ({"config-file": "/nowhere.yaml"}, "/nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(flags: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(flags, {})
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("nme: x", "nme in {file}: there is no such setting; did you mean name?"),
        ("- a", "must hold `flag: value` lines"),
        ("a: [", "is not YAML"),
        ("name: {a: b}", "a text, a number, a list or true/false is needed"),
        ("client-transport-security: {cert-file: x}", "cert-file in {file}: --key-file is needed too"),
        ("peer-transport-security: [x]", "peer-transport-security in {file}: `flag: value` lines are needed"),
        ("peer-transport-security: {cert: x}", "cert in {file}: there is no such setting"),
        ("peer-transport-security: {auto-tls: true}", "auto-tls in {file}: no URL of --listen-peer-urls is https://"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "member.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as error:
        resolve({"config-file": str(file)}, {})
    assert text.format(file=file) in str(error.value)


def test_no_flag_stands_in_the_table_twice() -> None:
    assert len(SETTINGS) == len([*_SERVED, *_COMPATIBLE])


def test_an_error_names_the_environment_variable() -> None:
    with pytest.raises(SettingsError, match="ETCD_ELECTION_TIMEOUT"):
        resolve({}, {"ETCD_ELECTION_TIMEOUT": "x"})


def test_what_test_suites_pass_to_etcd_is_taken_with_a_note() -> None:
    config = resolve({"enable-v2": "true", "max-wals": "3", "logger": "zap", "log-outputs": "stderr"}, {})
    assert config.notes == ("--enable-v2 has no effect in this version", "--max-wals has no effect in this version")


def test_a_variable_that_is_no_setting_is_noted_and_an_empty_one_is_not_set() -> None:
    config = resolve({}, {"KVSTORE_PORT": "tcp://10.0.0.1", "ETCD_NAME": ""})
    assert config.name == "default"
    assert config.notes == ("KVSTORE_PORT is not a setting and has no effect",)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600.0), ("1h30m", 5400.0), ("500ms", 0.5), ("5", 5.0), ("1ms", 0.1)]
)
def test_durations(text: str, seconds: float) -> None:
    assert resolve({"watch-progress-notify-interval": text}, {}).watch_progress_notify_interval == seconds


# TLS and listeners

SECURE = {"listen-client-urls": "https://127.0.0.1:1", "advertise-client-urls": "https://127.0.0.1:1"}
SECURE_PEER = {
    "listen-peer-urls": "https://127.0.0.1:2",
    "initial-advertise-peer-urls": "https://127.0.0.1:2",
}
PAIR = {"cert-file": "c", "key-file": "k"}
PEER_PAIR = {"peer-cert-file": "c", "peer-key-file": "k"}


@pytest.mark.parametrize(
    ("flags", "client", "peer"),
    [
        ({}, None, None),
        ({**SECURE, **PAIR}, TlsFiles(cert_file=Path("c"), key_file=Path("k")), None),
        ({**SECURE_PEER, **PEER_PAIR}, None, TlsFiles(cert_file=Path("c"), key_file=Path("k"))),
        (
            {**SECURE, **PAIR, "client-cert-auth": "true", "trusted-ca-file": "a"},
            TlsFiles(cert_file=Path("c"), key_file=Path("k"), ca_file=Path("a"), client_auth=True),
            None,
        ),
        (  # etcd asks for a certificate as soon as it knows whose to believe
            {**SECURE_PEER, **PEER_PAIR, "peer-trusted-ca-file": "a"},
            None,
            TlsFiles(cert_file=Path("c"), key_file=Path("k"), ca_file=Path("a"), client_auth=True, of_its_address=True),
        ),
        (
            {**PAIR, "listen-metrics-urls": "https://127.0.0.1:3"},
            TlsFiles(cert_file=Path("c"), key_file=Path("k")),
            None,
        ),
    ],
)
def test_tls_files(flags: dict[str, str], client: TlsFiles | None, peer: TlsFiles | None) -> None:
    config = resolve(flags, {})
    assert (config.client_tls, config.peer_tls) == (client, peer)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (SECURE, "--listen-client-urls: https://127.0.0.1:1: https:// needs --cert-file and --key-file"),
        (SECURE_PEER, "--listen-peer-urls: https://127.0.0.1:2: https:// needs --peer-cert-file and --peer-key-file"),
        ({**SECURE_PEER, **PAIR}, "https:// needs --peer-cert-file"),
        ({"listen-metrics-urls": "https://a:3"}, "https:// needs --cert-file"),
        ({"listen-client-http-urls": "https://a:3"}, "https:// needs --cert-file"),
        ({**SECURE, "cert-file": "c"}, "--cert-file: --key-file is needed too"),
        ({**SECURE, "key-file": "k"}, "--key-file: --cert-file is needed too"),
        ({"peer-cert-file": "c"}, "--peer-cert-file: --peer-key-file is needed too"),
        ({**SECURE, **PAIR, "client-cert-auth": "true"}, "--client-cert-auth: --trusted-ca-file is needed too"),
        (
            {**SECURE_PEER, **PEER_PAIR, "peer-client-cert-auth": "true"},
            "--peer-client-cert-auth: --peer-trusted-ca-file is needed too",
        ),
        (
            {**PAIR, "client-cert-auth": "true", "trusted-ca-file": "a"},
            "--client-cert-auth: nobody is asked for a certificate at http://localhost:2379",
        ),
        ({**PAIR, "trusted-ca-file": "a"}, "--trusted-ca-file: nobody is asked for a certificate"),
        ({"trusted-ca-file": "a"}, "--trusted-ca-file: nobody is asked for a certificate"),
        ({"client-cert-auth": "maybe"}, "'maybe' is neither true nor false"),
        (
            {**PEER_PAIR, "listen-peer-urls": "https://127.0.0.1:2,http://127.0.0.1:4"},
            "--listen-peer-urls: http:// and https:// cannot be mixed",
        ),
        (
            {"listen-metrics-urls": "http://localhost:2379"},
            "--listen-metrics-urls: http://localhost:2379: --listen-client-urls listens there already",
        ),
        ({"listen-client-http-urls": "http://localhost:2380/"}, "listens there already"),
    ],
)
def test_half_of_tls_is_none(flags: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(flags, {})
    assert text in str(error.value)


def test_tls_by_the_environment_and_by_etcds_sections(tmp_path: Path) -> None:
    file = tmp_path / "member.yaml"
    file.write_text(
        "listen-client-urls: https://127.0.0.1:1\nadvertise-client-urls: https://127.0.0.1:1\n"
        "listen-peer-urls: https://127.0.0.1:2\n"
        "client-transport-security:\n  cert-file: c\n  key-file: file\n  client-cert-auth: true\n"
        "  trusted-ca-file: a\n  auto-tls: false\n"
        "peer-transport-security:\n  cert-file: pc\n  key-file: pk\n"
    )
    environment = {"ETCD_CONFIG_FILE": str(file), "KVSTORE_KEY_FILE": "ours", "ETCD_KEY_FILE": "etcds"}
    config = resolve({}, environment)
    assert config.client_tls == TlsFiles(
        cert_file=Path("c"), key_file=Path("ours"), ca_file=Path("a"), client_auth=True
    )
    assert config.peer_tls == TlsFiles(cert_file=Path("pc"), key_file=Path("pk"))


def test_http_beside_https_is_taken_with_a_note() -> None:
    """As etcd, which ignores the certificate there."""
    config = resolve({**SECURE, **PAIR, "listen-client-http-urls": "http://127.0.0.1:3"}, {})
    assert config.notes == (
        "--listen-client-http-urls: http://127.0.0.1:3 does not speak TLS, --cert-file has no effect there",
    )
    assert config.listen_client_http_urls == ("http://127.0.0.1:3",)


def test_the_front_is_a_flag_and_an_environment_variable() -> None:
    assert resolve({"rpc": "grpcio"}, {}).rpc == "grpcio"
    assert resolve({}, {"KVSTORE_RPC": "nghttp2"}).rpc == "nghttp2"
    assert resolve({}, {}).rpc == ""


@pytest.mark.parametrize(
    ("mode", "text", "retention"),
    [
        ("periodic", "0", 0.0),
        ("periodic", "1", 3600.0),
        ("periodic", "1h30m", 5400.0),
        ("periodic", "500ms", 0.5),
        ("revision", "1000", 1000.0),
        ("revision", "0", 0.0),
    ],
)
def test_auto_compaction_in_etcds_words(mode: str, text: str, retention: float) -> None:
    found = resolve({"auto-compaction-mode": mode, "auto-compaction-retention": text}, {})
    assert (found.auto_compaction_mode, found.auto_compaction_retention) == (mode, retention)
