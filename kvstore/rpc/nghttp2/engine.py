"""libnghttp2, by way of ngh2. No other module imports it: when it is to be replaced, this is the place.

A `Connection` is sans-IO: bytes in, events out, calls in, bytes out. By the time an event is looked at its stream may
be reset and the connection closing, so every send can find nobody there. That is no error of ours: the functions
here say False, and whoever owns the stream hears of its end by an event.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    ConnectionClosingError,
    ConnectionStateError,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    NGH2Error,
    NoAvailableStreamIDError,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    Role,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamProtocolError,
    TrailersReceived,
)

__all__ = [
    "Connection",
    "ConnectionClosed",
    "DataReceived",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "ConnectionClosingError",
    "Headers",
    "NGH2Error",
    "PREFACE",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "ResponseReceived",
    "SettingsReceived",
    "StreamClosed",
    "TrailersReceived",
    "acknowledge",
    "client_connection",
    "data",
    "end",
    "headers_only",
    "message",
    "open_stream",
    "reset",
    "response_head",
    "server_connection",
    "trailers",
    "unary_response",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# The stream or the connection is gone, or on its way out.
_GONE: Final = (StreamProtocolError, ConnectionStateError, ConnectionClosingError, ValueError)

# Cancelled calls are ordinary in gRPC: a deadline that passes is one. The library's own bound (1000, then 33 a second)
# would end the connection of a busy client; what a reset costs here is bounded by what a call costs.
_RESETS: Final = (20_000, 2_000)
# Above this the whole connection dies without a word, so it is far above what a call is refused for.
_HEADER_BYTES_FATAL: Final = 1024 * 1024


def server_connection(
    *, streams_max: int, header_bytes_max: int, stream_window: int, connection_window: int
) -> Connection:
    """A server's end. Its receive windows open by themselves as data is read."""
    connection = Connection(
        Role.SERVER,
        Configuration(
            auto_window_update=True,
            stream_reset_rate_limit=_RESETS,
            glitch_rate_limit=_RESETS,
            max_continuations=64,
            max_inbound_header_list_size=_HEADER_BYTES_FATAL,
            max_send_header_block_length=_HEADER_BYTES_FATAL,
        ),
    )
    connection.initiate_connection(
        {
            Setting.MAX_CONCURRENT_STREAMS: streams_max,
            Setting.INITIAL_WINDOW_SIZE: stream_window,
            Setting.MAX_HEADER_LIST_SIZE: header_bytes_max,
        }
    )
    connection.set_local_window_size(connection_window)
    return connection


def client_connection(*, header_bytes_max: int, stream_window: int, connection_window: int) -> Connection:
    """A client's end. Every byte received must be given back with `acknowledge_received_data`."""
    connection = Connection(
        Role.CLIENT,
        Configuration(
            auto_window_update=False,
            max_continuations=64,
            max_inbound_header_list_size=_HEADER_BYTES_FATAL,
            max_send_header_block_length=_HEADER_BYTES_FATAL,
        ),
    )
    connection.initiate_connection(
        {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: stream_window,
            Setting.MAX_HEADER_LIST_SIZE: header_bytes_max,
        }
    )
    connection.set_local_window_size(connection_window)
    return connection


# What a server sends. True: it is on its way.


def unary_response(connection: Connection, stream_id: int, head: Headers, body: bytes, end: Headers) -> bool:
    """A whole answer: headers, one framed message, trailers."""
    try:
        connection.send_response(stream_id, head)
        connection.send_data(stream_id, body)
        connection.send_trailers(stream_id, end)
    except _GONE:
        return False
    return True


def response_head(connection: Connection, stream_id: int, head: Headers) -> bool:
    try:
        connection.send_response(stream_id, head)
    except _GONE:
        return False
    return True


def headers_only(connection: Connection, stream_id: int, head: Headers) -> bool:
    """An answer without a body. No flow control holds it back, which trailers behind data cannot say."""
    try:
        connection.send_response(stream_id, head, end_stream=True)
    except _GONE:
        return False
    return True


def trailers(connection: Connection, stream_id: int, end: Headers) -> bool:
    try:
        connection.send_trailers(stream_id, end)
    except _GONE:
        return False
    return True


# What a client sends.


def open_stream(connection: Connection, head: Headers) -> int:
    """The new stream's id; 0 when this connection takes no more calls."""
    try:
        return connection.send_request(head)
    except (*_GONE, NoAvailableStreamIDError):
        return 0


def end(connection: Connection, stream_id: int) -> bool:
    """No more data; what is queued is sent before."""
    try:
        connection.end_stream(stream_id)
    except _GONE:
        return False
    return True


def acknowledge(connection: Connection, stream_id: int, size: int) -> bool:
    """Give received bytes back to the peer's windows; also those of a stream that is closed by now."""
    try:
        connection.acknowledge_received_data(size, stream_id)
    except _GONE:
        return False
    return True


# What both send.


def data(connection: Connection, stream_id: int, body: bytes) -> bool:
    try:
        connection.send_data(stream_id, body)
    except _GONE:
        return False
    return True


def message(connection: Connection, stream_id: int, body: bytes) -> bool:
    """The last data of a stream."""
    try:
        connection.send_data(stream_id, body, end_stream=True)
    except _GONE:
        return False
    return True


def reset(connection: Connection, stream_id: int, code: int) -> bool:
    """Overtakes what is queued on the stream."""
    try:
        connection.reset_stream(stream_id, code)
    except _GONE:
        return False
    return True
