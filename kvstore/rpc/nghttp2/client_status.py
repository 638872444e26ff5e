"""What the end of a stream means: from trailers, HTTP statuses and reset codes to gRPC's status."""

from typing import Final, TypeAlias

import grpc

from kvstore.rpc.nghttp2.engine import ErrorCode, Headers
from kvstore.rpc.nghttp2.metadata import CONTENT_TYPE, decode_message

Ending: TypeAlias = tuple[grpc.StatusCode, str]

STATUS: Final[dict[int, grpc.StatusCode]] = {status.value[0]: status for status in grpc.StatusCode}

DEADLINE: Final[Ending] = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
NO_TRAILERS: Final[Ending] = (grpc.StatusCode.INTERNAL, "server closed the stream without sending trailers")
NO_MESSAGE: Final[Ending] = (grpc.StatusCode.INTERNAL, "the server ended the call with OK and without a message")
TWO_MESSAGES: Final[Ending] = (grpc.StatusCode.INTERNAL, "the server sent more than one message to a unary call")

# gRPC's "HTTP to gRPC status code mapping", for answers of what is no gRPC server; UNKNOWN for the rest.
_OF_HTTP: Final = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}

# gRPC over HTTP/2, "Errors"; INTERNAL for the rest.
_OF_RESET: Final[dict[int, grpc.StatusCode]] = {
    ErrorCode.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: grpc.StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.STREAM_CLOSED: grpc.StatusCode.UNKNOWN,
}


def of_trailers(headers: Headers) -> Ending | None:
    """None without a grpc-status."""
    code: grpc.StatusCode | None = None
    text = ""
    for name, value in headers:
        if name == b"grpc-status":
            code = STATUS.get(int(value), grpc.StatusCode.UNKNOWN) if value.isdigit() else grpc.StatusCode.UNKNOWN
        elif name == b"grpc-message":
            text = decode_message(value)
    if code is grpc.StatusCode.OK:
        return code, ""  # grpc.aio tells no text of a success, whatever was sent
    return None if code is None else (code, text)


def of_reset(code: int) -> Ending:
    try:
        name = ErrorCode(code).name
    except ValueError:
        name = "unknown"
    status = _OF_RESET.get(code, grpc.StatusCode.INTERNAL)
    return status, f"Received RST_STREAM with error code {code} ({name})"


def of_head(headers: Headers) -> Ending | None:
    """None when it is the beginning of a gRPC answer."""
    found = dict(headers)
    status = found.get(b":status", b"")
    if status != b"200":
        http = int(status) if status.isdigit() else 0
        return _OF_HTTP.get(http, grpc.StatusCode.UNKNOWN), f"Received http2 header with status: {http}"
    kind = found.get(b"content-type", b"")
    if not kind.startswith(CONTENT_TYPE):
        return grpc.StatusCode.UNKNOWN, f"received unexpected content-type {kind.decode('latin-1')!r}"
    return None
