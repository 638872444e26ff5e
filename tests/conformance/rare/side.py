"""One side of a comparison of members that fail: etcd or ours, what was asked of it, what it said."""

import asyncio
import contextlib
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.servers import JUDGES
from tests.conformance.differential.sides import text
from tests.conformance.etcd import EtcdCluster
from tests.conformance.rpcs import RPCS
from tests.conformance.test_transcripts import OurCluster
from tests.e2e.cluster import wait_for
from tests.kvstore.rpc.raw import Client
from tests.ports import free_ports

CALL_SECONDS = 20.0  # above the seven after which a server gives up
NO_LEADER = "etcdserver: no leader"
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Line:
    """What is compared."""

    call: str
    message: Message
    answer: str


class Side:
    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.is_ours = isinstance(cluster, OurCluster)
        self.client_urls: list[str] = list(cluster.client_urls)
        self.peer_urls: list[str] = list(cluster.peer_urls)
        self._channels = [self.channel(url) for url in self.client_urls]
        self.alive: set[int] = set()
        self.lines: list[Line] = []

    # Calls

    def channel(self, url: str) -> grpc.Channel:
        return grpc.insecure_channel(url.removeprefix("http://"), OPTIONS)

    def ask(
        self, member: int, call: str, message: Message, metadata: Metadata = (), seconds: float = CALL_SECONDS
    ) -> Any:
        """Raises grpc.RpcError."""
        rpc = RPCS[call]
        request: Any = iter([message]) if rpc.client_streams else message
        answer = rpc.on(self._channels[member])(request, timeout=seconds, metadata=metadata)
        return next(answer) if rpc.server_streams else answer

    def text(
        self, member: int, call: str, message: Message, metadata: Metadata = (), seconds: float = CALL_SECONDS
    ) -> str:
        try:
            return text(self.ask(member, call, message, metadata, seconds))
        except grpc.RpcError as error:
            return text(error)

    def say(self, member: int, call: str, message: Message, metadata: Metadata = ()) -> None:
        self.note(call, message, self.text(member, call, message, metadata))

    def say_all(self, member: int, calls: list[tuple[str, Message, Metadata]]) -> None:
        """At once: each may take as long as a server waits."""
        with ThreadPoolExecutor(len(calls)) as threads:
            answers = list(threads.map(lambda one: self.text(member, *one), calls))
        for (call, message, _), answer in zip(calls, answers, strict=True):
            self.note(call, message, answer)

    def note(self, call: str, message: Message, answer: str) -> None:
        self.lines.append(Line(call, message, answer))

    def raw(self, member: int, call: str, message: Message, *headers: tuple[bytes, bytes]) -> str:
        """By hand, for what grpcio does not send or answers by itself. "closed": the connection has ended instead."""
        return asyncio.run(self._raw(member, call, message, headers))

    async def _raw(self, member: int, call: str, message: Message, headers: tuple[tuple[bytes, bytes], ...]) -> str:
        request = [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":path", RPCS[call].path.encode())),
            *((b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
        ]
        async with await Client.open(port_of(self.client_urls[member])) as client:
            stream = client.ask(message.SerializeToString(), [*request, *headers])
            await client.until(lambda: client.has_ended(stream))
            head = client.head(stream)
        if b"grpc-status" not in head:
            return "closed"
        code = next(code for code in grpc.StatusCode if code.value[0] == int(head[b"grpc-status"]))
        return f"{code.name}: {head.get(b'grpc-message', b'').decode()}"

    # Members

    def leader(self) -> int:
        def found() -> int | None:
            for member in self.alive:
                with contextlib.suppress(grpc.RpcError):
                    status = self.ask(member, "Status", pb.StatusRequest())
                    if status.leader == status.header.member_id:
                        return member + 1
            return None

        return wait_for(found, "a leader") - 1

    def has_no_leader(self, member: int) -> Callable[[], bool]:
        return lambda: NO_LEADER in self.ask(member, "Status", pb.StatusRequest()).errors

    def refuses(self, member: int, call: str, message: Message, reason: str) -> Callable[[], bool]:
        return lambda: self.text(member, call, message).endswith(reason)

    def id_of(self, member: int) -> int:
        return int(self.ask(member, "Status", pb.StatusRequest()).header.member_id)

    def others(self, member: int) -> list[int]:
        return sorted(self.alive - {member})

    def kill(self, member: int) -> None:
        self.alive.discard(member)
        (self._cluster.cluster.members[member].kill if self.is_ours else lambda: self._cluster.kill(member))()

    def start(self, *members: int) -> None:
        """Returns at once."""
        for member in members:
            self.alive.add(member)
            if self.is_ours:
                self._cluster.cluster.members[member].start()
            else:
                self._cluster.start_member(member)

    def wait_serves(self, member: int) -> None:
        get = pb.RangeRequest(key=b"a")
        wait_for(lambda: self.text(member, "Range", get).startswith("RangeResponse"), "a member serves")

    def wait_listens(self, url: str) -> None:
        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_of(url))):
                return True
            return False

        wait_for(listens, f"somebody listens at {url}")

    def metric(self, member: int, name: str, label: str = "") -> float:
        """The sum of its samples."""
        with urllib.request.urlopen(f"{self.client_urls[member]}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and label in line)

    def waits(self, member: int, call: str) -> bool:
        """Whether such a unary call has come and is not answered."""
        begun, ended = (
            self.metric(member, f"grpc_server_{name}_total", f'grpc_method="{call}"') for name in ("started", "handled")
        )
        return begun > ended

    def is_traced(self, member: int) -> bool:
        tasks = Path(f"/proc/{self.pid(member)}/task").glob("*/status")
        return not any("TracerPid:\t0\n" in task.read_text() for task in tasks)

    def signal(self, member: int, number: signal.Signals) -> None:
        os.kill(self.pid(member), number)

    @contextlib.contextmanager
    def paused(self, *members: int) -> Iterator[None]:
        for member in members:
            self.signal(member, signal.SIGSTOP)
        try:
            yield
        finally:
            for member in members:
                self.signal(member, signal.SIGCONT)

    def pid(self, member: int) -> int:
        return int(self._cluster.cluster.members[member].pid if self.is_ours else self._cluster.pid(member))

    def join(self) -> int:
        """Add a learner and start it. Returns its number."""
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        request = pb.MemberAddRequest(peerURLs=[peer], isLearner=True)
        leader = self.leader()
        # Members must have been connected for some seconds.
        wait_for(lambda: self.text(leader, "MemberAdd", request).startswith("MemberAddResponse"), "a learner is added")
        self._cluster.join("m4", client, peer)
        self._channels.append(self.channel(client))
        self.client_urls.append(client)
        self.alive.add(3)
        wait_for(
            lambda: self.text(3, "Range", pb.RangeRequest(key=b"a", serializable=True)).startswith("RangeResponse"),
            "the learner serves",
        )
        return 3

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def kind(answer: str) -> str:
    """Of a response only which it is, where what is in it depends on the moment."""
    name, brace, _ = answer.partition(" {\n")
    return f"{name}{brace}}}" if brace else answer


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextlib.contextmanager
def etcd_side(folder: Path, judge: str, size: int, flags: Sequence[str]) -> Iterator[Side]:
    cluster = EtcdCluster(folder, size=size, program=JUDGES[judge], flags=flags)
    side = Side(cluster)
    try:
        yield side
    finally:
        side.close()
        cluster.stop()


@contextlib.contextmanager
def our_side(folder: Path, size: int, flags: Sequence[str]) -> Iterator[Side]:
    cluster = OurCluster(folder, size=size, flags=flags)
    side = Side(cluster)
    try:
        yield side
    finally:
        side.close()
        cluster.cluster.stop()
