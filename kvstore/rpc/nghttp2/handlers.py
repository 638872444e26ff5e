"""Methods of generated code: coroutines and asynchronous generators, with a task for each call.

What a handler sees of a call is its ServicerContext (context.py); this is what stands behind it: the messages that
have come, the status that will be sent, and who waits for which of them.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, final

import grpc
import grpc.aio
import structlog

from kvstore.errors import Code, KvError
from kvstore.rpc.nghttp2 import engine, metadata
from kvstore.rpc.nghttp2.calls import CUT_MESSAGE, DEADLINE_EXCEEDED, NO_MESSAGE, SECOND_MESSAGE
from kvstore.rpc.nghttp2.context import ServicerContext
from kvstore.rpc.nghttp2.framing import Deframer, frame
from kvstore.rpc.nghttp2.serving import LINGER_SECONDS, NO_TIMEOUT, OK, RESPONSE, Method, Request, ServerStream

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.serving import ServerSession

log = structlog.get_logger(__name__)

EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
WRITE_AHEAD_BYTES: Final = 64 * 1024  # a write returns at once while less than this is queued on the stream


@final
class HandlerMethod(Method):
    def __init__(self, handler: Any, bytes_max: int, path: str) -> None:
        self.handler = handler
        self.bytes_max = bytes_max
        self.path = path
        self.is_stream = handler.request_streaming or handler.response_streaming
        self.behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    def open(self, session: "ServerSession", stream_id: int, request: Request) -> ServerStream:
        session.streams_begun += self.is_stream
        return HandlerStream(self, session, stream_id, request)


@final
class HandlerStream(ServerStream):
    """One call of a handler."""

    def __init__(self, method: HandlerMethod, session: "ServerSession", stream_id: int, head: Request) -> None:
        self.method = method
        self.head = head
        self.session = session
        self.is_gone = False  # the client, or the connection
        self.is_ended = False  # the status has been sent
        self.context = ServicerContext(self)
        self.callbacks: list[Any] = []  # of add_done_callback
        self._stream_id = stream_id
        self._deframer = Deframer(method.bytes_max, head.encoding)
        self._messages: deque[bytes] = deque()
        self._messages_bytes = 0
        self._half_closed = False
        self._has_head = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._grain = 0
        server = session.server
        server.calls_open += 1
        if head.deadline != NO_TIMEOUT:
            self._grain = server.deadlines.add(self, head.deadline)
        if method.handler.request_streaming:
            self._start()

    # ServerStream

    def data(self, data: bytes, is_last: bool) -> None:
        if self.is_ended:
            return
        self._half_closed = is_last
        try:
            messages = self._deframer.feed(data) if data else []
            if is_last and not self._deframer.is_between_messages:
                raise CUT_MESSAGE.fresh()
            self._take(messages)
        except KvError as error:
            self._fail(error)
            return
        if not self.method.handler.request_streaming and self._half_closed:
            if not self._messages:
                self._fail(NO_MESSAGE)
            elif self._task is None:
                self._start()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _take(self, messages: list[bytes]) -> None:
        self._messages.extend(messages)
        self._messages_bytes += sum(map(len, messages))
        if len(self._messages) > 1 and not self.method.handler.request_streaming:
            raise SECOND_MESSAGE.fresh()
        if self._messages_bytes > self.session.server.options.stream_unread_bytes_max:
            raise KvError(Code.RESOURCE_EXHAUSTED, "grpc: the handler does not keep up with what the client sends")

    def drained(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def closed(self) -> None:
        self.is_gone = True
        if not self.is_ended:
            self._leave()
        elif self._grain:
            self.session.server.deadlines.remove(self, self._grain)
            self._grain = 0
        if self._task is not None:
            self._task.cancel()

    def stop(self, error: KvError) -> None:
        self._fail(error)

    def expire(self) -> None:
        self._grain = 0
        if not self.is_ended:
            self._fail(DEADLINE_EXCEEDED)
        elif not self.is_gone:  # it has not read the end
            engine.reset(self.session.connection, self._stream_id, engine.ErrorCode.CANCEL)
            self.session.touch()

    def _fail(self, error: KvError) -> None:
        """End it from outside of the handler."""
        self.finish(error, ())
        if self._task is not None:
            self._task.cancel()

    # For the context

    async def read(self) -> Any:
        """The next message, deserialised; EOF behind the last."""
        while not self._messages:
            if self._half_closed or self.is_gone:
                return EOF
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._messages_bytes -= len(message)
        return self._parsed(message)

    async def write(self, message: Any) -> None:
        serializer = self.method.handler.response_serializer
        self.send(message if serializer is None else serializer(message))
        session = self.session
        while not self.is_gone and session.connection.queued_body_size(self._stream_id) > WRITE_AHEAD_BYTES:
            self._writer = session.server.loop.create_future()
            session.watch_queue(self._stream_id, self)
            await self._writer

    def send(self, message: bytes) -> None:
        self.send_head(())
        session = self.session
        engine.data(session.connection, self._stream_id, frame(message))
        session.has_sent_frames = True
        session.touch()

    def send_head(self, initial: tuple[tuple[bytes, bytes], ...]) -> None:
        if not self._has_head:
            self._has_head = True
            initial = initial or self.context.take_initial_metadata()
            engine.response_head(self.session.connection, self._stream_id, (*RESPONSE, *initial))
            self.session.touch()

    @property
    def has_head(self) -> bool:
        return self._has_head

    def finish(self, error: KvError | None, trailing: tuple[tuple[bytes, bytes], ...]) -> None:
        """Send the status; only the first counts."""
        if self.is_ended:
            return
        self.is_ended = True
        self._leave()
        if self.is_gone:
            return
        session, stream_id = self.session, self._stream_id
        status = (*(OK if error is None else metadata.status_headers(error)), *trailing)
        if self._has_head:
            engine.trailers(session.connection, stream_id, status)
        else:
            initial = self.context.take_initial_metadata()
            engine.headers_only(session.connection, stream_id, (*RESPONSE, *initial, *status))
        if not self._half_closed:
            session.linger(stream_id)
        server = session.server
        self._grain = server.deadlines.add(self, server.loop.time() + LINGER_SECONDS)
        session.has_sent_frames = True
        session.touch()

    def _leave(self) -> None:
        server = self.session.server
        server.calls_open -= 1
        if self._grain:
            server.deadlines.remove(self, self._grain)
            self._grain = 0
        self.is_ended = True
        self._messages.clear()
        for callback in self.callbacks:
            callback(self.context)

    # The task

    def _start(self) -> None:
        self._task = self.session.server.loop.create_task(self._run())

    async def _run(self) -> None:
        context = self.context
        try:
            await self._behave(context)
            self.finish(context.error(), context.take_trailing_metadata())
        except grpc.aio.AbortError:
            self.finish(context.error(), context.take_trailing_metadata())
        except asyncio.CancelledError:
            if not self.is_gone and not self.is_ended:
                self.finish(KvError(Code.CANCELLED, "the call was cancelled by its handler"), ())
            raise
        except KvError as error:
            self.finish(error, context.take_trailing_metadata())
        except Exception as error:  # top of the handler
            if self.is_ended:
                return
            log.exception("handler failed", method=self.method.path)
            chosen = context.error()
            code = Code.UNKNOWN if chosen is None else chosen.code
            self.finish(KvError(code, f"Unexpected {type(error)}: {error}"), context.take_trailing_metadata())

    async def _behave(self, context: ServicerContext) -> None:
        handler, behaviour = self.method.handler, self.method.behaviour
        request: Any = self._requests() if handler.request_streaming else await self.read()
        answer = behaviour(request, context)
        if handler.response_streaming:
            if inspect.isasyncgen(answer) or isinstance(answer, AsyncIterator):
                await self._send_all(answer)
            else:  # it writes by context.write
                await answer
            if context.error() is None:
                self.send_head(())
            return
        if inspect.isawaitable(answer):
            answer = await answer
        if context.error() is None:
            serializer = handler.response_serializer
            self.send(answer if serializer is None else serializer(answer))

    async def _send_all(self, answers: Any) -> None:
        if not hasattr(answers, "aclose"):
            async for answer in answers:
                await self.context.write(answer)
            return
        async with aclosing(answers):
            async for answer in answers:
                await self.context.write(answer)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message

    def _parsed(self, message: bytes) -> Any:
        deserializer = self.method.handler.request_deserializer
        return message if deserializer is None else deserializer(message)
