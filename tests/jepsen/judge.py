"""All verdicts about a run: from its history, its members and their logs. Nothing undecided is a pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from kvstore.config import ServerConfig
from tests.e2e.agreement import check_log, check_members, check_tables
from tests.e2e.checkers import Truth, Undecided, check_linearizable, check_revisions
from tests.e2e.cluster import Cluster
from tests.e2e.history import CALL_SECONDS, History
from tests.jepsen.checkers.append import check_append
from tests.jepsen.checkers.counter import check_counter
from tests.jepsen.checkers.lease import check_lease
from tests.jepsen.checkers.lock import check_bare, check_exclusion, check_fenced, lost_bare
from tests.jepsen.checkers.queue import check_queue
from tests.jepsen.checkers.reads import check_reads
from tests.jepsen.checkers.set import check_set
from tests.jepsen.checkers.watch import check_watch
from tests.jepsen.faults import NEMESES
from tests.jepsen.faults.clocks import SPEEDS
from tests.jepsen.record import NEVER, Call, history
from tests.jepsen.report import quantiles

PASS, FAIL, UNDECIDED = "pass", "FAIL", "UNDECIDED"
SHOWN = 5
COMPACTING = ("compact", "upkeep", "s-")  # how the names of nemeses begin that may compact
ELECTION_SECONDS = ServerConfig().election_timeout / 1000  # no member has a flag of it
# Writes resume after any fault that leaves a majority: a follower waits for one to two election timeouts, and who has
# asked a member that is gone asks again when its call is over.
RESUMED_SECONDS = 2 * ELECTION_SECONDS + CALL_SECONDS
# Rarely a vote is split, or a leader that hears nobody steps down before the others begin to wait. 1 s: the machine.
LATE_SECONDS = RESUMED_SECONDS + 2 * ELECTION_SECONDS + 1.0


@dataclass
class Verdict:
    name: str
    result: str
    complaints: list[str]
    about: str = ""

    def __str__(self) -> str:
        lines = [f"{self.result:<9} {self.name:<14} {self.about}"]
        return "\n".join([*lines, *(f"          - {one[:600]}" for one in self.complaints[:SHOWN])])


def judged(name: str, check: Callable[[], Iterable[str]], about: str = "") -> Verdict:
    try:
        complaints = list(check())
    except Undecided as error:
        return Verdict(name, UNDECIDED, [str(error)], about)
    except AssertionError as error:
        complaints = [str(error)]
    except grpc.RpcError as error:  # of a member that has been healed, and is asked what it holds
        complaints = [f"asked, a member answers {error.code().name}: {error.details()}"]
    return Verdict(name, FAIL if complaints else PASS, complaints, about)


@dataclass
class Evidence:
    """What a run has left behind."""

    calls: list[Call]
    lines: list[dict[str, Any]]  # of the whole history
    told: History
    truth: Truth | None = None  # none where members could not be asked, or clients only are believed

    @property
    def fastest(self) -> float:
        """A member's clock may have run so fast. Leases, and locks that hang on them, last by its time."""
        sped = any(line["process"] == "nemesis" and line["f"].startswith("clock-speed") for line in self.lines)
        return max(SPEEDS) if sped else 1.0

    @property
    def compacting(self) -> int:
        """When the first fault began that compacts: by its name, or as a part of a scenario."""
        faults = [line for line in self.lines if line["process"] == "nemesis"]
        return min((one["time_ns"] for one in faults if one["f"].startswith(COMPACTING)), default=NEVER)


Check = Callable[[Evidence], list[str]]
About = str | Callable[[Evidence], str]
# By workload: what only it has to say.
CHECKS: dict[str, dict[str, tuple[About, Check]]] = {
    "register": {"linearizable": ("each key, blind to headers", lambda e: check_linearizable(e.told))},
    "set": {"set": ("no element lost, late or from nowhere", lambda e: check_set(e.calls))},
    "append": {"append": ("order of lists, cycles of transactions", lambda e: check_append(e.calls))},
    "counter": {"counters": ("nothing lost, nothing twice, never back", lambda e: check_counter(e.calls))},
    "queue": {"queue": ("each element once, in order, none lost", lambda e: check_queue(e.calls))},
    "lock": {
        "fenced": ("with fencing no append is lost", lambda e: check_fenced(e.calls)),
        "bare": (lambda e: lost_bare(e.calls), lambda e: check_bare(e.calls)),
        "exclusion": (
            lambda e: "one believes to hold a lock" if e.fastest == 1 else "not judged: clocks ran fast",
            lambda e: check_exclusion(e.calls) if e.fastest == 1 else [],
        ),
    },
    "lease": {
        "leases": ("never early, never back, keys go together", lambda e: check_lease(e.calls, e.truth, e.fastest))
    },
    "watch": {"watches": ("nine properties of each watch", lambda e: check_watch(e.lines, e.calls, e.truth))},
    "reads": {
        "refusals": (
            "compacted and future only what is",
            lambda e: check_reads(e.calls, e.compacting),
        )
    },
}


def judge(
    workload: str, calls: list[Call], lines: list[dict[str, Any]], cluster: Cluster | None, enough: int
) -> list[Verdict]:
    """enough: acknowledged operations below which a run shows nothing. cluster: none, only clients are believed."""
    counts = {kind: sum(call.type == kind for call in calls) for kind in ("ok", "fail", "info")}
    about = " ".join(f"{kind}={count}" for kind, count in counts.items())
    verdicts = [judged("operations", lambda: [f"fewer than {enough} ok"] if counts["ok"] < enough else [], about)]
    evidence = Evidence(calls, lines, history(calls))

    def members(cluster: Cluster) -> list[str]:
        evidence.truth = check_members(cluster)
        return evidence.truth.complaints

    if cluster is not None:
        about = "equal histories, HashKV and applied indexes; no revision missing"
        verdicts.append(judged("members", lambda: members(cluster), about))
        about = "equal members, leases, alarms, users and roles"
        verdicts.append(judged("tables", lambda: check_tables(cluster), about))
        verdicts.append(judged("logs", lambda: _logs(cluster), "no line above warning"))
    if truth := evidence.truth:
        about = f"headers against {truth.last} revisions"
        verdicts.append(judged("revisions", lambda: check_revisions(evidence.told, truth), about))
    for name, (said, check) in CHECKS[workload].items():
        about = said if isinstance(said, str) else said(evidence)
        verdicts.append(judged(name, partial(check, evidence), about))
    return verdicts


def _logs(cluster: Cluster) -> list[str]:
    for member in cluster.members:
        check_log(member)
    return []


def judge_availability(faults: list[dict[str, Any]]) -> Verdict:
    """faults: as the report has them."""
    found = [one for one in faults if NEMESES[one["name"]].leaves_majority and not one["beside"]]
    late = [
        f"{one['name']} {one['what']}: no write for {one['unavailable']} s, more than {late_after(one['name']):.1f}"
        for one in found
        if one["unavailable"] > late_after(one["name"])
    ]
    took = quantiles(one["unavailable"] for one in found)
    times = " ".join(f"{which}={took[which]:.1f}s" for which in ("p50", "p99", "max")) if found else ""
    soon = sum(one["unavailable"] <= RESUMED_SECONDS for one in found)
    about = f"writes after {len(found)} faults: {times}; {soon} within {RESUMED_SECONDS:.1f}s (2 elections + a call)"
    return Verdict("availability", FAIL if late else PASS, late, about)


def late_after(nemesis: str) -> float:
    """Seconds without a write that are too many after this one, which leaves a majority."""
    return LATE_SECONDS / (min(SPEEDS) if nemesis.startswith("clock-speed") else 1.0)
