"""Limits of both ends of a connection, each with its unit and reason; defaults are etcd's where etcd has one."""

from dataclasses import dataclass

MESSAGE_BYTES_MAX = 2**31 - 1  # what a gRPC length can say; etcd's send limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    max_request_bytes: int = 1536 * 1024  # of one request in the log; the transport takes OVERHEAD more
    max_concurrent_streams: int = 2**31 - 1  # calls at once on one connection; etcd's default is "no limit"
    metadata_bytes_max: int = 64 * 1024  # a token may be long; above it the call ends as RESOURCE_EXHAUSTED
    ping_interval_min_ms: int = 5_000  # etcd's; clients such as aetcd ping every 6 s without calls
    keepalive_time_ms: int = 2 * 3600 * 1000  # without a frame from the client for so long, ping it ...
    keepalive_timeout_ms: int = 20_000  # ... and drop the connection without an answer
    handshake_timeout_ms: int = 10_000  # from accept to the HTTP/2 preface; bounds idle half-open sockets
    pending_calls_max: int = 20_000  # not yet taken by the loop; grpc-core answers those above with a reset

    @property
    def receive_bytes_max(self) -> int:
        """Of one message. Larger ones are answered RESOURCE_EXHAUSTED before they are read."""
        return self.max_request_bytes + REQUEST_OVERHEAD_BYTES


REQUEST_OVERHEAD_BYTES = 512 * 1024  # etcd's grpcOverheadBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    receive_bytes_max: int = MESSAGE_BYTES_MAX
    keepalive_time_ms: int = 10_000  # a member that vanished without a word is noticed in time + timeout
    keepalive_timeout_ms: int = 5_000
    reconnect_backoff_ms_min: int = 100
    reconnect_backoff_ms_max: int = 1_000  # a restarted member is found within a second
