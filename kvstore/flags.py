"""The flags of a member: etcd's names, one table.

The command line, its help, the environment and the YAML file are all read through `SETTINGS` (kvstore/config.py). A
flag of etcd's that this version does not serve stands in it too, with the values that ask for what we do anyway
(`accepts`); any other value is refused, since a setting that is silently without effect is worse than one that is
missing. Flags that only tune etcd's own machinery are noted and ignored.
"""

from dataclasses import dataclass
from typing import Final

REQUEST_BYTES_MAX: Final = 1536 * 1024


@dataclass(frozen=True, slots=True)
class Setting:
    flag: str
    kind: str  # text, path, urls, cluster, int, bool, seconds, choice:a|b
    default: str
    help: str
    panel: str
    accepts: tuple[str, ...] | None = None  # not served: only these values are taken; None: served
    ignored: bool = False  # any value is taken and has no effect here
    alias: str = ""  # the flag that this is another name of


MEMBER, CLUSTERING, SECURITY, LIMITS, LOGGING = "Member", "Clustering", "Security", "Limits", "Logging"
CHECKS, DEBUGGING, OTHER = "Checks", "Debugging", "Taken for etcd's sake"
LOCAL_CLIENT: Final = "http://localhost:2379"
LOCAL_PEER: Final = "http://localhost:2380"

_SERVED: Final = [
    Setting("name", "text", "default", "Name of this member, unique in the cluster.", MEMBER),
    Setting("data-dir", "path", "", "Directory of log and state. Default: <name>.kvstore", MEMBER),
    Setting("config-file", "path", "", "YAML file whose keys are these flags' names.", MEMBER),
    Setting("listen-client-urls", "urls", LOCAL_CLIENT, "Where clients are served.", MEMBER),
    Setting("listen-peer-urls", "urls", LOCAL_PEER, "Where the other members are served.", MEMBER),
    Setting("listen-client-http-urls", "urls", "", "Serve HTTP/1.1 here and no longer beside gRPC.", MEMBER),
    Setting("listen-metrics-urls", "urls", "", "Serve /metrics and /health here too.", MEMBER),
    Setting("enable-grpc-gateway", "bool", "true", "Serve /v3/ as JSON over HTTP.", MEMBER),
    Setting("enable-grpc-reflection", "bool", "false", "Tell tools such as grpcurl what is served.", MEMBER),
    Setting("rpc", "choice:nghttp2|grpcio", "", "Which gRPC carries clients and peers; empty: the fastest.", MEMBER),
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
    Setting("cert-file", "path", "", "Certificate for https:// client URLs (PEM).", SECURITY),
    Setting("key-file", "path", "", "Its key.", SECURITY),
    Setting("client-cert-auth", "bool", "false", "Clients must show a certificate.", SECURITY),
    Setting("trusted-ca-file", "path", "", "Whose certificates clients may show; asks for one, as in etcd.", SECURITY),
    Setting("peer-cert-file", "path", "", "Certificate for https:// peer URLs, shown to peers as well.", SECURITY),
    Setting("peer-key-file", "path", "", "Its key.", SECURITY),
    Setting("peer-client-cert-auth", "bool", "false", "Peers must show a certificate.", SECURITY),
    Setting("peer-trusted-ca-file", "path", "", "Whose certificates peers must have. Default: the system's.", SECURITY),
    Setting("client-crl-file", "path", "", "Which of clients' certificates are revoked.", SECURITY),
    Setting("client-cert-allowed-hostname", "text", "", "Host names that a client's certificate must have.", SECURITY),
    Setting("auto-tls", "bool", "false", "Make a certificate for https:// client URLs.", SECURITY),
    Setting("peer-client-cert-file", "path", "", "Shown to peers instead of --peer-cert-file.", SECURITY),
    Setting("peer-client-key-file", "path", "", "Its key.", SECURITY),
    Setting("peer-crl-file", "path", "", "Which of peers' certificates are revoked.", SECURITY),
    Setting("peer-cert-allowed-cn", "text", "", "Common names that a peer's certificate must have.", SECURITY),
    Setting("peer-cert-allowed-hostname", "text", "", "Host names that a peer's certificate must have.", SECURITY),
    Setting(
        "peer-skip-client-san-verification",
        "bool",
        "false",
        "Do not ask whether a peer's certificate is of the address that it dials from.",
        SECURITY,
    ),
    Setting("peer-auto-tls", "bool", "false", "Make a certificate for peers; believe any peer's.", SECURITY),
    Setting("self-signed-cert-validity", "int", "1", "Years that a certificate is for that a member makes.", SECURITY),
    Setting("tls-min-version", "text", "TLS1.2", "The oldest TLS that is spoken: TLS1.2 or TLS1.3.", SECURITY),
    Setting("tls-max-version", "text", "", "The newest TLS that is spoken. Default: the newest there is.", SECURITY),
    Setting("cipher-suites", "text", "", "Suites of TLS1.2 by Go's names, comma-separated.", SECURITY),
    Setting("cors", "text", "", "Origins whose pages may ask over HTTP, comma-separated; * is every one.", SECURITY),
    Setting("host-whitelist", "text", "*", "Host headers answered over HTTP without TLS; * is every one.", SECURITY),
    Setting("auth-token", "text", "simple", "simple, or jwt,pub-key=F,priv-key=F,sign-method=M,ttl=5m.", SECURITY),
    Setting("auth-token-ttl", "int", "300", "Seconds that a simple token lives without being used.", SECURITY),
    Setting("bcrypt-cost", "int", "10", "How hard passwords are hashed, 4..31.", SECURITY),
    Setting("max-concurrent-streams", "int", str(2**32 - 1), "Calls at once on one client's connection.", LIMITS),
    Setting("max-txn-ops", "int", "128", "Operations in one transaction.", LIMITS),
    Setting(
        "quota-backend-bytes",
        "int",
        "0",
        "Bytes of keys and revisions before writes are refused; 0: 2 GiB, negative: no limit.",
        LIMITS,
    ),
    Setting("max-request-bytes", "int", str(REQUEST_BYTES_MAX), "Bytes in one request.", LIMITS),
    Setting(
        "experimental-enable-lease-checkpoint",
        "bool",
        "false",
        "Log now and then what is left of long leases, for the next leader.",
        LIMITS,
    ),
    Setting("auto-compaction-mode", "choice:periodic|revision", "periodic", "What the retention counts.", LIMITS),
    Setting(
        "auto-compaction-retention",
        "text",
        "0",
        "Of old revisions: hours, or a duration such as 30m (periodic), or their number (revision); 0: for ever.",
        LIMITS,
    ),
    Setting("watch-progress-notify-interval", "seconds", "10m", "Between progress notices of an idle watch.", LIMITS),
    Setting("experimental-initial-corrupt-check", "bool", "false", "Compare with the others before serving.", CHECKS),
    Setting("experimental-corrupt-check-time", "seconds", "0s", "The leader compares all so often; 0: never.", CHECKS),
    Setting("experimental-compact-hash-check-enabled", "bool", "false", "... and after compactions.", CHECKS),
    Setting("experimental-compact-hash-check-time", "seconds", "1m", "How often it looks for one.", CHECKS),
    Setting("metrics", "choice:basic|extensive", "basic", "extensive: also how long calls take.", LOGGING),
    Setting("log-level", "choice:debug|info|warn|error|panic|fatal", "info", "The least to log.", LOGGING),
    Setting("log-format", "choice:auto|json|console", "auto", "auto: console on a terminal, else JSON.", LOGGING),
    Setting("admin-socket", "path", "", "Unix socket for failpoints and a look inside. Default: none.", DEBUGGING),
    Setting("failpoints", "text", "", "name=action;...: fail there (docs/failpoints.md).", DEBUGGING),
    Setting("raft-trace", "path", "", "Write each change of the raft state to this file (JSON).", DEBUGGING),
]


def _taken(flag: str, kind: str, *accepts: str) -> Setting:
    default = accepts[0] if accepts else ""
    return Setting(flag, kind, default, "Not served yet.", OTHER, accepts=accepts or ("",))


def _ignored(flag: str, kind: str = "text", *accepts: str) -> Setting:
    """accepts: what asks for what we do anyway."""
    return Setting(flag, kind, "", "Taken; has no effect here.", OTHER, accepts=accepts, ignored=True)


def _also(flag: str, kind: str, alias: str) -> Setting:
    return Setting(flag, kind, "", f"Another name of --{alias}.", OTHER, alias=alias)


_COMPATIBLE: Final = [
    # etcd 3.6 took the experimental- away, or put it there before 3.6.
    _also("max-learners", "int", "experimental-max-learners"),
    _also("experimental-snapshot-catchup-entries", "int", "snapshot-catchup-entries"),
    _also("experimental-watch-progress-notify-interval", "seconds", "watch-progress-notify-interval"),
    _also("compact-hash-check-time", "seconds", "experimental-compact-hash-check-time"),
    _also("corrupt-check-time", "seconds", "experimental-corrupt-check-time"),
    _also("experimental-peer-skip-client-san-verification", "bool", "peer-skip-client-san-verification"),
    Setting("feature-gates", "text", "", "etcd 3.6's: LeaseCheckpoint=true and others.", OTHER),
    _ignored("client-cert-file"),  # of etcd's gateway as a client of itself; ours calls in process
    _ignored("client-key-file"),
    _ignored("skip-client-san-verification", "bool", "false", "true"),  # of the file's client section: nobody asks
    _taken("wal-dir", "text"),
    _taken("force-new-cluster", "bool", "false"),
    _taken("unsafe-no-fsync", "bool", "false"),
    _taken("enable-v2v3", "text"),
    _taken("proxy", "text", "off", "false"),  # YAML reads off as false
    _taken("discovery", "text"),
    _taken("discovery-srv", "text"),
    _taken("discovery-proxy", "text"),
    _taken("socket-reuse-port", "bool", "false"),
    _ignored("experimental-enable-lease-checkpoint-persist", "bool"),  # ours are always persisted
    _taken("experimental-enable-distributed-tracing", "bool", "false"),
    _ignored("enable-v2", "bool"),  # test suites pass it to any etcd; the v2 API is simply not there
    _ignored("socket-reuse-address", "bool"),
    _ignored("logger", "text", "zap"),
    _ignored("log-outputs", "text", "default", "stderr"),
    *[
        _ignored(flag, "bool")
        for flag in (
            "debug",
            "enable-log-rotation",
            "enable-pprof",
            "experimental-enable-v2v3",
            "experimental-memory-mlock",
            "experimental-stop-grpc-service-on-defrag",
            "experimental-txn-mode-write-with-shared-buffer",
            "memory-mlock",
        )
    ],
    *[
        _ignored(flag)
        for flag in (
            "max-snapshots",
            "max-wals",
            "backend-batch-limit",
            "backend-batch-interval",
            "backend-bbolt-freelist-type",
            "grpc-keepalive-min-time",
            "grpc-keepalive-interval",
            "grpc-keepalive-timeout",
            "discovery-fallback",
            "log-rotation-config-json",
            "log-package-levels",
            "bootstrap-defrag-threshold-megabytes",
            "compaction-batch-limit",
            "compaction-sleep-interval",
            "downgrade-check-time",
            "discovery-srv-name",
            "experimental-bootstrap-defrag-threshold-megabytes",
            "experimental-compaction-sleep-interval",
            "experimental-distributed-tracing-address",
            "experimental-distributed-tracing-instance-id",
            "experimental-distributed-tracing-sampling-rate",
            "experimental-distributed-tracing-service-name",
            "experimental-downgrade-check-time",
            "experimental-warning-apply-duration",
            "experimental-warning-unary-request-duration",
            "proxy-dial-timeout",
            "proxy-failure-wait",
            "proxy-read-timeout",
            "proxy-refresh-interval",
            "proxy-write-timeout",
            "v2-deprecation",
            "warning-apply-duration",
            "warning-unary-request-duration",
            "experimental-compaction-batch-limit",
        )
    ],
]

SETTINGS: Final[dict[str, Setting]] = {setting.flag: setting for setting in [*_SERVED, *_COMPATIBLE]}

# etcd 3.6's feature gates, and the flags that say the same here; "": on or off, it makes no difference.
GATES: Final = {
    "AllAlpha": "",
    "AllBeta": "",
    "CompactHashCheck": "experimental-compact-hash-check-enabled",
    "FastLeaseKeepAlive": "",
    "InitialCorruptCheck": "experimental-initial-corrupt-check",
    "LeaseCheckpoint": "experimental-enable-lease-checkpoint",
    "LeaseCheckpointPersist": "",
    "PriorityRequest": "",
    "SetMemberLocalAddr": "",
    "StopGRPCServiceOnDefrag": "",
    "TxnModeWriteWithSharedBuffer": "",
}

# Sections of etcd's YAML file: each key is a flag behind the prefix.
FILE_SECTIONS: Final = {"client-transport-security": "", "peer-transport-security": "peer-"}
