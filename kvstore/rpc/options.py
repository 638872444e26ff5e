"""Limits of both ends of a connection, each with its unit and reason; defaults are etcd's where etcd has one."""

from dataclasses import dataclass
from typing import Any, Final

from kvstore.rpc.tls import ChannelTls, ServerTls

MESSAGE_BYTES_MAX: Final = 2**31 - 1  # what a gRPC length can say; etcd's send limit
REQUEST_OVERHEAD_BYTES: Final = 512 * 1024  # etcd's grpcOverheadBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    max_request_bytes: int = 1536 * 1024  # of one request in the log; the transport takes OVERHEAD more
    max_concurrent_streams: int = 2**31 - 1  # calls at once on one connection; etcd's default is "no limit"
    metadata_bytes_max: int = 64 * 1024  # a token may be long; above it the call ends as RESOURCE_EXHAUSTED
    ping_interval_min_ms: int = 5_000  # etcd's; clients such as aetcd ping every 6 s without calls
    keepalive_time_ms: int = 2 * 3600 * 1000  # without a frame from the client for so long, ping it ...
    keepalive_timeout_ms: int = 20_000  # ... and drop the connection without an answer
    handshake_timeout_ms: int = 10_000  # from accept to the HTTP/2 preface; bounds idle half-open sockets
    pending_calls_max: int = 20_000  # begun and not answered, of the whole server; more are UNAVAILABLE
    connections_max: int = 20_000  # open sockets of the whole server; more are closed at once
    stream_window_bytes: int = 1024 * 1024  # how far ahead of us a client may send on one stream ...
    connection_window_bytes: int = 16 * 1024 * 1024  # ... and on all of its streams
    stream_unread_bytes_max: int = 64 * 1024 * 1024  # received and not taken by a handler; more ends the call
    stream_queue_bytes_max: int = (
        256 * 1024 * 1024
    )  # sent by a service and not read by the client; more ends the stream
    connection_queue_bytes_max: int = (
        512 * 1024 * 1024
    )  # likewise of all streams: no new calls, at twice as much the end
    tls: ServerTls | None = None  # for https:// addresses
    measure_calls: bool = False  # how long unary calls take, for /metrics

    @property
    def receive_bytes_max(self) -> int:
        """Of one message. Larger ones are answered RESOURCE_EXHAUSTED before they are read."""
        return self.max_request_bytes + REQUEST_OVERHEAD_BYTES

    @classmethod
    def of_grpc(cls, arguments: list[tuple[str, Any]], tls: ServerTls | None = None) -> "ServerOptions":
        """From gRPC's own names, as far as they mean something here."""
        found = dict(arguments)
        message = found.get("grpc.max_receive_message_length", 4 * 1024 * 1024)  # gRPC's default
        default = cls()
        return cls(
            max_request_bytes=message - REQUEST_OVERHEAD_BYTES,
            ping_interval_min_ms=found.get("grpc.http2.min_ping_interval_without_data_ms", 300_000),
            keepalive_time_ms=found.get("grpc.keepalive_time_ms", default.keepalive_time_ms),
            keepalive_timeout_ms=found.get("grpc.keepalive_timeout_ms", default.keepalive_timeout_ms),
            stream_unread_bytes_max=max(default.stream_unread_bytes_max, 2 * message),
            tls=tls,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    receive_bytes_max: int = MESSAGE_BYTES_MAX
    metadata_bytes_max: int = 64 * 1024
    keepalive_time_ms: int = 10_000  # a member that vanished without a word is noticed in time + timeout
    keepalive_timeout_ms: int = 5_000
    keepalive_without_calls: bool = False  # ping also when nothing is asked
    connect_timeout_ms: int = 1_000  # of one attempt, TLS included
    reconnect_backoff_ms_min: int = 100
    reconnect_backoff_ms_max: int = 1_000  # a restarted member is found within a second
    stream_window_bytes: int = 1024 * 1024  # how far ahead of its reader a server may send on one stream ...
    connection_window_bytes: int = 16 * 1024 * 1024  # ... and on all of a connection's streams
    tls: ChannelTls | None = None  # for https:// targets

    @classmethod
    def of_grpc(cls, arguments: list[tuple[str, Any]], tls: ChannelTls | None = None) -> "ChannelOptions":
        """From gRPC's own names, as far as they mean something here."""
        found = dict(arguments)
        default = cls()
        return cls(
            receive_bytes_max=found.get("grpc.max_receive_message_length", 4 * 1024 * 1024),  # gRPC's default
            keepalive_time_ms=found.get("grpc.keepalive_time_ms", default.keepalive_time_ms),
            keepalive_timeout_ms=found.get("grpc.keepalive_timeout_ms", default.keepalive_timeout_ms),
            keepalive_without_calls=bool(found.get("grpc.keepalive_permit_without_calls", 0)),
            connect_timeout_ms=found.get("grpc.min_reconnect_backoff_ms", default.connect_timeout_ms),
            reconnect_backoff_ms_min=found.get("grpc.initial_reconnect_backoff_ms", default.reconnect_backoff_ms_min),
            reconnect_backoff_ms_max=found.get("grpc.max_reconnect_backoff_ms", default.reconnect_backoff_ms_max),
            tls=tls,
        )
