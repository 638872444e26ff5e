"""The two sides of a comparison: their connections, and answers in a form that can be compared.

An answer is text: the response in protobuf's text form, or the code and message of the error. Names of a cluster,
a member and a term differ between two clusters of one kind too; so only whether they are there is kept.
"""

import contextlib
import hashlib
import json
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import Event, KeyValue
from tests.conformance.differential.auth_requests import ROOT_PASSWORDS
from tests.conformance.differential.cases import Names, Step
from tests.conformance.rpcs import RPCS
from tests.e2e.cluster import wait_for

CALL_SECONDS = 20.0  # far above what anything here takes
CLIENTS = 3
HERE = 1  # stands for an id or a term
Answer = Message | grpc.RpcError
Metadata = tuple[tuple[str, str], ...]
# Changes of members that come at once after another: etcd answers that one a moment before its raft would take the
# next, drops the next, and never answers it.
LOST = {"MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote"}
LOST_SECONDS = 3.0
LOST_TIMES_MAX = 6
# etcd 3.5 carries these actions of a downgrade out and does not answer (known.py).
UNANSWERED = (pb.DowngradeRequest.ENABLE, pb.DowngradeRequest.CANCEL)
UNANSWERED_SECONDS = 3.0
NEEDS_ROOT = (
    "etcdserver: user name is empty",
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "auth: revision in header is old",
)
DOWNGRADE_IN_PROGRESS = "etcdserver: cluster has a downgrade job in progress"
ENDLESS = {"Observe"}  # its first message is the answer; then it is cancelled


class Side:
    """One server, asked by a few connections. `name` stands in reports; the URLs are what the server says of itself."""

    def __init__(self, name: str, target: str, client_url: str, peer_url: str, *, is_judge: bool) -> None:
        self.name = name
        self._is_judge = is_judge
        self.admin: Metadata = ()  # goes with what the runner asks for itself
        self._urls = (peer_url, client_url)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [grpc.insecure_channel(target, options=options) for _ in range(CLIENTS)]
        self._calls = [{name: rpc.on(channel) for name, rpc in RPCS.items()} for channel in self._channels]
        self._threads = ThreadPoolExecutor(16)
        wait_for(lambda: self.cluster_minor() == self._version("etcdserver"), f"{name} knows its cluster's version")
        self._minor = self.cluster_minor()
        self._member_id = self.ask("Status", pb.StatusRequest()).header.member_id

    def names(self, base: int) -> Names:
        names = Names(base, self._member_id, *self._urls)
        with contextlib.suppress(grpc.RpcError):  # etcd 3.4 has no such call
            names.auth_base = self.ask("AuthStatus", pb.AuthStatusRequest()).authRevision
        return names

    def start(self, step: Step, names: Names) -> "Future[Answer]":
        """Send now; the future never raises."""
        name = "Range" if step.call == "RangeStream" and self._is_judge else step.call  # etcd has it since 3.7
        call = self._calls[step.client][name]
        answer = _answer_again if self._is_judge and name in LOST else _answer
        if isinstance(step.message, pb.DowngradeRequest):
            names.minor = self.cluster_minor()
            if self._is_judge and step.message.action in UNANSWERED:
                answer = _answer_briefly
        return self._threads.submit(answer, call, name, names.sent(step.message), names.metadata(step))

    def ask(self, call: str, message: Message, seconds: float = CALL_SECONDS) -> Any:
        """What the runner asks for itself, as root when auth is on. The response; raises grpc.RpcError."""
        try:
            return self._ask(call, message, self.admin, seconds)
        except grpc.RpcError as error:
            if error.details() not in NEEDS_ROOT:
                raise
        self.sign_in()
        return self._ask(call, message, self.admin, seconds)

    def _ask(self, call: str, message: Message, metadata: Metadata = (), seconds: float = CALL_SECONDS) -> Any:
        return self._calls[0][call](message, timeout=seconds, metadata=metadata)

    def revision(self) -> int:
        """Linearizable, so that a follower is asked for the newest one."""
        return int(self.ask("Range", pb.RangeRequest(key=b"\0", count_only=True)).header.revision)

    def pairs(self, prefix: bytes) -> list[KeyValue]:
        """All keys that begin so."""
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        return list(self.ask("Range", pb.RangeRequest(key=prefix, range_end=end)).kvs)

    def cluster_minor(self) -> int:
        """Of the version that the whole cluster has."""
        return self._version("etcdcluster")

    def _version(self, of: str) -> int:
        with urllib.request.urlopen(f"{self._urls[1]}/version", timeout=CALL_SECONDS) as answer:
            version: str = json.load(answer)[of]
        return int(version.split(".")[1]) if "." in version else 0

    def is_downgrading(self) -> bool:
        """Whether a downgrade is under way; of ours, until its version has followed too."""
        minor = self.cluster_minor()
        try:
            self.ask("Downgrade", pb.DowngradeRequest(version=f"3.{minor - 1}"))
        except grpc.RpcError as error:
            return error.details() == DOWNGRADE_IN_PROGRESS and (self._is_judge or minor != self._minor)
        return minor != self._minor

    def sign_in(self) -> None:
        """Become root for what the runner asks for itself, when auth is on. etcd 3.4 has no AuthStatus to ask."""
        self.admin = ()
        try:
            self._ask("UserList", pb.AuthUserListRequest())
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                return
            self.admin = self._root()

    def _root(self) -> Metadata:
        for password in (*ROOT_PASSWORDS, ""):  # a shrunk case may have none
            with contextlib.suppress(grpc.RpcError):
                root = pb.AuthenticateRequest(name="root", password=password)
                return (("token", self._ask("Authenticate", root).token),)
        raise AssertionError(f"{self.name} has auth on, and nobody can turn it off")

    def open_watch(
        self, changed: threading.Condition, names: Names, client: int = 0, metadata: Metadata = ()
    ) -> "WatchSide":
        return WatchSide(self._calls[client]["Watch"], changed, names, metadata)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_late(answer: str) -> bool:
    """The caller's time is over; etcd may be the first to say so."""
    return answer.startswith(("DEADLINE_EXCEEDED: ", "UNAVAILABLE: etcdserver: request timed out"))


def _answer_again(call: Any, name: str, message: Message, metadata: Metadata) -> Answer:
    """A change that etcd has lost did nothing, so it is asked for again."""
    for _ in range(LOST_TIMES_MAX):
        answer = _answer(call, name, message, metadata, LOST_SECONDS)
        if not isinstance(answer, grpc.RpcError) or not is_late(text(answer)):
            return answer
    return answer


def _answer_briefly(call: Any, name: str, message: Message, metadata: Metadata) -> Answer:
    return _answer(call, name, message, metadata, UNANSWERED_SECONDS)


def _answer(call: Any, name: str, message: Message, metadata: Metadata, seconds: float = CALL_SECONDS) -> Answer:
    streams = RPCS[name].client_streams
    try:
        if not RPCS[name].server_streams:
            response: Message = call(message, metadata=metadata, timeout=seconds)
            return response
        replies = call(iter([message]) if streams else message, metadata=metadata, timeout=seconds)
        if name in ENDLESS:
            first: Message = next(replies, RPCS[name].response())  # empty: it has ended without a word
            replies.cancel()
            return first
        return _joined(name, list(replies))
    except grpc.RpcError as error:
        return error


def _joined(name: str, replies: list[Any]) -> Message:
    """One message for a stream of them."""
    if name == "Snapshot":
        *blobs, last = replies
        digest = hashlib.sha256(b"".join(part.blob for part in blobs)).digest()
        size = sum(len(part.blob) for part in blobs)
        falls = [part.remaining_bytes for part in replies]
        good = digest == last.blob and size % 512 == 0 and falls == sorted(falls, reverse=True)
        return pb.SnapshotResponse(remaining_bytes=last.remaining_bytes, blob=b"whole" if good else b"broken")
    if name == "RangeStream":
        whole = pb.RangeResponse()
        for part in replies:
            whole.MergeFrom(part.range_response)
        return whole
    assert len(replies) == 1, f"{len(replies)} answers to one request of {name}"
    reply: Message = replies[0]
    return reply


class WatchSide:
    """A watch stream. `replies` are answers to requests, in order; `events` of each watch, fragments joined.

    `changed` guards them, and is told when something has come.
    """

    def __init__(
        self, watch: Callable[..., Any], changed: threading.Condition, names: Names, metadata: Metadata
    ) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.replies: list[Answer] = []
        self.faults: list[str] = []  # what no server may do, whatever the other does
        self._changed = changed
        self._names = names
        self._requests: SimpleQueue[Message | None] = SimpleQueue()
        self._last: dict[int, int] = {}  # watch id -> mod revision of its last event
        self._open: set[int] = set()  # watch ids within a fragmented response
        self._call = watch(iter(self._requests.get, None), metadata=metadata)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, request: pb.WatchRequest) -> None:
        self._requests.put(self._names.sent(request))

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

    def _take(self, response: Any) -> None:
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


def text(answer: Answer) -> str:
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
            for child in value if field.is_repeated else [value]:
                if isinstance(child, pb.ResponseHeader):
                    yield child
                else:
                    yield from _headers(child)
