"""How what we have differs from etcd's, and why what we lack is not there: the words of docs/COMPATIBILITY.md."""

DIFFERENT_RPCS = {
    "etcdserverpb.Maintenance/Hash": "hashes the keys; etcd hashes its file, so two of its members seldom agree",
    "etcdserverpb.Maintenance/Defragment": "online: nothing waits for it",
    "etcdserverpb.Maintenance/Downgrade": "there is one version of our format so far",
}

DIFFERENT_FLAGS = {
    "data-dir": "`<name>.kvstore` by default; `kvstore-etcd` has etcd's default",
    "wal-dir": "log and state lie in one directory",
    "max-wals": "the log goes by bytes: --log-segment-bytes",
    "max-snapshots": "snapshots are sent, not kept",
    "cors": "off unless it is given (etcd: `*`), and what it does not name can do nothing under /v3/",
    "enable-v2": "taken, since test suites pass it; there is no v2 API",
    "experimental-enable-v2v3": "taken; there is no v2 API",
    "v2-deprecation": "taken; there is no v2 API",
    "socket-reuse-port": "two members on one port must fail, not share it",
    "discovery": "members are named by --initial-cluster",
    "discovery-srv": "members are named by --initial-cluster",
    "discovery-proxy": "members are named by --initial-cluster",
    "discovery-fallback": "members are named by --initial-cluster",
    "proxy": "etcd's own v2 proxy; `etcd grpc-proxy` works in front of us",
    "log-outputs": "stderr; whoever starts a member knows where to put it",
    "metrics": "`extensive` measures unary calls only",
    "grpc-keepalive-min-time": "taken; it is etcd's default, 5 s",
    "unsafe-no-fsync": "an acknowledged write is on the disk",
    "force-new-cluster": "`kvstore restore` begins a new cluster from a snapshot",
    "backend-bbolt-freelist-type": "bbolt's; the store is RocksDB",
    "backend-batch-interval": "bbolt's; the store is RocksDB",
    "backend-batch-limit": "bbolt's; the store is RocksDB",
    "experimental-bootstrap-defrag-threshold-megabytes": "bbolt's; the store is RocksDB",
    "experimental-txn-mode-write-with-shared-buffer": "bbolt's; the store is RocksDB",
    "experimental-enable-lease-checkpoint": "a checkpoint survives a restart too",
}

# What GET answers, and how it differs.
ENDPOINTS: dict[str, tuple[str, str]] = {
    "/health": ("same", ""),
    "/health?serializable=true": ("same", ""),
    "/livez": ("same", "3.6"),
    "/livez/serializable_read": ("same", "3.6"),
    "/readyz": ("same", "3.6"),
    "/readyz/data_corruption": ("same", "3.6"),
    "/readyz/serializable_read": ("same", "3.6"),
    "/readyz/linearizable_read": ("same", "3.6"),
    "/readyz/non_learner": ("same", "3.6"),
    "/version": ("differs", "3.6.0 in plain digits, and `storage` beside the two of 3.5"),
    "/metrics": ("same", "names below"),
    "/v3/kv/range": ("same", "405: POST is wanted; the paths are beside the RPCs"),
    "/v3beta/kv/range": ("same", "as /v3/"),
    "/v3alpha/kv/range": ("same", "404 at etcd too, since 3.4"),
    "/debug/vars": ("differs", "`kvstore` instead of Go's `memstats`"),
    "/debug/pprof/": ("differs", "Go's profiler, off by default at etcd too"),
    "/v2/keys": ("same", "404 at etcd too, unless --enable-v2"),
    "/members": ("differs", "of etcd's peers' port"),
}

DIFFERENT_METRICS = {
    "etcd_server_proposals_pending": "requests, not entries: an entry holds many",
    "etcd_server_client_requests_total": "of a connection, all calls count to the version that the last one told",
    "etcd_server_heartbeat_send_failures_total": "counted once for all peers",
    "etcd_server_slow_apply_total": "batches that took more than 102 ms",
    "etcd_server_apply_duration_seconds": "of batches, `op` is Batch",
    "etcd_server_slow_read_indexes_total": "rounds of more than half a second, for all reads that wait",
    "etcd_network_client_grpc_received_bytes_total": "of whole connections, so headers too",
    "etcd_network_client_grpc_sent_bytes_total": "of whole connections, so headers too",
    "etcd_network_peer_sent_failures_total": "messages that found no connection or a full queue, heartbeats included",
    "etcd_mvcc_txn_total": "of Txn requests that went through the log; at etcd whatever takes two steps or more",
    "etcd_mvcc_range_total": "of the requests that this member answered, not of those in transactions",
    "etcd_debugging_mvcc_range_total": "of the requests that this member answered, not of those in transactions",
    "etcd_debugging_mvcc_total_put_size_in_bytes": "of the rows that puts and deletions wrote: about 80 bytes more",
    "etcd_network_peer_round_trip_time_seconds": "a leader's heartbeat and its answer; followers measure none",
    "etcd_disk_backend_commit_duration_seconds": "a batch of changes into RocksDB, which needs no fsync",
    "etcd_disk_backend_defrag_duration_seconds": "nothing waits for it here",
    "etcd_disk_backend_snapshot_duration_seconds": "of making a snapshot file, before it is sent",
    "grpc_server_handling_seconds": "with --metrics=extensive, as at etcd; of unary calls only",
    "etcd_mvcc_hash_duration_seconds": "of the keys, as the call",
}

# Of etcd's metrics those that it shows only once what they count has happened.
RARE_METRICS = (
    "etcd_network_disconnected_peers_total",
    "etcd_network_peer_received_failures_total",
    "etcd_network_peer_sent_failures_total",
    "etcd_network_snapshot_receive_failures",
    "etcd_network_snapshot_receive_inflights_total",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_receive_total_duration_seconds",
    "etcd_network_snapshot_send_failures",
    "etcd_network_snapshot_send_inflights_total",
    "etcd_network_snapshot_send_success",
    "etcd_network_snapshot_send_total_duration_seconds",
    "etcd_server_learner_promote_failures",
)

# A pattern of names -> why there is none of them.
MISSING_METRICS = {
    r"go_.*": "Go's runtime",
    r"etcd_server_go_version": "Go's runtime",
    r"etcd_debugging_disk_backend_.*": "bbolt's phases; the store is RocksDB",
    r"etcd_debugging_store_.*": "of the v2 store",
    r"etcd_grpc_proxy_.*": "of etcd's proxy",
    r"etcd_debugging_snap_.*|etcd_snap_.*": "of etcd's snapshot files; ours are checkpoints of hard links",
    r"etcd_debugging_mvcc_db_compaction_pause_.*": "it pauses within each slice, for the loop and not for the disk",
    r"etcd_debugging_mvcc_index_compaction_.*": "there is no index in memory",
    r"etcd_mvcc_db_open_read_transactions": "views are not transactions of the database",
    r"etcd_debugging_mvcc_pending_events_total": "what waits for a watcher is counted in bytes, to bound it",
    r"etcd_network_peer_received_failures_total": "a stream that breaks is in etcd_network_disconnected_peers_total",
    r"etcd_network_snapshot_.*": "not counted; the log tells each",
    r"etcd_server_learner_promote_failures": "not counted; grpc_server_handled_total tells them by code",
}
