"""Settings: where they come from, which one counts, and what is refused how."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.config import SETTINGS, ServerConfig, SettingsError, resolve


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
        ({"listen-peer-urls": "https://a:2380"}, "TLS is not served yet"),
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
        ({"cert-file": "x.pem"}, "--cert-file: TLS is not served yet"),
        ({"peer-auto-tls": "true"}, "--peer-auto-tls: TLS is not served yet"),
        ({"quota-backend-bytes": "8589934592"}, "--quota-backend-bytes=8589934592: not served by this version"),
        ({"auto-compaction-retention": "1"}, "leave it out or set it to '0'"),
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
        ("client-transport-security: {cert-file: x}", "TLS is not served yet"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "member.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as error:
        resolve({"config-file": str(file)}, {})
    assert text.format(file=file) in str(error.value)


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
