"""Watches: any number of them on one stream per client, each resumed where it was when the stream breaks.

WatchHub owns the stream. When it breaks, the hub opens one on the next endpoint and creates every watch again
from `next_revision`, the revision after the last one delivered whole; so nothing is lost and nothing comes
twice, whichever member answers. `created` answers come in the order of the creates, which is how they are told
apart (an answer to a failed create carries no usable id).

A consumer that does not read must not cost memory without a bound, and must not stall the other watches of the
stream. Its watch is cancelled on the server when its buffer is full, and created again, from where the buffer
ends, once it has read half of it. A revision that was compacted meanwhile is Compacted, as for any late reader.

The stream asks for a member with a leader ("hasleader"): one that is cut off from the others ends it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self

import grpc.aio

from kvstore.client.credentials import LOG_IN_AGAIN
from kvstore.client.endpoints import Endpoint, EndpointPool, to_client_error
from kvstore.client.errors import ClientError, Compacted, Unavailable, WatchCanceled
from kvstore.client.types import Bytes, Event, Header, WatchResponse, key_range
from kvstore.errors import Code, KvError
from kvstore.pb import kv_pb2, rpc_pb2

BUFFERED_EVENTS_MAX: Final = 4096  # of one watch; the last response may go over it
EVERY_WATCH: Final = -1  # the id of a progress report for all watches of a stream


def watch_request(
    key: Bytes,
    range_end: Bytes | None = None,
    *,
    prefix: bool = False,
    from_key: bool = False,
    start_revision: int = 0,
    prev_kv: bool = False,
    progress_notify: bool = False,
    only: Literal["PUT", "DELETE"] | None = None,
) -> rpc_pb2.WatchCreateRequest:
    first, end = key_range(key, range_end, prefix, from_key)
    unwanted = {"PUT": rpc_pb2.WatchCreateRequest.NODELETE, "DELETE": rpc_pb2.WatchCreateRequest.NOPUT}
    return rpc_pb2.WatchCreateRequest(
        key=first,
        range_end=end,
        start_revision=start_revision,
        prev_kv=prev_kv,
        # Also without it reported to the user, progress keeps the revision to resume from young.
        progress_notify=progress_notify,
        filters=[unwanted[only]] if only else [],
        fragment=True,  # a revision larger than a message limit comes in pieces
    )


class Watch:
    """An asynchronous iterator of WatchResponse, for one consumer. Made by Client.watch.

    Ends when it is closed; raises Compacted, WatchCanceled or another ClientError when the server ended it.
    """

    def __init__(self, hub: "WatchHub", request: rpc_pb2.WatchCreateRequest, timeout: float) -> None:
        self._hub = hub
        self._request = request
        self._timeout = timeout
        self._created = asyncio.Event()
        self._arrived = asyncio.Event()
        self._buffer: deque[WatchResponse] = deque()
        self._fragments: list[kv_pb2.Event] = []
        self._buffered = 0  # events, and 1 for each response without
        self._paused = False
        self._closed = False
        self._error: ClientError | None = None
        self.next_revision = request.start_revision  # all before it is delivered; 0 until the server has said it

    async def __aenter__(self) -> Self:
        self._hub.add(self)
        try:
            async with asyncio.timeout(self._timeout):
                await self._created.wait()
        except TimeoutError:
            reason = self._hub.last_failure
            self.close()
            raise Unavailable(
                f"no member took the watch within {self._timeout:.1f} s" + (f": {reason}" if reason else "")
            ) from None
        except asyncio.CancelledError:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it on the server; what is buffered can still be read."""
        if not self._closed:
            self._closed = True
            self._hub.remove(self)
            self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchResponse:
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        response = self._buffer.popleft()
        self._buffered -= max(1, len(response.events))
        if self._paused and self._buffered <= BUFFERED_EVENTS_MAX // 2 and not self._closed:
            self._paused = False
            self._hub.resume(self)
        return response

    async def events(self) -> AsyncIterator[Event]:
        """The events one by one."""
        async for response in self:
            for event in response.events:
                yield event

    # ---- called by the hub ----

    def creation(self) -> rpc_pb2.WatchRequest:
        self._fragments.clear()
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(self._request)
        request.start_revision = self.next_revision
        return rpc_pb2.WatchRequest(create_request=request)

    def created(self, header: rpc_pb2.ResponseHeader) -> None:
        if self.next_revision == 0:
            self.next_revision = header.revision + 1
        self._created.set()

    def failed(self, error: ClientError) -> None:
        self._error = error
        self._created.set()
        self._arrived.set()

    def received(self, message: rpc_pb2.WatchResponse) -> bool:
        """Take a response. False when the buffer is full now: no more may come."""
        self._fragments.extend(message.events)
        if message.fragment:
            return True
        events = tuple(Event.of(event) for event in self._fragments if event.kv.mod_revision >= self.next_revision)
        self._fragments.clear()
        if events:
            self.next_revision = events[-1].kv.mod_revision + 1
        elif not message.events:
            self.next_revision = max(self.next_revision, message.header.revision + 1)
        if events or (not message.events and self._request.progress_notify):
            self._buffer.append(WatchResponse(Header.of(message.header), events))
            self._buffered += max(1, len(events))
            self._arrived.set()
        self._paused = self._buffered >= BUFFERED_EVENTS_MAX
        return not self._paused

    @property
    def paused(self) -> bool:
        return self._paused


class _Stream:
    """What belongs to one stream: it dies with it."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[rpc_pb2.WatchRequest] = asyncio.Queue()
        self.creating: deque[Watch] = deque()  # in the order of their creates
        self.by_id: dict[int, Watch] = {}

    def create(self, watch: Watch) -> None:
        self.creating.append(watch)
        self.outbox.put_nowait(watch.creation())

    def cancel(self, watch_id: int) -> None:
        self.by_id.pop(watch_id, None)
        self.outbox.put_nowait(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id)))

    def forget(self, watch: Watch) -> None:
        for watch_id in [i for i, w in self.by_id.items() if w is watch]:
            self.cancel(watch_id)

    async def requests(self) -> AsyncIterator[rpc_pb2.WatchRequest]:
        while True:
            yield await self.outbox.get()


class WatchHub:
    def __init__(self, pool: EndpointPool, dial_timeout: float) -> None:
        self._pool = pool
        self._dial_timeout = dial_timeout
        self._watches: list[Watch] = []
        self._stream: _Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self.last_failure: ClientError | None = None

    def add(self, watch: Watch) -> None:
        self._watches.append(watch)
        if self._stream is not None:
            self._stream.create(watch)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="watch stream")
            self._task.add_done_callback(self._ended)

    def resume(self, watch: Watch) -> None:
        if self._stream is not None:
            self._stream.create(watch)

    def remove(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
        if self._stream is not None:
            self._stream.forget(watch)
        if not self._watches and self._task is not None:
            self._task.cancel()
            self._task = self._stream = None

    async def close(self) -> None:
        task = self._task
        for watch in list(self._watches):
            watch.close()
        if task is not None:
            with suppress(asyncio.CancelledError):
                await task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail_all(ClientError(f"watch stream: {error}"))

    async def _run(self) -> None:
        while True:
            endpoint = self._pool.pick()
            try:
                await endpoint.connect(self._dial_timeout)
                await self._follow(endpoint)
                raise Unavailable(f"{endpoint.url} ended the watch stream")
            except Unavailable as error:
                self.last_failure = error
                self._pool.failed(endpoint)
            except ClientError as error:
                if not endpoint.wants_login(error):
                    self._fail_all(error)
                    return
                self._pool.failed(endpoint)
            await asyncio.sleep(self._pool.wait_seconds())

    async def _follow(self, endpoint: Endpoint) -> None:
        """Serve the watches over one stream until it ends."""
        stream = self._stream = _Stream()
        for watch in self._watches:
            if not watch.paused:
                stream.create(watch)
        call = endpoint.watch.Watch(stream.requests(), metadata=(("hasleader", "true"),))
        try:
            async for message in call:
                self._pool.succeeded(endpoint)
                self._received(stream, message)
        except grpc.aio.AioRpcError as failure:
            raise to_client_error(failure, endpoint, mutation=False) from None
        finally:
            call.cancel()
            if self._stream is stream:
                self._stream = None

    def _received(self, stream: _Stream, message: rpc_pb2.WatchResponse) -> None:
        if message.created and stream.creating:
            self._created(stream, stream.creating.popleft(), message)
        elif message.watch_id == EVERY_WATCH:
            for watch_id, watch in list(stream.by_id.items()):
                if not watch.received(message):
                    stream.cancel(watch_id)
        elif (addressee := stream.by_id.get(message.watch_id)) is not None:
            if message.canceled:
                del stream.by_id[message.watch_id]
                self._fail(addressee, _cancellation(message))
            elif not addressee.received(message):
                stream.cancel(message.watch_id)

    def _created(self, stream: _Stream, watch: Watch, message: rpc_pb2.WatchResponse) -> None:
        if message.canceled:
            error = _refusal(message.cancel_reason)
            if error in LOG_IN_AGAIN and self._pool.credentials is not None:
                # On a new stream, with a new token; the other watches go on there too.
                raise ClientError(error.message, error.code)
            self._fail(watch, _cancellation(message))
        elif watch in self._watches:
            stream.by_id[message.watch_id] = watch
            watch.created(message.header)
        else:
            stream.cancel(message.watch_id)

    def _fail(self, watch: Watch, error: ClientError) -> None:
        watch.failed(error)
        if watch in self._watches:
            self._watches.remove(watch)

    def _fail_all(self, error: ClientError) -> None:
        for watch in list(self._watches):
            self._fail(watch, error)
        self._task = None


def _refusal(reason: str) -> KvError:
    """What a watch is refused with is a gRPC error in Go's writing."""
    head, _, text = reason.partition(" desc = ")
    name = head.removeprefix("rpc error: code = ")
    return KvError(next((code for code in Code if code.go_name == name), Code.UNKNOWN), text)


def _cancellation(message: rpc_pb2.WatchResponse) -> ClientError:
    if message.compact_revision:
        return Compacted(
            message.cancel_reason or "etcdserver: mvcc: required revision has been compacted",
            compact_revision=message.compact_revision,
        )
    return WatchCanceled(message.cancel_reason or "the server cancelled the watch")
