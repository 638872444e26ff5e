"""Settings of a member: etcd's flags, one table, one frozen result.

A value is looked for in this order and the first found counts:

    --flag  >  KVSTORE_<FLAG>  >  ETCD_<FLAG>  >  the YAML file of --config-file  >  the default

`SETTINGS` is the whole table: the command line, its help, the environment and the file are all read
through it. A flag of etcd's that this version does not serve stands in it too, with the values that ask
for what we do anyway (`accepts`); any other value is refused, since a setting that is silently without
effect is worse than one that is missing. Flags that only tune etcd's own machinery are noted and ignored.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

MEMBER_NAME_MAX: Final = 256
REQUEST_BYTES_MAX: Final = 1536 * 1024
GRPC_OVERHEAD_BYTES: Final = 512 * 1024  # the front takes this much more than one request may have
SNAPSHOT_PACE_MIN: Final = 64 * 1024  # bytes a second: below it a snapshot would never arrive
HEARTBEATS_PER_ELECTION: Final = 5  # etcd's rule: an election timeout is at least this many heartbeats
ELECTION_TIMEOUT_MS_MAX: Final = 50_000


class SettingsError(Exception):
    """A setting is wrong. The message says which one, from where, and what to do."""


@dataclass(frozen=True, slots=True)
class Setting:
    flag: str
    kind: str  # text, path, urls, cluster, int, bool, seconds, choice:a|b
    default: str
    help: str
    panel: str
    accepts: tuple[str, ...] | None = None  # not served: only these values are taken; None: served
    ignored: bool = False  # any value is taken and has no effect here


MEMBER, CLUSTERING, LIMITS, LOGGING = "Member", "Clustering", "Limits", "Logging"
DEBUGGING, OTHER = "Debugging", "Taken for etcd's sake"
LOCAL_CLIENT: Final = "http://localhost:2379"
LOCAL_PEER: Final = "http://localhost:2380"

_SERVED: Final = [
    Setting("name", "text", "default", "Name of this member, unique in the cluster.", MEMBER),
    Setting("data-dir", "path", "", "Directory of log and state. Default: <name>.kvstore", MEMBER),
    Setting("config-file", "path", "", "YAML file whose keys are these flags' names.", MEMBER),
    Setting("listen-client-urls", "urls", LOCAL_CLIENT, "Where clients are served.", MEMBER),
    Setting("listen-peer-urls", "urls", LOCAL_PEER, "Where the other members are served.", MEMBER),
    Setting("heartbeat-interval", "int", "100", "Milliseconds between two heartbeats of a leader.", MEMBER),
    Setting("election-timeout", "int", "1000", "Milliseconds without a leader before an election.", MEMBER),
    Setting(
        "initial-election-tick-advance",
        "bool",
        "true",
        "At start, wait only for the end of an election timeout.",
        MEMBER,
    ),
    Setting("pre-vote", "bool", "true", "Ask whether an election can be won before starting it.", MEMBER),
    Setting("snapshot-count", "int", "10000", "Log entries between two flushes of the state.", MEMBER),
    Setting("snapshot-catchup-entries", "int", "5000", "Log entries kept for slow members, at most.", MEMBER),
    Setting("snapshot-catchup-bytes", "int", str(64 << 20), "Bytes of log kept for slow members, at most.", MEMBER),
    Setting("snapshot-bytes-per-second", "int", "0", "Pace of a snapshot that is sent; 0: no limit.", MEMBER),
    Setting("log-segment-bytes", "int", str(64 << 20), "Bytes of log that are removed at once.", MEMBER),
    Setting("sync", "choice:inline|thread", "inline", "Where the log's fsync runs (see kvstore/DESIGN.md).", MEMBER),
    Setting("advertise-client-urls", "urls", LOCAL_CLIENT, "Where clients reach this member.", CLUSTERING),
    Setting("initial-advertise-peer-urls", "urls", LOCAL_PEER, "Where members reach this one.", CLUSTERING),
    Setting("initial-cluster", "cluster", "", "All first members: name=url,name=url. Default: this one.", CLUSTERING),
    Setting("initial-cluster-state", "choice:new|existing", "new", "Whether the cluster is a new one.", CLUSTERING),
    Setting("initial-cluster-token", "text", "etcd-cluster", "Tells clusters with equal URLs apart.", CLUSTERING),
    Setting(
        "strict-reconfig-check", "bool", "true", "Refuse member changes that would endanger the quorum.", CLUSTERING
    ),
    Setting("experimental-max-learners", "int", "1", "Learners that the cluster may have at once.", CLUSTERING),
    Setting("max-txn-ops", "int", "128", "Operations in one transaction.", LIMITS),
    Setting("max-request-bytes", "int", str(REQUEST_BYTES_MAX), "Bytes in one request.", LIMITS),
    Setting(
        "experimental-enable-lease-checkpoint",
        "bool",
        "false",
        "Log now and then what is left of long leases, for the next leader.",
        LIMITS,
    ),
    Setting("watch-progress-notify-interval", "seconds", "10m", "Between progress notices of an idle watch.", LIMITS),
    Setting("log-level", "choice:debug|info|warn|error|panic|fatal", "info", "The least to log.", LOGGING),
    Setting("log-format", "choice:auto|json|console", "auto", "auto: console on a terminal, else JSON.", LOGGING),
    Setting("admin-socket", "path", "", "Unix socket for failpoints and a look inside. Default: none.", DEBUGGING),
    Setting("failpoints", "text", "", "name=action;...: fail there (docs/failpoints.md).", DEBUGGING),
    Setting("raft-trace", "path", "", "Write each change of the raft state to this file (JSON).", DEBUGGING),
]


def _taken(flag: str, kind: str, *accepts: str) -> Setting:
    default = accepts[0] if accepts else ""
    return Setting(flag, kind, default, "Not served yet.", OTHER, accepts=accepts or ("",))


def _ignored(flag: str, kind: str = "text") -> Setting:
    return Setting(flag, kind, "", "Taken; has no effect here.", OTHER, ignored=True)


_TLS: Final = [
    _taken(prefix + flag, kind, *accepts)
    for prefix in ("", "peer-")
    for flag, kind, accepts in (
        ("cert-file", "text", ()),
        ("key-file", "text", ()),
        ("trusted-ca-file", "text", ()),
        ("crl-file", "text", ()),
        ("client-cert-auth", "bool", ("false",)),
        ("auto-tls", "bool", ("false",)),
    )
    if prefix + flag not in ("crl-file", "peer-client-cert-auth")
] + [
    _taken("client-crl-file", "text"),
    _taken("client-cert-allowed-hostname", "text"),
    _taken("peer-client-cert-auth", "bool", "false"),
    _taken("peer-cert-allowed-cn", "text"),
    _taken("peer-cert-allowed-hostname", "text"),
    _taken("cipher-suites", "text"),
]
TLS_FLAGS: Final = frozenset(setting.flag for setting in _TLS)

_COMPATIBLE: Final = [
    *_TLS,
    _taken("wal-dir", "text"),
    _taken("listen-client-http-urls", "text"),
    _taken("listen-metrics-urls", "text"),
    _taken("quota-backend-bytes", "int", "0", "-1"),
    _taken("auto-compaction-retention", "text", "0", "0s", "0h"),
    _taken("auto-compaction-mode", "choice:periodic|revision", "periodic", "revision"),
    _taken("auth-token", "text", "simple"),
    _taken("force-new-cluster", "bool", "false"),
    _taken("unsafe-no-fsync", "bool", "false"),
    _taken("enable-v2v3", "text"),
    _taken("proxy", "text", "off"),
    _taken("discovery", "text"),
    _taken("discovery-srv", "text"),
    _taken("discovery-proxy", "text"),
    _taken("enable-pprof", "bool", "false"),
    _taken("metrics", "text", "basic"),
    _taken("socket-reuse-port", "bool", "false"),
    _taken("cors", "text", "", "*"),
    _taken("host-whitelist", "text", "", "*"),
    _taken("logger", "text", "zap", ""),
    _taken("log-outputs", "text", "default", "stderr"),
    _taken("enable-log-rotation", "bool", "false"),
    _taken("experimental-initial-corrupt-check", "bool", "false"),
    _taken("experimental-corrupt-check-time", "text", "0s", "0"),
    _ignored("experimental-enable-lease-checkpoint-persist", "bool"),  # ours are always persisted
    _taken("experimental-enable-distributed-tracing", "bool", "false"),
    _ignored("enable-v2", "bool"),  # test suites pass it to any etcd; the v2 API is simply not there
    _ignored("socket-reuse-address", "bool"),
    _ignored("debug", "bool"),
    *[
        _ignored(flag)
        for flag in (
            "max-snapshots",
            "max-wals",
            "backend-batch-limit",
            "backend-batch-interval",
            "backend-bbolt-freelist-type",
            "bcrypt-cost",
            "auth-token-ttl",
            "max-concurrent-streams",
            "grpc-keepalive-min-time",
            "grpc-keepalive-interval",
            "grpc-keepalive-timeout",
            "discovery-fallback",
            "log-rotation-config-json",
            "log-package-levels",
            "experimental-watch-progress-notify-interval",
            "experimental-warning-apply-duration",
            "experimental-compaction-batch-limit",
            "experimental-peer-skip-client-san-verification",
        )
    ],
]

SETTINGS: Final[dict[str, Setting]] = {setting.flag: setting for setting in [*_SERVED, *_COMPATIBLE]}

UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What one member runs with. Made by `resolve`; already checked."""

    name: str = "default"
    data_dir: Path = Path("default.kvstore")
    listen_client_urls: tuple[str, ...] = (LOCAL_CLIENT,)
    listen_peer_urls: tuple[str, ...] = (LOCAL_PEER,)
    advertise_client_urls: tuple[str, ...] = (LOCAL_CLIENT,)
    initial_advertise_peer_urls: tuple[str, ...] = (LOCAL_PEER,)
    initial_cluster: tuple[tuple[str, tuple[str, ...]], ...] = (("default", (LOCAL_PEER,)),)
    initial_cluster_given: bool = False  # told by the user: then a data directory has to agree with it
    initial_cluster_state: str = "new"
    strict_reconfig_check: bool = True
    max_learners: int = 1
    initial_cluster_token: str = "etcd-cluster"
    heartbeat_interval: int = 100  # milliseconds; also the length of a tick
    election_timeout: int = 1000  # milliseconds
    initial_election_tick_advance: bool = True
    pre_vote: bool = True
    snapshot_count: int = 10_000  # log entries
    snapshot_catchup_entries: int = 5000  # what is kept of the compacted log fits both
    snapshot_catchup_bytes: int = 64 << 20
    snapshot_bytes_per_second: int = 0  # 0: no limit
    log_segment_bytes: int = 64 << 20  # one file; the log is as much longer than what has to be kept
    sync: str = "inline"
    max_txn_ops: int = 128
    max_request_bytes: int = REQUEST_BYTES_MAX
    watch_progress_notify_interval: float = 600.0  # seconds
    lease_checkpoint: bool = False
    log_level: str = "info"
    log_format: str = "auto"
    admin_socket: Path | None = None
    failpoints: str = ""  # checked when the process arms them
    raft_trace: Path | None = None
    notes: tuple[str, ...] = ()  # settings without effect, to be logged once

    @property
    def request_timeout(self) -> float:
        """Seconds that a request may wait (etcd: 5 s for the disk, and two elections)."""
        return 5.0 + 2 * self.election_timeout / 1000

    @property
    def receive_bytes_max(self) -> int:
        """What the front takes as one message; more is refused by gRPC itself."""
        return self.max_request_bytes + GRPC_OVERHEAD_BYTES


def resolve(flags: Mapping[str, str], environment: Mapping[str, str] | None = None) -> ServerConfig:
    """The settings of one member from its command line (flag name -> text) and environment.

    Raises SettingsError.
    """
    environment = os.environ if environment is None else environment
    for flag in flags:
        _known(flag, f"--{flag}")
    found = {flag: (text, f"--{flag}") for flag, text in flags.items()}
    notes: list[str] = []
    for prefix in ("KVSTORE_", "ETCD_"):
        for variable, text in sorted(environment.items()):
            if not variable.startswith(prefix):
                continue
            flag = variable.removeprefix(prefix).lower().replace("_", "-")
            if flag in SETTINGS:
                if text:  # etcd too reads an empty variable as one that is not set
                    found.setdefault(flag, (text, variable))
            else:
                notes.append(f"{variable} is not a setting and has no effect")
    if "config-file" in found:
        for flag, text in _read_file(Path(found["config-file"][0])).items():
            found.setdefault(flag, (text, f"{flag} in {found['config-file'][0]}"))
    for flag, (text, origin) in found.items():
        note = _check_served(SETTINGS[flag], text, origin)
        if note:
            notes.append(note)
    return _build(_Values(found), tuple(notes))


def _known(flag: str, origin: str) -> None:
    if flag not in SETTINGS:
        near = difflib.get_close_matches(flag, SETTINGS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; `kvstore serve --help` lists all"
        raise SettingsError(f"{origin}: there is no such setting{hint}")


def _read_file(path: Path) -> dict[str, str]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config-file: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config-file: {path} is not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(f"--config-file: {path} must hold `flag: value` lines")
    values: dict[str, str] = {}
    for key, value in document.items():
        flag = str(key)
        if flag in ("client-transport-security", "peer-transport-security"):
            if value:
                raise SettingsError(f"{flag} in {path}: TLS is not served yet; leave it out")
            continue
        _known(flag, f"{flag} in {path}")
        values[flag] = _as_text(value, f"{flag} in {path}")
    return values


def _as_text(value: object, origin: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return ",".join(str(item) for item in value)
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    raise SettingsError(f"{origin}: a text, a number, a list or true/false is needed")


def _check_served(setting: Setting, text: str, origin: str) -> str:
    """A note when the setting is without effect, else ""; raises when it asks for what we do not do."""
    if setting.ignored:
        return f"{origin} has no effect in this version"
    if setting.accepts is None:
        return ""
    value = _lower_bool(text) if setting.kind == "bool" else text
    if setting.flag in TLS_FLAGS and value not in setting.accepts:
        raise SettingsError(f"{origin}: TLS is not served yet; leave it out and use http:// URLs")
    if value not in setting.accepts:
        allowed = " or ".join(repr(value) for value in setting.accepts if value)
        hint = f"; leave it out or set it to {allowed}" if allowed else "; leave it out"
        raise SettingsError(f"{origin}={text}: not served by this version{hint}")
    return ""


def _lower_bool(text: str) -> str:
    lowered = text.lower()
    if lowered in ("true", "1", "t"):
        return "true"
    return "false" if lowered in ("false", "0", "f") else lowered


class _Values:
    """The texts found, read by kind; every error names where the text came from."""

    def __init__(self, found: dict[str, tuple[str, str]]) -> None:
        self._found = found

    def given(self, flag: str) -> bool:
        return flag in self._found

    def text(self, flag: str) -> str:
        text, origin = self._found.get(flag, (SETTINGS[flag].default, f"--{flag}"))
        kind = SETTINGS[flag].kind
        if kind.startswith("choice:"):
            choices = kind.removeprefix("choice:").split("|")
            if text not in choices:
                raise SettingsError(f"{origin}={text}: one of {', '.join(choices)} is needed")
        return text

    def error(self, flag: str, text: str) -> SettingsError:
        return SettingsError(f"{self._found.get(flag, ('', f'--{flag}'))[1]}: {text}")

    def integer(self, flag: str, low: int, high: int = 2**62) -> int:
        text = self.text(flag)
        try:
            value = int(text)
        except ValueError:
            raise self.error(flag, f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise self.error(flag, f"{value} is not in {low}..{high}")
        return value

    def path(self, flag: str) -> Path | None:
        text = self.text(flag)
        return Path(text) if text else None

    def boolean(self, flag: str) -> bool:
        value = _lower_bool(self.text(flag))
        if value not in ("true", "false"):
            raise self.error(flag, f"{value!r} is neither true nor false")
        return value == "true"

    def seconds(self, flag: str) -> float:
        """A duration as Go writes it: 10m, 1h30m, 500ms; a bare number is seconds."""
        text = self.text(flag)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise self.error(flag, f"{text!r} is not a duration such as 500ms, 10m or 1h30m")
        return sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)

    def urls(self, flag: str) -> tuple[str, ...]:
        urls = tuple(part.strip() for part in self.text(flag).split(","))
        for url in urls:
            problem = url_problem(url)
            if problem:
                raise self.error(flag, f"{url!r}: {problem}")
        return tuple(sorted(urls))


def url_problem(url: str) -> str:
    """Why `url` cannot be a member's URL; "" when it can."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme in ("https", "unixs"):
        return "TLS is not served yet; use http://"
    if parts.scheme != "http":
        return "a URL such as http://127.0.0.1:2379 is needed"
    if not parts.hostname or port is None:
        return "host and port are needed, such as http://127.0.0.1:2379"
    if parts.path not in ("", "/") or parts.query or parts.username:
        return "nothing may follow the port"
    return ""


def _pace(values: _Values) -> int:
    pace = values.integer("snapshot-bytes-per-second", 0)
    if 0 < pace < SNAPSHOT_PACE_MIN:
        raise values.error(
            "snapshot-bytes-per-second", f"{pace} is neither 0 (no limit) nor {SNAPSHOT_PACE_MIN} or more"
        )
    return pace


def _build(values: _Values, notes: tuple[str, ...]) -> ServerConfig:
    name = values.text("name")
    if not name or len(name) > MEMBER_NAME_MAX or "=" in name or "," in name:
        raise values.error(
            "name", f"{name!r} cannot be a member's name: no '=', no ',', 1..{MEMBER_NAME_MAX} characters"
        )
    if values.given("listen-client-urls") and not values.given("advertise-client-urls"):
        raise values.error("listen-client-urls", "--advertise-client-urls is needed too: where do clients reach it?")
    heartbeat = values.integer("heartbeat-interval", 1)
    election = values.integer("election-timeout", 1, ELECTION_TIMEOUT_MS_MAX)
    if election < HEARTBEATS_PER_ELECTION * heartbeat:
        raise values.error(
            "election-timeout", f"{election} ms must be at least 5 times --heartbeat-interval ({heartbeat} ms)"
        )
    peer_urls = values.urls("initial-advertise-peer-urls")
    return ServerConfig(
        name=name,
        data_dir=Path(values.text("data-dir") or f"{name}.kvstore"),
        listen_client_urls=values.urls("listen-client-urls"),
        listen_peer_urls=values.urls("listen-peer-urls"),
        advertise_client_urls=values.urls("advertise-client-urls"),
        initial_advertise_peer_urls=peer_urls,
        initial_cluster=_initial_cluster(values, name, peer_urls),
        initial_cluster_given=values.given("initial-cluster") or values.given("initial-cluster-token"),
        initial_cluster_state=values.text("initial-cluster-state"),
        strict_reconfig_check=values.boolean("strict-reconfig-check"),
        max_learners=values.integer("experimental-max-learners", 1, 100),
        initial_cluster_token=values.text("initial-cluster-token"),
        heartbeat_interval=heartbeat,
        election_timeout=election,
        initial_election_tick_advance=values.boolean("initial-election-tick-advance"),
        pre_vote=values.boolean("pre-vote"),
        snapshot_count=values.integer("snapshot-count", 1),
        snapshot_catchup_entries=values.integer("snapshot-catchup-entries", 0),
        snapshot_catchup_bytes=values.integer("snapshot-catchup-bytes", 0),
        snapshot_bytes_per_second=_pace(values),
        log_segment_bytes=values.integer("log-segment-bytes", 4096, 1 << 30),
        sync=values.text("sync"),
        max_txn_ops=values.integer("max-txn-ops", 1, 100_000),
        max_request_bytes=values.integer("max-request-bytes", 1, 64 * 1024 * 1024),
        lease_checkpoint=values.boolean("experimental-enable-lease-checkpoint"),
        watch_progress_notify_interval=max(values.seconds("watch-progress-notify-interval"), 0.1),
        log_level=values.text("log-level"),
        log_format=values.text("log-format"),
        admin_socket=values.path("admin-socket"),
        failpoints=values.text("failpoints"),
        raft_trace=values.path("raft-trace"),
        notes=notes,
    )


def _initial_cluster(values: _Values, name: str, peer_urls: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The first members, sorted by name; etcd's checks of this member's own line."""
    text = values.text("initial-cluster")
    if not text:
        return ((name, peer_urls),)
    members: dict[str, list[str]] = {}
    for part in text.split(","):
        member, separator, url = part.strip().partition("=")
        problem = url_problem(url) if separator else "name=url is needed"
        if problem:
            raise values.error("initial-cluster", f"{part.strip()!r}: {problem}")
        members.setdefault(member, []).append(url)
    every_url = [url for urls in members.values() for url in urls]
    if len(set(every_url)) != len(every_url):
        raise values.error("initial-cluster", "one URL stands there twice")
    if name not in members:
        raise values.error(
            "initial-cluster", f"this member, --name={name}, is not in it; it has {', '.join(sorted(members))}"
        )
    own = tuple(sorted(members[name]))
    if own != peer_urls:
        raise values.error(
            "initial-cluster",
            f"it has {name}={','.join(own)}, but --initial-advertise-peer-urls is {','.join(peer_urls)}; "
            "make both the same",
        )
    return tuple((member, tuple(sorted(urls))) for member, urls in sorted(members.items()))
