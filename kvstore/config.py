"""Settings of a member: from etcd's flags to one frozen result.

A value is looked for in this order and the first found counts:

    --flag  >  KVSTORE_<FLAG>  >  ETCD_<FLAG>  >  the YAML file of --config-file  >  the default

`flags.SETTINGS` is the whole table. What contradicts itself, or is half of something, is refused here, so that nothing
is opened by a mistake: a port that its owner believes to ask for certificates does.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from kvstore.auth.settings import AuthSettings, parse_auth_token
from kvstore.flags import FILE_SECTIONS, GATES, LOCAL_CLIENT, LOCAL_PEER, REQUEST_BYTES_MAX, SETTINGS, Setting
from kvstore.tls_settings import TlsFiles, tls_files

MEMBER_NAME_MAX: Final = 256
GRPC_OVERHEAD_BYTES: Final = 512 * 1024  # the front takes this much more than one request may have
SNAPSHOT_PACE_MIN: Final = 64 * 1024  # bytes a second: below it a snapshot would never arrive
HEARTBEATS_PER_ELECTION: Final = 5  # etcd's rule: an election timeout is at least this many heartbeats
ELECTION_TIMEOUT_MS_MAX: Final = 50_000


class SettingsError(Exception):
    """A setting is wrong. The message says which one, from where, and what to do."""


UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What one member runs with. Made by `resolve`; already checked."""

    name: str = "default"
    data_dir: Path = Path("default.kvstore")
    listen_client_urls: tuple[str, ...] = (LOCAL_CLIENT,)
    listen_peer_urls: tuple[str, ...] = (LOCAL_PEER,)
    listen_client_http_urls: tuple[str, ...] = ()  # HTTP/1.1 only; listen_client_urls then serve gRPC only
    listen_metrics_urls: tuple[str, ...] = ()
    enable_grpc_gateway: bool = True  # /v3/ over HTTP
    enable_grpc_reflection: bool = False
    cors: frozenset[str] = frozenset()  # origins whose pages a browser may show our answers; "*" is every one
    host_whitelist: frozenset[str] = frozenset(("*",))  # Host headers that are answered without TLS
    rpc: str = ""  # one of kvstore.rpc.FRONTS; "": its default
    client_tls: TlsFiles | None = None
    peer_tls: TlsFiles | None = None
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
    max_concurrent_streams: int = 2**32 - 1  # of one connection
    watch_progress_notify_interval: float = 600.0  # seconds
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: float = 0.0  # seconds (periodic) or revisions; 0: off
    lease_checkpoint: bool = False
    initial_corrupt_check: bool = False
    corrupt_check_time: float = 0.0  # seconds; 0: never
    compact_hash_check: bool = False
    compact_hash_check_time: float = 60.0  # seconds
    quota_backend_bytes: int = 0  # 0: the default of server/quota.py; negative: no limit
    auth: AuthSettings = field(default_factory=AuthSettings)
    measure_calls: bool = False  # --metrics=extensive
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


def resolve(
    flags: Mapping[str, str], environment: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None
) -> ServerConfig:
    """The settings of one member from its command line (flag name -> text) and environment.

    defaults: count where nothing else does. Raises SettingsError.
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
    for flag, text in (defaults or {}).items():
        found.setdefault(flag, (text, f"--{flag}"))
    _expand(found)
    for flag, (text, origin) in found.items():
        note = _check_served(SETTINGS[flag], text, origin)
        if note:
            notes.append(note)
    return _build(_Values(found), notes)


def _expand(found: dict[str, tuple[str, str]]) -> None:
    """Other names of flags, and feature gates, become the flags that they stand for."""
    for flag, (text, origin) in list(found.items()):
        if SETTINGS[flag].alias:
            found.setdefault(SETTINGS[flag].alias, (text, origin))
    text, origin = found.get("feature-gates", ("", ""))
    for part in filter(None, (part.strip() for part in text.split(","))):
        gate, _, value = part.partition("=")
        if gate not in GATES or _lower_bool(value) not in ("true", "false"):
            raise SettingsError(f"{origin}: {part!r}: want Gate=true or Gate=false; gates are {', '.join(GATES)}")
        if GATES[gate]:
            found.setdefault(GATES[gate], (value, f"{gate} in {origin}"))


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
        if flag in FILE_SECTIONS:
            values |= _read_section(flag, value, path)
            continue
        _known(flag, f"{flag} in {path}")
        values[flag] = _as_text(value, f"{flag} in {path}")
    return values


def _read_section(section: str, content: object, path: Path) -> dict[str, str]:
    """As etcd's file has it: cert-file in peer-transport-security is --peer-cert-file."""
    if not isinstance(content, dict | None):
        raise SettingsError(f"{section} in {path}: `flag: value` lines are needed")
    values = {}
    for key, value in (content or {}).items():
        name = f"cert-{key}" if str(key).startswith("allowed-") else key
        flag, origin = f"{FILE_SECTIONS[section]}{name}", f"{section}: {key} in {path}"
        _known(flag, origin)
        values[flag] = _as_text(value, origin)
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
    if setting.accepts is None:
        return ""
    value = _lower_bool(text) if setting.kind == "bool" else text
    if setting.ignored:
        return "" if value in setting.accepts else f"{origin} has no effect in this version"
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
            if text not in choices and text != SETTINGS[flag].default:
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

    def listed(self, flag: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.text(flag).split(",") if part.strip())

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
        text = self.text(flag)
        urls = tuple(part.strip() for part in text.split(",")) if text else ()
        if not urls and SETTINGS[flag].default:
            raise self.error(flag, "a URL is needed")
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
    if parts.scheme not in ("http", "https"):
        return "a URL such as http://127.0.0.1:2379 is needed"
    if not parts.hostname or port is None:
        return "host and port are needed, such as http://127.0.0.1:2379"
    if parts.path not in ("", "/") or parts.query or parts.username:
        return "nothing may follow the port"
    return ""


def _retention(values: _Values) -> float:
    """A bare number is hours where a period is kept (etcd)."""
    flag = "auto-compaction-retention"
    if values.text("auto-compaction-mode") == "revision":
        return values.integer(flag, 0)
    if values.text(flag).isdecimal():
        return values.integer(flag, 0, 100_000) * UNIT_SECONDS["h"]
    return values.seconds(flag)


def _pace(values: _Values) -> int:
    pace = values.integer("snapshot-bytes-per-second", 0)
    if 0 < pace < SNAPSHOT_PACE_MIN:
        raise values.error(
            "snapshot-bytes-per-second", f"{pace} is neither 0 (no limit) nor {SNAPSHOT_PACE_MIN} or more"
        )
    return pace


def _auth(values: _Values) -> AuthSettings:
    try:
        jwt = parse_auth_token(values.text("auth-token"))
    except ValueError as error:
        raise values.error("auth-token", str(error)) from None
    return AuthSettings(
        jwt=jwt,
        token_ttl=values.integer("auth-token-ttl", 1),
        bcrypt_cost=values.integer("bcrypt-cost", 4, 31),
        by_certificate=values.boolean("client-cert-auth"),
    )


CLIENT_LISTENERS: Final = ("listen-client-urls", "listen-client-http-urls", "listen-metrics-urls")
PEER_LISTENERS: Final = ("listen-peer-urls",)


def _check_listeners(values: _Values) -> None:
    seen: dict[str, str] = {}
    for flag in (*CLIENT_LISTENERS, *PEER_LISTENERS):
        for url in values.urls(flag):
            address = url.partition("://")[2].rstrip("/")
            if address in seen and not address.endswith(":0"):
                raise values.error(flag, f"{url}: --{seen[address]} listens there already")
            seen[address] = flag
    if len({url.partition("://")[0] for url in values.urls("listen-peer-urls")}) > 1:
        raise values.error("listen-peer-urls", "http:// and https:// cannot be mixed: a peer's port speaks one of them")


def _name(values: _Values) -> str:
    name = values.text("name")
    if not name or len(name) > MEMBER_NAME_MAX or "=" in name or "," in name:
        raise values.error(
            "name", f"{name!r} cannot be a member's name: no '=', no ',', 1..{MEMBER_NAME_MAX} characters"
        )
    return name


def _build(values: _Values, notes: list[str]) -> ServerConfig:
    name = _name(values)
    if values.given("listen-client-urls") and not values.given("advertise-client-urls"):
        raise values.error("listen-client-urls", "--advertise-client-urls is needed too: where do clients reach it?")
    heartbeat = values.integer("heartbeat-interval", 1)
    election = values.integer("election-timeout", 1, ELECTION_TIMEOUT_MS_MAX)
    if election < HEARTBEATS_PER_ELECTION * heartbeat:
        raise values.error(
            "election-timeout", f"{election} ms must be at least 5 times --heartbeat-interval ({heartbeat} ms)"
        )
    peer_urls = values.urls("initial-advertise-peer-urls")
    _check_listeners(values)
    data_dir = Path(values.text("data-dir") or f"{name}.kvstore")
    client_tls = tls_files(values, "", CLIENT_LISTENERS, data_dir, notes)
    peer_tls = tls_files(values, "peer-", PEER_LISTENERS, data_dir, notes)
    return ServerConfig(
        name=name,
        data_dir=data_dir,
        listen_client_urls=values.urls("listen-client-urls"),
        listen_peer_urls=values.urls("listen-peer-urls"),
        listen_client_http_urls=values.urls("listen-client-http-urls"),
        listen_metrics_urls=values.urls("listen-metrics-urls"),
        enable_grpc_gateway=values.boolean("enable-grpc-gateway"),
        enable_grpc_reflection=values.boolean("enable-grpc-reflection"),
        cors=frozenset(values.listed("cors")),
        host_whitelist=frozenset(values.listed("host-whitelist")),
        rpc=values.text("rpc"),
        client_tls=client_tls,
        peer_tls=peer_tls,
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
        max_concurrent_streams=values.integer("max-concurrent-streams", 1, 2**32 - 1),
        quota_backend_bytes=values.integer("quota-backend-bytes", -(2**62)),
        initial_corrupt_check=values.boolean("experimental-initial-corrupt-check"),
        corrupt_check_time=values.seconds("experimental-corrupt-check-time"),
        compact_hash_check=values.boolean("experimental-compact-hash-check-enabled"),
        compact_hash_check_time=max(values.seconds("experimental-compact-hash-check-time"), 0.1),
        auth=_auth(values),
        lease_checkpoint=values.boolean("experimental-enable-lease-checkpoint"),
        auto_compaction_mode=values.text("auto-compaction-mode"),
        auto_compaction_retention=_retention(values),
        watch_progress_notify_interval=max(values.seconds("watch-progress-notify-interval"), 0.1),
        measure_calls=values.text("metrics") == "extensive",
        log_level=values.text("log-level"),
        log_format=values.text("log-format"),
        admin_socket=values.path("admin-socket"),
        failpoints=values.text("failpoints"),
        raft_trace=values.path("raft-trace"),
        notes=tuple(notes),
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
