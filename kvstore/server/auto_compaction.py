"""Automatic compaction: what is older than a period, or behind the newest revisions, is given up (etcd v3compactor).

    periodic   samples the revision ten times an hour at least, and compacts to what was the newest one a period ago
    revision   every five minutes, to the newest revision less those that are kept

The two are functions of the time and the revisions that they are told. Every member samples, so that a new leader knows
the past; only the leader proposes, and what it proposes is an ordinary compaction in the log. Off unless asked for.
"""

import asyncio
from collections import deque
from typing import Final, Protocol, final

import structlog

from kvstore.auth.table import ROOT
from kvstore.config import ServerConfig
from kvstore.errors import COMPACTED, KvError
from kvstore.pb.rpc_pb2 import CompactionRequest
from kvstore.state.applier import AppliedResult
from kvstore.state.command import Op

log = structlog.get_logger(__name__)

HOUR: Final = 3600.0
SAMPLES: Final = 10  # of a period, or of an hour where that is shorter
REVISION_SECONDS: Final = 300.0


class Policy(Protocol):
    seconds: float  # between two ticks

    def tick(self, now: float, revision: int) -> int:
        """The revision that is due to be compacted, 0: none. now: monotonic seconds. revision: the store's."""

    def done(self, now: float, revision: int) -> None:
        """It is compacted."""


@final
class Periodic:
    """Keep what is younger than `period` seconds."""

    def __init__(self, period: float, now: float) -> None:
        self.seconds = min(period, HOUR) / SAMPLES
        self._period = period
        self._samples: deque[int] = deque(maxlen=round(period / self.seconds) + 1)  # the first is of a period ago
        self._last = 0
        self._next = now + period

    def tick(self, now: float, revision: int) -> int:
        due = self._samples[0] if self._samples and now >= self._next else 0
        self._samples.append(revision)
        return due if due != self._last else 0

    def done(self, now: float, revision: int) -> None:
        self._last = revision
        self._next = now + min(self._period, HOUR)


@final
class Newest:
    """Keep so many revisions."""

    def __init__(self, revisions: int) -> None:
        self.seconds = REVISION_SECONDS
        self._revisions = revisions
        self._last = 0

    def tick(self, now: float, revision: int) -> int:
        due = revision - self._revisions
        return due if due > 0 and due != self._last else 0

    def done(self, now: float, revision: int) -> None:
        self._last = revision


def policy(config: ServerConfig, now: float) -> Policy | None:
    """None: it is off."""
    if not config.auto_compaction_retention:
        return None
    if config.auto_compaction_mode == "revision":
        return Newest(int(config.auto_compaction_retention))
    return Periodic(config.auto_compaction_retention, now)


class Store(Protocol):
    @property
    def current_revision(self) -> int: ...


class Host(Protocol):
    """What it needs of a KvServer."""

    @property
    def store(self) -> Store: ...
    @property
    def leads(self) -> bool: ...
    def now(self) -> float: ...
    async def propose_one(self, op: Op, raw: bytes, user: str = "") -> AppliedResult: ...


async def run(host: Host, chosen: Policy) -> None:
    """For ever."""
    while True:
        revision = chosen.tick(host.now(), host.store.current_revision)
        if revision and host.leads:
            await _compact(host, chosen, revision)
        await asyncio.sleep(chosen.seconds)


async def _compact(host: Host, chosen: Policy, revision: int) -> None:
    began = host.now()
    try:
        # In the name of root, who is there whenever anybody is asked for a name.
        await host.propose_one(Op.COMPACTION, CompactionRequest(revision=revision).SerializeToString(), ROOT)
    except KvError as error:
        if error != COMPACTED:
            log.warning(
                "automatic compaction failed", revision=revision, reason=error.message, again_in_seconds=chosen.seconds
            )
            return
    chosen.done(host.now(), revision)
    log.info("automatic compaction", revision=revision, took_seconds=round(host.now() - began, 6))
