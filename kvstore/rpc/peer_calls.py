"""Unary calls between members, over a server and channels with grpc.aio's surface.

Bytes in, bytes out. A KvError that the other side raises arrives as it is, marked in the trailing metadata:
without the mark a status is grpc's own word on the connection, and says nothing about what was done there.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import MALFORMED, TIMEOUT, TIMEOUT_CONNECTION_LOST, Code, KvError
from kvstore.rpc.base import UNEXPECTED

log = structlog.get_logger(__name__)

Metadata: TypeAlias = Mapping[str, str | bytes]
Answer: TypeAlias = Callable[[str, bytes, Metadata], Awaitable[bytes]]  # method, request, who asks; raises KvError

KV_ERROR: Final = "kvstore-error"
STATUS: Final = {Code(status.value[0]): status for status in grpc.StatusCode}


def serve(server: Any, service: str, methods: tuple[str, ...], answer: Answer) -> None:
    """Register the service on a server that has not started."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(_Method(name, answer).serve) for name in methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


@final
class _Method:
    """One method, as grpc calls it."""

    def __init__(self, name: str, answer: Answer) -> None:
        self._name = name
        self._answer = answer

    async def serve(self, request: bytes, context: Any) -> bytes:
        try:
            return await self._answer(self._name, request, dict(context.invocation_metadata() or ()))
        except KvError as raised:
            error = raised
        except DecodeError:
            error = MALFORMED
        except Exception:  # top of the handler
            log.exception("call of a member failed", method=self._name)
            error = UNEXPECTED
        context.set_trailing_metadata(((KV_ERROR, "1"),))
        await context.abort(STATUS[error.code], error.message)
        raise AssertionError("abort returned")


async def call(channel: Any, path: str, request: bytes, timeout: float, metadata: list[tuple[str, str]]) -> bytes:
    """Raises KvError; TIMEOUT or TIMEOUT_CONNECTION_LOST when no answer came: it may be done or not."""
    try:
        answer: bytes = await channel.unary_unary(path, None, None)(request, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from None
    return answer


def _translated(error: grpc.aio.AioRpcError) -> KvError:
    code, text = Code(error.code().value[0]), error.details() or ""
    metadata: Any = error.trailing_metadata() or ()
    if KV_ERROR in dict(metadata):
        return KvError(code, text)
    if code is Code.DEADLINE_EXCEEDED:
        return TIMEOUT
    if code in {Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL}:
        return TIMEOUT_CONNECTION_LOST
    return KvError(code, f"etcdserver: {text}") if text else UNEXPECTED
