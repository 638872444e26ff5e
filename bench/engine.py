"""nghttp2, for the load generator: the one place of the benchmark that imports it."""

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    NGH2Error,
    ResponseReceived,
    Role,
    Setting,
    StreamClosed,
    TrailersReceived,
)
from ngh2.types import Header

__all__ = [
    "Configuration",
    "Connection",
    "ConnectionClosed",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "NGH2Error",
    "ResponseReceived",
    "Role",
    "Setting",
    "StreamClosed",
    "TrailersReceived",
    "status_of",
]


def status_of(headers: tuple[Header, ...], default: int | None = None) -> int | None:
    """grpc-status among headers or trailers."""
    return next((int(value) for name, value in headers if name == b"grpc-status"), default)
