"""Who leads and who answers, asked of every member several times a second while a run goes on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member

EVERY_SECONDS = 0.2
ANSWER_SECONDS = 0.5
SILENT, FOLLOWER, LEADER = "silent", "follower", "leader"


@dataclass
class Span:
    """A member was seen like this, from `began` to `ended` (ns)."""

    member: str
    state: str
    term: int
    began: int
    ended: int


class Observer:
    """`spans` by member and time. The harness's way to the members is one that no fault touches."""

    def __init__(self, cluster: Cluster) -> None:
        self.spans: list[Span] = []
        self._cluster = cluster
        self._last: dict[str, Span] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            asked = [(member, time.monotonic_ns(), _ask(member)) for member in list(self._cluster.members)]
            for member, at, answer in asked:
                self._note(member.name, at, *_state(answer))

    def _note(self, member: str, at: int, state: str, term: int) -> None:
        last = self._last.get(member)
        if last is not None:
            last.ended = at
            if (last.state, last.term) == (state, term):
                return
        self._last[member] = Span(member, state, term, at, at)
        self.spans.append(self._last[member])


def _ask(member: Member) -> Any:
    try:
        return rpc_pb2_grpc.MaintenanceStub(member.channel).Status.future(
            rpc_pb2.StatusRequest(), timeout=ANSWER_SECONDS
        )
    except ValueError:  # its channel has just been closed: it is removed
        return None


def _state(answer: Any) -> tuple[str, int]:
    if answer is None:
        return SILENT, 0
    try:
        status: rpc_pb2.StatusResponse = answer.result()
    except (grpc.RpcError, grpc.FutureCancelledError):
        return SILENT, 0
    return LEADER if status.leader == status.header.member_id else FOLLOWER, status.raftTerm
