"""Links that are slow, narrow, out of order or send twice: the kernel hands packets over (NFQUEUE), here they wait.

    links = Links(network, {("m1", "m2"): Link(delay=0.05)}, random.Random(1))
    links.open()                                # what m1 sends to m2 arrives 50 ms later
    links.close()                               # what still waits is let through

One thread for all links of a network. Unlike tc netem it needs no module of the kernel that is often missing, and
unlike a proxy no other addresses. The messages are those of linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.jepsen.network import Network, Pair, run

NETLINK_NETFILTER = 12
QUEUE = 21_018  # its number; each namespace has its own
SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
PACKET, VERDICT, CONFIG = SUBSYSTEM | 0, SUBSYSTEM | 1, SUBSYSTEM | 2
REQUEST, ACKNOWLEDGE = 1, 4
BIND, COPY_PACKET = 1, 2
CONFIG_COMMAND, CONFIG_PARAMETERS, CONFIG_LENGTH = 1, 2, 3
PACKET_HEADER, VERDICT_HEADER, PAYLOAD = 1, 2, 10
DROP, ACCEPT = 0, 1
PACKETS_MAX = 20_000  # that wait in one namespace; the kernel drops what is more
BYTES_MAX = 65_535
BACKLOG_SECONDS = 2.0  # of a link with a rate; what would wait longer is dropped, as a router does


@dataclass(frozen=True)
class Link:
    """One direction. The order stays unless `reorder`."""

    delay: float = 0.0  # seconds
    jitter: float = 0.0  # seconds that the delay may be longer or shorter
    reorder: bool = False
    duplicate: float = 0.0  # the part of packets that come twice
    rate: float = math.inf  # bytes a second


class _State:
    """What a link remembers."""

    def __init__(self) -> None:
        self.free = 0.0  # when everything so far is through, at its rate
        self.last = 0.0  # when the last packet is let through


class Links:
    def __init__(self, network: Network, links: dict[Pair, Link], rng: random.Random) -> None:
        self._network = network
        self._links = links
        self._rng = rng
        self._states = {pair: _State() for pair in links}
        self._name = {address: name for name, address in network.address.items()}
        self._queues: dict[str, socket.socket] = {}
        self._senders: dict[str, socket.socket] = {}
        self._waiting: list[tuple[float, int, socket.socket, int]] = []
        self._numbers = itertools.count()
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def open(self) -> None:
        for receiver in sorted({receiver for _, receiver in self._links}):
            self._queues[receiver] = self._network.inside(receiver, queue)
        for sender in sorted({sender for (sender, _), link in self._links.items() if link.duplicate}):
            self._senders[sender] = self._network.inside(sender, _raw)
        self._thread.start()
        for sender, receiver in sorted(self._links):
            rule = ["-A", "INPUT", "-s", self._network.address[sender], "-j", "NFQUEUE", "--queue-num", str(QUEUE)]
            run(*self._network.enter(receiver), "iptables", "-w", *rule)

    def close(self) -> None:
        """First nothing more comes, then everything goes. Idempotent."""
        self._network.heal()
        if self._thread.is_alive():
            os.write(self._woken, b"!")
            self._thread.join()

    def _run(self) -> None:
        receiver_of = {queue.fileno(): (name, queue) for name, queue in self._queues.items()}
        poll = select.epoll()
        for number in [self._wake, *receiver_of]:
            poll.register(number, select.EPOLLIN)
        while True:
            wait = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else -1
            ready = [number for number, _ in poll.poll(wait)]
            for number in ready:
                if number != self._wake:
                    self._take(*receiver_of[number])
            self._let_through(math.inf if self._wake in ready else time.monotonic())
            if self._wake in ready:
                break
        poll.close()
        for one in (*self._queues.values(), *self._senders.values()):
            one.close()
        for number in (self._wake, self._woken):
            os.close(number)

    def _take(self, receiver: str, queue: socket.socket) -> None:
        while True:
            try:
                message = queue.recv(BYTES_MAX + 4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were dropped on their way here
                continue
            now = time.monotonic()
            for number, packet in _packets(message):
                sender = self._name.get(socket.inet_ntoa(packet[12:16]), "")
                due = self._due((sender, receiver), len(packet), now)
                if due is None:
                    _decide(queue, number, DROP)
                    continue
                heapq.heappush(self._waiting, (due, next(self._numbers), queue, number))
                if self._rng.random() < self._links[sender, receiver].duplicate:
                    with contextlib.suppress(OSError):  # its queue is full
                        self._senders[sender].sendto(packet, (self._network.address[receiver], 0))

    def _due(self, pair: Pair, size: int, now: float) -> float | None:
        """When a packet goes through; None: never."""
        link, state = self._links[pair], self._states[pair]
        start = max(now, state.free)
        if start - now > BACKLOG_SECONDS:
            return None
        state.free = start + size / link.rate
        due = state.free + link.delay + self._rng.uniform(-link.jitter, link.jitter)
        if not link.reorder:
            due = max(due, state.last)
        state.last = due
        return due

    def _let_through(self, until: float) -> None:
        while self._waiting and self._waiting[0][0] <= until:
            _, _, queue, number = heapq.heappop(self._waiting)
            _decide(queue, number, ACCEPT)


# The kernel's messages


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _message(kind: int, attributes: bytes, flags: int = REQUEST) -> bytes:
    body = struct.pack("=BB", socket.AF_UNSPEC, 0) + struct.pack("!H", QUEUE) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def queue() -> socket.socket:
    """The queue of the namespace we are in; only one at a time can have it. Raises OSError."""
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    for kind, data in (
        (CONFIG_COMMAND, struct.pack("!BBH", BIND, 0, 0)),
        (CONFIG_PARAMETERS, struct.pack("!IB", BYTES_MAX, COPY_PACKET)),
        (CONFIG_LENGTH, struct.pack("!I", PACKETS_MAX)),
    ):
        one.send(_message(CONFIG, _attribute(kind, data), REQUEST | ACKNOWLEDGE))
        (error,) = struct.unpack_from("=i", one.recv(4096), 16)
        if error:
            one.close()
            raise OSError(-error, os.strerror(-error))
    return one


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)


def _decide(queue: socket.socket, number: int, verdict: int) -> None:
    with contextlib.suppress(OSError):  # the packet has gone
        queue.send(_message(VERDICT, _attribute(VERDICT_HEADER, struct.pack("!II", verdict, number))))


def _packets(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each packet of a message."""
    at = 0
    while at + 16 <= len(message):
        length, kind = struct.unpack_from("=IH", message, at)
        if kind == PACKET:
            attributes = dict(_attributes(message[at + 20 : at + length]))
            yield struct.unpack_from("!I", attributes[PACKET_HEADER])[0], attributes[PAYLOAD]
        at += max(16, (length + 3) & ~3)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)


# What really comes through


@dataclass(frozen=True)
class Flight:
    """What arrived of the datagrams from one node to another."""

    arrived: list[tuple[int, float]]  # number and seconds, in the order of arrival

    @property
    def fastest(self) -> float:
        return min((seconds for _, seconds in self.arrived), default=math.inf)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.arrived]


def flights(network: Network, pairs: list[Pair], count: int, size: int, seconds: float) -> dict[Pair, Flight]:
    """`count` datagrams of `size` bytes for each pair at once; what arrives in `seconds`."""
    names = sorted({name for pair in pairs for name in pair})
    sockets = {name: network.inside(name, functools.partial(_bound, network.address[name])) for name in names}
    name_of = {network.address[name]: name for name in names}
    found: dict[Pair, Flight] = {pair: Flight([]) for pair in pairs}

    def receive(wait: float) -> bool:
        ready = select.select(list(sockets.values()), [], [], wait)[0]
        for one in ready:
            datagram, (address, _) = one.recvfrom(size)
            number, sent = struct.unpack_from("=Id", datagram)
            flight = found[name_of[address], name_of[one.getsockname()[0]]]
            flight.arrived.append((number, time.monotonic() - sent))
        return bool(ready)

    try:
        for number in range(count):
            for sender, receiver in pairs:
                stamped = struct.pack("=Id", number, time.monotonic()).ljust(size, b"?")
                sockets[sender].sendto(stamped, (network.address[receiver], sockets[receiver].getsockname()[1]))
            while receive(0):  # else the later ones wait for us
                pass
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(len(set(one.numbers)) < count for one in found.values()):
            receive(0.05)
    finally:
        for one in sockets.values():
            one.close()
    return found


def _bound(address: str) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.bind((address, 0))
    return one
