"""grpc.aio's Channel over libnghttp2: the surface that generated stubs use.

    Channel --> Connector (client_connector.py) --> ClientSession (client_session.py): one HTTP/2 connection
       |                                                 |  events
    multicallables --> calls (client_calls.py) --> streams (client_stream.py)

A call costs no task and no timer: it is a stream of the session's, and a future where somebody waits for it.
"""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar, final

import grpc
import grpc.aio

from kvstore.rpc.nghttp2 import metadata as headers
from kvstore.rpc.nghttp2.client_calls import (
    Requests,
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from kvstore.rpc.nghttp2.client_connector import Connector
from kvstore.rpc.nghttp2.client_stream import Method, ResponseStream, Stream, UnaryResponse
from kvstore.rpc.nghttp2.framing import DEFLATE, GZIP, IDENTITY
from kvstore.rpc.options import ChannelOptions

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]] | Mapping[str, str | bytes] | None
Serializer: TypeAlias = Callable[[Any], bytes] | None
Deserializer: TypeAlias = Callable[[bytes], Any] | None
R = TypeVar("R", bound=Stream)

CLOSED: Final = "Channel is closed."
_COMPRESSION: Final = {None: IDENTITY, 0: IDENTITY, 1: DEFLATE, 2: GZIP}  # by grpc.Compression's numbers


class _MultiCallable:
    __slots__ = ("_connector", "_method")

    def __init__(self, method: Method) -> None:
        self._method = method
        self._connector = method.connector

    def _stream(
        self,
        kind: type[R],
        timeout: float | None,
        metadata: Metadata,
        credentials: object | None,
        wait_for_ready: bool | None,
        compression: "grpc.Compression | None",
    ) -> R:
        """Not started."""
        if self._connector.state is grpc.ChannelConnectivity.SHUTDOWN:
            raise grpc.aio.UsageError(CLOSED)
        if credentials is not None:
            raise ValueError("a call has no credentials of its own: send them as metadata")
        extra: list[tuple[bytes, bytes]] = headers.encode(metadata) if metadata else []
        encoding = IDENTITY
        if compression is not None:
            encoding = _COMPRESSION[int(compression)]
            if encoding != IDENTITY:
                extra.insert(0, (b"grpc-encoding", encoding.encode()))
        return kind(self._method, timeout, extra, bool(wait_for_ready), encoding)


@final
class UnaryUnary(_MultiCallable):
    __slots__ = ()

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Metadata = None,
        credentials: object | None = None,
        wait_for_ready: bool | None = None,
        compression: "grpc.Compression | None" = None,
    ) -> UnaryUnaryCall:
        stream = self._stream(UnaryResponse, timeout, metadata, credentials, wait_for_ready, compression)
        stream.body = stream.framed(request)
        if stream.body is not None:
            stream.start()
        return UnaryUnaryCall(stream)


@final
class UnaryStream(_MultiCallable):
    __slots__ = ()

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Metadata = None,
        credentials: object | None = None,
        wait_for_ready: bool | None = None,
        compression: "grpc.Compression | None" = None,
    ) -> UnaryStreamCall:
        stream = self._stream(ResponseStream, timeout, metadata, credentials, wait_for_ready, compression)
        stream.body = stream.framed(request)
        if stream.body is not None:
            stream.start()
        return UnaryStreamCall(stream)


@final
class StreamUnary(_MultiCallable):
    __slots__ = ()

    def __call__(
        self,
        request_iterator: Requests | None = None,
        timeout: float | None = None,
        metadata: Metadata = None,
        credentials: object | None = None,
        wait_for_ready: bool | None = None,
        compression: "grpc.Compression | None" = None,
    ) -> StreamUnaryCall:
        stream = self._stream(UnaryResponse, timeout, metadata, credentials, wait_for_ready, compression)
        stream.start()
        return StreamUnaryCall(stream, request_iterator)


@final
class StreamStream(_MultiCallable):
    __slots__ = ()

    def __call__(
        self,
        request_iterator: Requests | None = None,
        timeout: float | None = None,
        metadata: Metadata = None,
        credentials: object | None = None,
        wait_for_ready: bool | None = None,
        compression: "grpc.Compression | None" = None,
    ) -> StreamStreamCall:
        stream = self._stream(ResponseStream, timeout, metadata, credentials, wait_for_ready, compression)
        stream.start()
        return StreamStreamCall(stream, request_iterator)


@final
class Channel:
    """One server. Connects on the first call; use it on the loop it was made on."""

    def __init__(self, target: str, options: ChannelOptions) -> None:
        """target: "http://host:port", "https://host:port" or "host:port". Raises ValueError."""
        self._connector = Connector(target, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(None)

    # Methods

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        return UnaryUnary(self._method(method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        return UnaryStream(self._method(method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        return StreamUnary(self._method(method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        return StreamStream(self._method(method, request_serializer, response_deserializer))

    def _method(self, path: str, serialize: Serializer, deserialize: Deserializer) -> Method:
        return Method(self._connector, path, serialize, deserialize)

    # Its connection

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state = self._connector.state
        if try_to_connect:
            self._connector.connect()
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns once the state is another one."""
        while self._connector.state is last_observed_state:
            if last_observed_state is grpc.ChannelConnectivity.SHUTDOWN:
                raise grpc.aio.UsageError(CLOSED)
            await self._connector.changed()

    async def channel_ready(self) -> None:
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        """Calls under way get `grace` seconds; then they are cancelled."""
        await self._connector.close(grace)
