"""Lessor: knows when leases expire. Sans-IO: the time comes in, and what is due goes out as lists.

Every member's lessor knows every lease; only the leader's keeps time, and even that decides nothing: it
says which leases to propose for revocation. Until such a proposal is made a lease can be kept alive, also
when its time is over; while one is under way it cannot, and whoever asks has to wait for the outcome.

    follower          table of leases, no times
      promote         all times begin again, an election timeout longer: how much was left nobody knows
      tick            -> leases to revoke (at most RATE a second), checkpoints to write
      renew, changed  times move
      demote          back to the table; what is under way counts no more

Times. `lease.expiry` is set by a grant and a keep-alive, and a promotion sets one number for all: a lease
lives until the later of its own time and `_floor` + what the log knows of it. So a promotion costs the same
for one lease and for a million.

A wheel of slots holds each lease once, at a time when it is to be looked at: not after its expiry, and a
minute ahead at most. A keep-alive only moves the expiry; the lease's turn finds it alive and puts it into a
later slot. So a keep-alive costs nothing in the wheel, and a lease one step per TTL. For 100,000 leases
such a round of steps measured 33 ms, against 97 ms for a heap with lazy deletion, and 8 bytes a lease
against 80; order within a slot does not matter, for the rate limit spreads what is due anyway. A lease
that is gone leaves the wheel at its turn, hence the minute.

Checkpoints (off by default; etcd's alpha feature): without them a lease of a week begins again with each
new leader. When the log knows more than five minutes too much of a lease, what is left is written to it. The
first keep-alive after that has to clear it in the log, before it is answered.

A stall of this process is not the clients' fault: their keep-alives wait in a socket. After one, nothing
expires for an election timeout.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from typing import Final, final

from kvstore.errors import LEADER_CHANGED, KvError
from kvstore.measure import Histogram
from kvstore.mvcc.leases import LeaseChange, LeaseRow

SLOT_SECONDS: Final = 0.25
LOOK_SECONDS_MAX: Final = 60.0  # until a lease is looked at again
RATE: Final = 1000  # leases that are revoked in a second (etcd's)
REVOKES_MAX: Final = RATE // 2  # in one proposal
CHECKPOINT_SECONDS: Final = 300  # that the log may know too much of a lease
CHECKPOINTS_MAX: Final = 1000  # in one proposal
CHECKPOINT_RETRY_SECONDS: Final = 10.0
VISITS_MAX: Final = 2000  # leases looked at in one step: about 1 ms
STALL_SECONDS: Final = 1.0  # between two ticks: then we were not there
RETRY_SECONDS: Final = 3.0  # until a revoke whose outcome is unknown is proposed again
BYTES_PER_LEASE: Final = 190  # measured: object, time, id, its places in table and wheel

UNKNOWN: Final = 0  # answers of `renew` that are no TTL
REVOKING: Final = -1
CHECKPOINTED: Final = -2

Outcome = Callable[[int | KvError], None]  # what a keep-alive that waits for a revoke is told


@final
class Lease:
    __slots__ = ("expiry", "id", "remaining", "ttl")

    def __init__(self, id_: int, row: LeaseRow) -> None:
        self.id = id_
        self.ttl = row.ttl
        self.remaining = row.remaining
        self.expiry = 0.0  # by what this leadership has seen of it; see `_floor`


@final
class Due:
    """What a tick asks to be proposed."""

    __slots__ = ("checkpoints", "more", "revokes")

    def __init__(self, revokes: list[int], checkpoints: list[tuple[int, int]], more: bool) -> None:
        self.revokes = revokes
        self.checkpoints = checkpoints  # (lease, remaining seconds)
        self.more = more  # leases wait to be looked at: come again after a pause


@final
class Lessor:
    """Times are monotonic seconds of one clock, never of the wall."""

    def __init__(self, extend: float, checkpoints: bool = False) -> None:
        self._extend = extend  # an election timeout: what a promotion adds, for nobody led meanwhile
        self._checkpoints = checkpoints
        self._leases: dict[int, Lease] = {}
        self.term = 0  # of our leadership; 0: another one leads
        self.ttls = Histogram(1, 24)  # of the leases that were granted, and how many were revoked and renewed
        self.revoked = self.renewed = 0
        self._clear(0.0)

    def _clear(self, now: float) -> None:
        self._floor = now + self._extend
        self._slots: dict[int, list[Lease]] = {}
        self._next_slot = int(now / SLOT_SECONDS)
        self._visits: Iterator[Lease] = iter(())  # leases whose turn it is, from `_turns`
        self._turns: deque[list[Lease]] = deque()
        self._expired: deque[Lease] = deque()
        self._revoking: dict[int, list[Outcome]] = {}  # proposed; whoever waits for the outcome
        self._due_checkpoints: deque[Lease] = deque()
        self._allowance = 0.0  # of revokes
        self._last_tick = now
        self._not_before = now  # nothing expires earlier

    # The table, on every member

    def load(self, rows: Iterable[tuple[int, LeaseRow]]) -> None:
        """Add leases: those of a store that has just been opened or has taken another's place."""
        for id_, row in rows:
            lease = self._leases[id_] = Lease(id_, row)
            if self.term:
                self._place(lease, self._last_tick)

    def clear(self) -> None:
        """Forget all leases."""
        self._leases = {}

    def changed(self, changes: list[LeaseChange], now: float) -> None:
        """What was applied, in order."""
        for id_, row, granted in changes:
            if row is None:
                self.revoked += 1
                self._leases.pop(id_, None)
                for outcome in self._revoking.pop(id_, ()):
                    outcome(UNKNOWN)
            elif granted:
                self.ttls.observe(row.ttl)
                lease = self._leases[id_] = Lease(id_, row)
                lease.expiry = now + row.ttl
                if self.term:
                    self._place(lease, now)
            elif id_ in self._leases:
                self._leases[id_].remaining = row.remaining

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def size_bytes(self) -> int:
        """About what the leases take in memory."""
        return BYTES_PER_LEASE * len(self._leases)

    def ids(self) -> list[int]:
        """The leader's by expiry, as etcd lists them; a follower knows no times, and sorts by id."""
        if not self.term:
            return sorted(self._leases)
        return [lease.id for lease in sorted(self._leases.values(), key=self._expiry)]

    # Time, on the leader

    def promote(self, term: int, now: float) -> None:
        """We lead in `term`: every lease has its full time from here on."""
        self.demote()
        self.term = term
        self._clear(now)
        self._turns.append(list(self._leases.values()))

    def demote(self) -> None:
        waiting, self._revoking = self._revoking, {}
        self.term = 0
        self._clear(0.0)
        for outcomes in waiting.values():
            for outcome in outcomes:
                outcome(LEADER_CHANGED)

    def _expiry(self, lease: Lease) -> float:
        return max(lease.expiry, self._floor + (lease.remaining or lease.ttl))

    def renew(self, id_: int, now: float) -> int:
        """The TTL, from now on; or UNKNOWN, REVOKING (see `when_revoked`), CHECKPOINTED (clear it in the log first)."""
        lease = self._leases.get(id_)
        if lease is None:
            return UNKNOWN
        if id_ in self._revoking:
            return REVOKING
        if lease.remaining:
            return CHECKPOINTED
        lease.expiry = now + lease.ttl
        self.renewed += 1
        return lease.ttl

    def when_revoked(self, id_: int, outcome: Outcome) -> None:
        """Tell the outcome of the revoke that is under way: UNKNOWN, or an error."""
        self._revoking[id_].append(outcome)

    def time_to_live(self, id_: int, now: float) -> tuple[int, int] | None:
        """(whole seconds left, granted TTL)."""
        lease = self._leases.get(id_)
        if lease is None:
            return None
        # What a promotion adds is not shown: to a client a TTL never grows but by a keep-alive.
        return max(0, int(min(self._expiry(lease) - now, lease.ttl))), lease.ttl

    def tick(self, now: float, *, revoke: bool = True, checkpoint: bool = True) -> Due:
        """What is due; nothing where another one leads. Call it every SLOT_SECONDS, and again while `more`.

        revoke, checkpoint: whether a proposal of the kind may be made now.
        """
        if not self.term:
            return Due([], [], False)
        if now - self._last_tick > STALL_SECONDS:
            self._not_before = now + self._extend
        self._allowance = min(self._allowance + RATE * (now - self._last_tick), REVOKES_MAX)
        self._last_tick = now
        while (self._next_slot + 1) * SLOT_SECONDS <= now:
            turn = self._slots.pop(self._next_slot, None)
            if turn:
                self._turns.append(turn)
            self._next_slot += 1
        more = self._visit(now)
        return Due(self._to_revoke(now) if revoke else [], self._to_checkpoint(now) if checkpoint else [], more)

    def _place(self, lease: Lease, now: float, earliest: float = 0.0) -> None:
        """Into the slot of its next turn."""
        expiry = self._expiry(lease)
        at = min(expiry, now + LOOK_SECONDS_MAX)
        if self._checkpoints:
            at = min(at, expiry - (lease.remaining or lease.ttl) + CHECKPOINT_SECONDS)
        slot = max(int(max(at, earliest) / SLOT_SECONDS), self._next_slot)
        turn = self._slots.get(slot)
        if turn is None:
            self._slots[slot] = [lease]
        else:
            turn.append(lease)

    def _visit(self, now: float) -> bool:
        """Look at leases whose turn it is, so many at a time. True when some are left."""
        for _ in range(VISITS_MAX):
            lease = next(self._visits, None)
            while lease is None:
                if not self._turns:
                    return False
                self._visits = iter(self._turns.popleft())
                lease = next(self._visits, None)
            if self._leases.get(lease.id) is not lease:
                continue
            left = self._expiry(lease) - now
            if left <= 0:
                self._expired.append(lease)
            elif self._checkpoints and (lease.remaining or lease.ttl) - left >= CHECKPOINT_SECONDS:
                self._due_checkpoints.append(lease)
                self._place(lease, now, now + CHECKPOINT_RETRY_SECONDS)
            else:
                self._place(lease, now)
        return True

    def _to_revoke(self, now: float) -> list[int]:
        found: list[int] = []
        while self._expired and self._allowance >= 1 and now >= self._not_before:
            lease = self._expired.popleft()
            if self._leases.get(lease.id) is not lease:
                continue
            if self._expiry(lease) > now:  # kept alive while it waited here
                self._place(lease, now)
                continue
            self._revoking.setdefault(lease.id, [])
            self._allowance -= 1
            found.append(lease.id)
        return found

    def _to_checkpoint(self, now: float) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while self._due_checkpoints and len(found) < CHECKPOINTS_MAX:
            lease = self._due_checkpoints.popleft()
            left = ceil(self._expiry(lease) - now)
            if self._leases.get(lease.id) is lease and 0 < left < (lease.remaining or lease.ttl):
                found.append((lease.id, left))
        return found

    def not_revoked(self, ids: list[int], error: KvError, unknown: bool, now: float) -> None:
        """The proposal failed. `unknown`: it may still take effect, so the leases cannot be kept alive meanwhile."""
        for id_ in ids:
            for outcome in self._revoking.get(id_, ()):
                outcome(error)
            lease = self._leases.get(id_)
            if lease is None or not unknown:
                self._revoking.pop(id_, None)
            else:
                self._revoking[id_] = []
            if lease is not None:
                self._place(lease, now, now + RETRY_SECONDS)
