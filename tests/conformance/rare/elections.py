"""Calls that wait while the leader goes away. Each is tried again when the election was not where it had to be."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.rare.falling_apart import GET, PUT
from tests.conformance.rare.side import Side
from tests.e2e.cluster import wait_for

TIMES_MAX = 6
LATE_SECONDS = 2.5  # an election so long after a call is none that the call's timeout is put down to
EXIT_MICROSECONDS = 2_000_000
CHANGED = "etcdserver: leader changed"
FAILED = "etcdserver: request timed out, possibly due to previous leader failure"
LOST = "etcdserver: request timed out, possibly due to connection lost"
STOPPED = "etcdserver: server stopped"


def until_said(side: Side, attempt: Callable[[Side], list[str]], etcd: str, ours: str = "") -> str:
    """The first answer that ends so, or else the first one. Ours is asked once when it says something else."""
    wanted = ours if side.is_ours else etcd
    for _ in range(TIMES_MAX if wanted else 1):
        answers = attempt(side)
        found = next((answer for answer in answers if wanted and answer.endswith(wanted)), None)
        if found is not None:
            return found
    return answers[0]


def a_read_waits(side: Side) -> None:
    """At a leader that is none any more."""

    def attempt(side: Side) -> list[str]:
        leader = side.leader()
        with ThreadPoolExecutor(1) as threads:
            with side.paused(*side.others(leader)):
                answer = threads.submit(side.text, leader, "Range", GET)
                wait_for(side.has_no_leader(leader), "no leader is left")
            return [answer.result()]

    side.note("Range", GET, until_said(side, attempt, CHANGED))


def a_write_is_sent_to_a_leader_that_hangs(side: Side) -> None:
    def attempt(side: Side) -> list[str]:
        leader = side.leader()
        with side.paused(leader), ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda member: side.text(member, "Put", PUT), side.others(leader)))
        for member in side.alive:
            side.wait_serves(member)
        return answers

    side.note("Put", PUT, until_said(side, attempt, FAILED, CHANGED))


def a_write_is_sent_to_a_leader_that_died(side: Side) -> None:
    """And the next leader is elected much later, with a member that was not there when the call began."""

    def attempt(side: Side) -> list[str]:
        leader = side.leader()
        asked, other = side.others(leader)
        side.kill(leader)
        side.kill(other)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(side.text, asked, "Put", PUT)
            time.sleep(LATE_SECONDS)
            side.start(other)
            answers = [answer.result()]
        side.start(leader)
        for member in side.alive:
            side.wait_serves(member)
        return answers

    side.note("Put", PUT, until_said(side, attempt, LOST))


def stopping(side: Side) -> None:
    """Reads that wait at a member that is removed, then at one that is told to stop."""
    leader = side.leader()
    removed, other = side.others(leader)
    ident = side.id_of(removed)
    request = pb.MemberRemoveRequest(ID=ident)
    with ThreadPoolExecutor(20) as threads, _slow_to_exit(side, removed):
        wait_for(lambda: side.text(leader, "MemberRemove", request).startswith("MemberRemoveResponse"), "it is removed")
        answers = list(threads.map(lambda _: side.text(removed, "Range", GET), range(20)))
        side.note("Range", GET, next((answer for answer in answers if answer.endswith(STOPPED)), answers[0]))
    side.kill(removed)  # what has ended is reaped
    leader = side.leader()
    [other] = side.others(leader)
    with side.paused(other), ThreadPoolExecutor(1) as threads:
        wait_for(side.has_no_leader(leader), "no leader is left")
        answer = threads.submit(side.text, leader, "Range", GET)
        wait_for(lambda: side.waits(leader, "Range"), "the read has come")
        side.signal(leader, signal.SIGTERM)
        side.note("Range", GET, answer.result())


@contextlib.contextmanager
def _slow_to_exit(side: Side, member: int) -> Iterator[None]:
    """etcd answers who waits and ends its process in the same moment, so that hardly anybody hears it."""
    if side.is_ours or shutil.which("strace") is None:
        yield
        return
    delay = f"inject=exit_group:delay_enter={EXIT_MICROSECONDS}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=exit_group", "-e", delay]
    tracer = subprocess.Popen([*command, "-p", str(side.pid(member))])
    try:
        wait_for(lambda: side.is_traced(member), "strace has it")
        yield
    finally:
        tracer.terminate()
        tracer.wait()
