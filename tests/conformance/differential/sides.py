"""The two sides of a comparison: one connection each, and answers in a form that can be compared.

An answer is text: the response in protobuf's text form, or the code and message of the error. Names of a cluster,
a member and a term differ between two clusters of one kind too; so only whether they are there is kept.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from kvstore.pb import kv_pb2 as pb_kv
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc

CALL_SECONDS = 20.0
HERE = 1  # stands for an id or a term


class Side:
    """One server. `name` stands in reports."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=options)
        kv = rpc_pb2_grpc.KVStub(self._channel)
        cluster = rpc_pb2_grpc.ClusterStub(self._channel)
        maintenance = rpc_pb2_grpc.MaintenanceStub(self._channel)
        self._calls: dict[str, Any] = {
            **{name: getattr(kv, name) for name in ("Range", "Put", "DeleteRange", "Txn", "Compact")},
            **{name: getattr(maintenance, name) for name in ("Status", "Alarm", "HashKV")},
            "MemberList": cluster.MemberList,
        }
        self._watch = rpc_pb2_grpc.WatchStub(self._channel).Watch

    def start(self, call: str, message: Message) -> Callable[[], Message | grpc.RpcError]:
        """Send now; the result waits for the answer."""
        future = self._calls[call].future(message, timeout=CALL_SECONDS)

        def result() -> Message | grpc.RpcError:
            try:
                response: Message = future.result()
            except grpc.RpcError as error:
                return error
            return response

        return result

    def ask(self, call: str, message: Message) -> Any:
        """The response; raises grpc.RpcError."""
        return self._calls[call](message, timeout=CALL_SECONDS)

    def revision(self) -> int:
        """Linearizable, so that a follower is asked for the newest one."""
        return int(self.ask("Range", pb.RangeRequest(key=b"\0", count_only=True)).header.revision)

    def open_watch(self, changed: threading.Condition) -> "WatchSide":
        return WatchSide(self._watch, changed)

    def close(self) -> None:
        self._channel.close()


class WatchSide:
    """A watch stream. `replies` are answers to requests, in order; `events` of each watch, fragments joined.

    `changed` guards them, and is told when something has come.
    """

    def __init__(self, watch: Callable[..., Any], changed: threading.Condition) -> None:
        self.events: dict[int, list[pb_kv.Event]] = defaultdict(list)
        self.replies: list[Message | grpc.RpcError] = []
        self.faults: list[str] = []  # what no server may do, whatever the other does
        self._changed = changed
        self._requests: SimpleQueue[pb.WatchRequest | None] = SimpleQueue()
        self._last: dict[int, int] = {}  # watch id -> mod revision of its last event
        self._open: set[int] = set()  # watch ids within a fragmented response
        self._call = watch(iter(self._requests.get, None))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, request: pb.WatchRequest) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(CALL_SECONDS)

    def _read(self) -> None:
        try:
            for response in self._call:
                with self._changed:
                    self._take(response)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                with self._changed:
                    self.replies.append(error)
                    self._changed.notify_all()

    def _take(self, response: pb.WatchResponse) -> None:
        if not response.events:
            self.replies.append(response)
            return
        watch_id, last = response.watch_id, self._last.get(response.watch_id, 0)
        if response.created or response.canceled or response.compact_revision:
            self.faults.append(f"events in a reply: {text(response)}")
        for event in response.events:
            self.events[watch_id].append(event)
            again = event.kv.mod_revision == last and watch_id not in self._open and event is response.events[0]
            if event.kv.mod_revision < last or again:
                self.faults.append(f"watch {watch_id}: revision {event.kv.mod_revision} after {last}")
            last = event.kv.mod_revision
        self._last[watch_id] = last
        (self._open.add if response.fragment else self._open.discard)(watch_id)
        if not response.fragment and response.header.revision < last:
            self.faults.append(f"watch {watch_id}: header at {response.header.revision}, events up to {last}")


def text(answer: Message | grpc.RpcError) -> str:
    """What is compared."""
    if isinstance(answer, grpc.RpcError):
        return f"{answer.code().name}: {answer.details()}"
    known = type(answer)()
    known.CopyFrom(answer)
    for header in _headers(known):
        header.cluster_id = HERE if header.cluster_id else 0
        header.member_id = HERE if header.member_id else 0
        header.raft_term = HERE if header.raft_term else 0
    known.DiscardUnknownFields()
    written: str = MessageToString(known)
    if len(written) > 4000:
        written = f"{written[:2000]}... {len(written)} characters, hash {hash(written)}"
    return f"{type(answer).__name__} {{\n{written}}}"


def _headers(message: Message) -> Iterator[pb.ResponseHeader]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                if isinstance(child, pb.ResponseHeader):
                    yield child
                else:
                    yield from _headers(child)
