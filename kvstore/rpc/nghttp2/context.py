"""grpc.aio's ServicerContext: what a handler may ask about its call, and say beside its answers."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, final

import grpc
import grpc.aio

from kvstore.errors import Code, KvError
from kvstore.rpc.nghttp2 import metadata
from kvstore.rpc.nghttp2.certificates import auth_context
from kvstore.rpc.nghttp2.serving import NO_TIMEOUT

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.handlers import HandlerStream

_FINISHED = "RPC already finished."


@final
class ServicerContext:
    def __init__(self, stream: "HandlerStream") -> None:
        self._stream = stream
        self._code: Any = None  # a grpc.StatusCode, or what `set_code` was given
        self._details = ""
        self._initial: tuple[tuple[bytes, bytes], ...] = ()
        self._trailing: tuple[tuple[bytes, bytes], ...] = ()
        self._is_aborted = False

    # About the call

    def invocation_metadata(self) -> metadata.Metadata:
        return metadata.decode(self._stream.head.headers)

    def peer(self) -> str:
        return self._stream.session.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        return self.auth_context().get("x509_subject_alternative_name") or self.auth_context().get("x509_common_name")

    def peer_identity_key(self) -> str | None:
        found = self.auth_context()
        names = ("x509_subject_alternative_name", "x509_common_name")
        return next((name for name in names if name in found), None)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """By gRPC's names, from the client's verified certificate; empty without TLS."""
        return auth_context(self._stream.session.transport)

    def time_remaining(self) -> float | None:
        deadline = self._stream.head.deadline
        if deadline == NO_TIMEOUT:
            return None
        return max(0.0, deadline - asyncio.get_running_loop().time())

    def cancelled(self) -> bool:
        return self._stream.is_gone

    def done(self) -> bool:
        return self._stream.is_ended

    def is_active(self) -> bool:
        return not self._stream.is_ended

    def add_done_callback(self, callback: Callable[["ServicerContext"], None]) -> None:
        self._stream.callbacks.append(callback)

    # Messages

    async def read(self) -> Any:
        self._check()
        return await self._stream.read()

    async def write(self, message: Any) -> None:
        self._check()
        await self._stream.write(message)

    # Status and metadata

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._check()
        if self._stream.has_head:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        self._stream.send_head(tuple(metadata.encode(initial_metadata)))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(metadata.encode(trailing_metadata))

    def trailing_metadata(self) -> metadata.Metadata:
        return metadata.decode(self._trailing)

    def set_code(self, code: Any) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def code(self) -> Any:
        return 0 if self._code is None else self._code

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: Any) -> None:
        """Answers are never compressed; a client cannot insist on it."""

    def disable_next_message_compression(self) -> None:
        """They are not compressed."""

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Raises AbortError, which must reach the caller; the status is sent at once."""
        if self._is_aborted:
            raise grpc.aio.UsageError("Abort already called!")
        self._is_aborted = True
        self._code = code
        self._details = details
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        if self.error() is None:
            self._code = grpc.StatusCode.UNKNOWN  # an abort is no success, whatever it says
        self._stream.finish(self.error(), self._trailing)
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    # For HandlerStream

    def error(self) -> KvError | None:
        """None while the handler has said nothing else than OK."""
        code = self._code
        if isinstance(code, grpc.StatusCode):
            code = code.value[0]
        if code is None or code == 0:
            return None
        known = code if isinstance(code, int) and code in Code.__members__.values() else Code.UNKNOWN
        return KvError(Code(known), self._details)

    def take_initial_metadata(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._initial

    def take_trailing_metadata(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._trailing

    def _check(self) -> None:
        if self._is_aborted:
            raise grpc.aio.AbortError("Locally aborted.")
        if self._stream.is_ended:
            raise grpc.aio.UsageError(_FINISHED)
