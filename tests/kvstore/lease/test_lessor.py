"""The lessor in virtual time: what expires, what is kept, what a promotion does."""

from random import Random

import pytest

from kvstore.errors import LEADER_CHANGED, TIMEOUT, TOO_MANY_REQUESTS, KvError
from kvstore.lease.lessor import (
    CHECKPOINTED,
    RATE,
    REVOKES_MAX,
    REVOKING,
    SLOT_SECONDS,
    UNKNOWN,
    VISITS_MAX,
    Lessor,
)
from kvstore.mvcc.leases import LeaseChange, LeaseRow

START = 1000.0  # a monotonic clock begins anywhere
EXTEND = 1.0  # an election timeout
SLACK = 2 * SLOT_SECONDS


def granted(lease: int, ttl: int) -> LeaseChange:
    return LeaseChange(lease, LeaseRow(ttl, 0), True)


class Leader:
    """A lessor that leads, its time, and what it has proposed. Revokes are applied at once."""

    def __init__(self, checkpoints: bool = False, leases: dict[int, int] | None = None) -> None:
        self.lessor = Lessor(EXTEND, checkpoints)
        self.lessor.load([(lease, LeaseRow(ttl, 0)) for lease, ttl in (leases or {}).items()])
        self.now = START
        self.lessor.promote(7, START)
        self.revoked: dict[int, float] = {}
        self.checkpoints: list[tuple[int, int]] = []
        self.applies = True

    def grant(self, *leases: int, ttl: int) -> None:
        self.lessor.changed([granted(lease, ttl) for lease in leases], self.now)

    def run(self, seconds: float, step: float = SLOT_SECONDS) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + step, end)
            self.tick()

    def tick(self) -> list[int]:
        found: list[int] = []
        more = True
        while more:
            due = self.lessor.tick(self.now)
            more = due.more
            found += due.revokes
            self.checkpoints += due.checkpoints
            self.revoked |= dict.fromkeys(due.revokes, self.now)
            if self.applies:
                self.lessor.changed([LeaseChange(lease, None, False) for lease in due.revokes], self.now)
        return found

    def settle(self) -> None:
        """Let the extension of the promotion pass."""
        self.run(EXTEND)


@pytest.fixture
def leader() -> Leader:
    leader = Leader()
    leader.settle()
    return leader


@pytest.mark.parametrize("ttl", [2, 5, 59, 61, 600])
def test_a_lease_ends_after_its_ttl_and_not_before(leader: Leader, ttl: int) -> None:
    leader.grant(1, ttl=ttl)
    at = leader.now
    leader.run(ttl + 1)
    assert ttl <= leader.revoked[1] - at <= ttl + SLACK


def test_keeping_alive_moves_the_end(leader: Leader) -> None:
    leader.grant(1, 2, ttl=6)
    for _ in range(20):
        leader.run(2)
        assert leader.lessor.renew(1, leader.now) == 6
    last = leader.now
    leader.run(8)
    assert leader.revoked[2] < last
    assert 6 <= leader.revoked[1] - last <= 6 + SLACK


def test_unknown_leases(leader: Leader) -> None:
    assert leader.lessor.renew(5, leader.now) == UNKNOWN
    assert leader.lessor.time_to_live(5, leader.now) is None
    leader.grant(-5, ttl=10)  # a client may choose a negative id
    assert leader.lessor.renew(-5, leader.now) == 10


def test_time_to_live_counts_down_and_never_shows_more_than_was_granted() -> None:
    leader = Leader(leases={1: 10})
    assert leader.lessor.time_to_live(1, leader.now) == (10, 10)  # though it lives for 11
    leader.run(3.5)
    assert leader.lessor.time_to_live(1, leader.now) == (7, 10)
    leader.applies = False
    leader.run(10)
    assert leader.lessor.time_to_live(1, leader.now) == (0, 10)


def test_a_new_leader_gives_every_lease_its_full_ttl() -> None:
    leader = Leader(leases=dict.fromkeys(range(VISITS_MAX * 3), 5))
    leader.run(5 + EXTEND - 0.01)
    assert not leader.revoked
    leader.run(1)
    assert leader.revoked


def test_leading_again_forgets_what_was_seen_before(leader: Leader) -> None:
    """Others led in between: their keep-alives are not known here."""
    leader.grant(1, ttl=5)
    leader.run(4)
    leader.lessor.demote()
    assert leader.lessor.tick(leader.now + 100).revokes == []
    leader.now += 100
    leader.lessor.promote(9, leader.now)
    leader.run(5 + EXTEND - 0.01)
    assert not leader.revoked
    leader.run(1)
    assert list(leader.revoked) == [1]


def test_followers_keep_no_time() -> None:
    lessor = Lessor(EXTEND)
    lessor.changed([granted(1, 2)], START)
    assert not lessor.tick(START + 100).revokes
    assert lessor.ids() == [1]


def test_no_more_than_the_rate_is_revoked(leader: Leader) -> None:
    """S-59: thousands expire in one moment; what waits can still be kept alive."""
    count = 5 * RATE
    leader.grant(*range(1, count + 1), ttl=2)
    leader.run(2 + SLACK)
    begun, at = len(leader.revoked), leader.now
    assert 0 < begun <= REVOKES_MAX * 2
    waiting = [lease for lease in range(1, count + 1) if lease not in leader.revoked]
    assert all(leader.lessor.renew(lease, leader.now) == 2 for lease in waiting[-100:])
    leader.run(1)
    assert len(leader.revoked) - begun <= RATE * (leader.now - at) + REVOKES_MAX
    kept = set(waiting[-100:])
    leader.run(0.9)
    assert not kept & leader.revoked.keys()
    leader.run(6)
    assert len(leader.revoked) == count


def test_a_keep_alive_waits_for_a_revoke_under_way(leader: Leader) -> None:
    leader.applies = False
    leader.grant(1, 2, ttl=2)
    leader.run(3)
    assert set(leader.revoked) == {1, 2}
    assert leader.lessor.renew(1, leader.now) == REVOKING
    told: list[int | KvError] = []
    leader.lessor.when_revoked(1, told.append)
    leader.lessor.changed([LeaseChange(1, None, False)], leader.now)
    assert told == [UNKNOWN]
    leader.lessor.when_revoked(2, told.append)
    leader.lessor.demote()
    assert told == [UNKNOWN, LEADER_CHANGED]


@pytest.mark.parametrize("unknown", [True, False])
def test_a_revoke_that_fails_is_proposed_again(leader: Leader, unknown: bool) -> None:
    leader.applies = False
    leader.grant(1, ttl=2)
    leader.run(3)
    told: list[int | KvError] = []
    leader.lessor.when_revoked(1, told.append)
    error = TIMEOUT if unknown else TOO_MANY_REQUESTS
    leader.lessor.not_revoked([1], error, unknown, leader.now)
    assert told == [error]
    # One that may still take effect must not be followed by an answer that says the lease lives.
    assert leader.lessor.renew(1, leader.now) == (REVOKING if unknown else 2)
    leader.revoked.clear()
    leader.run(6)
    assert list(leader.revoked) == [1]


def test_a_lease_granted_again_under_its_id_is_another_one(leader: Leader) -> None:
    leader.grant(1, ttl=3)
    leader.run(2)
    leader.lessor.changed([LeaseChange(1, None, False), granted(1, 20)], leader.now)
    at = leader.now
    leader.run(19)
    assert not leader.revoked
    leader.run(2)
    assert 20 <= leader.revoked[1] - at <= 20 + SLACK


def test_gone_leases_leave_the_wheel(leader: Leader) -> None:
    for _ in range(200):
        leader.grant(*range(100), ttl=9_000_000_000)
        leader.lessor.changed([LeaseChange(lease, None, False) for lease in range(100)], leader.now)
        leader.run(1)
    assert sum(map(len, leader.lessor._slots.values())) <= 100 * 62  # of one minute
    assert len(leader.lessor) == 0


def test_a_stall_is_not_held_against_the_clients(leader: Leader) -> None:
    """Paused for longer than the TTL: keep-alives that wait in sockets are taken in before anything expires."""
    leader.grant(1, 2, ttl=3)
    leader.now += 10
    assert leader.tick() == []
    leader.run(0.5)
    assert leader.lessor.renew(1, leader.now) == 3
    leader.run(1)
    assert list(leader.revoked) == [2]


def test_checkpoints_of_long_leases_only() -> None:
    leader = Leader(checkpoints=True)
    leader.settle()
    leader.grant(1, ttl=300)
    leader.grant(2, ttl=1000)
    leader.grant(3, ttl=1000)
    for _ in range(3):
        leader.run(100)
        leader.lessor.renew(3, leader.now)
    leader.run(5)
    (checkpoint,) = leader.checkpoints
    assert checkpoint[0] == 2
    assert 690 <= checkpoint[1] <= 700
    leader.lessor.changed([LeaseChange(2, LeaseRow(1000, checkpoint[1]), False)], leader.now)
    # What the log knows must be cleared before a keep-alive is answered.
    assert leader.lessor.renew(2, leader.now) == CHECKPOINTED
    leader.lessor.changed([LeaseChange(2, LeaseRow(1000, 0), False)], leader.now)
    assert leader.lessor.renew(2, leader.now) == 1000


def test_checkpoints_survive_leader_changes() -> None:
    """S-59: three leaders, each knows what the one before had written."""
    remaining = 1000
    for _ in range(3):
        leader = Leader(checkpoints=True)
        leader.lessor.clear()
        leader.lessor.load([(1, LeaseRow(1000, remaining if remaining < 1000 else 0))])
        leader.lessor.promote(8, leader.now)
        leader.run(305)
        remaining = leader.checkpoints[0][1]
    assert remaining <= 1000 - 3 * 295
    leader = Leader()
    leader.lessor.load([(1, LeaseRow(1000, remaining))])
    leader.lessor.promote(9, leader.now)
    leader.run(remaining + EXTEND + 1)
    assert list(leader.revoked) == [1]


def test_leases_are_listed_by_expiry(leader: Leader) -> None:
    for lease, ttl in ((1, 50), (2, 20), (3, 90)):
        leader.grant(lease, ttl=ttl)
    assert leader.lessor.ids() == [2, 1, 3]
    leader.run(15)
    leader.lessor.renew(2, leader.now)
    leader.run(20)
    leader.lessor.renew(2, leader.now)
    assert leader.lessor.ids() == [1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_random_lives(seed: int) -> None:
    """Against a table of ends: nothing early, nothing later than the slack, through leader changes."""
    rng = Random(seed)
    leader = Leader()
    ends: dict[int, float] = {}  # the latest at which it may live on, without the slack
    earliest: dict[int, float] = {}
    alive: dict[int, int] = {}
    floor = START + EXTEND
    for step in range(3000):
        kind = rng.random()
        if kind < 0.2:
            lease, ttl = rng.randint(1, 1 << 60), rng.choice([2, 3, 10, 70, 200])
            leader.grant(lease, ttl=ttl)
            alive[lease] = ttl
        elif kind < 0.6 and alive:
            lease = rng.choice(sorted(alive))
            assert leader.lessor.renew(lease, leader.now) == alive[lease]
        elif kind < 0.602:
            leader.lessor.promote(step + 10, leader.now)
            floor = leader.now + EXTEND
            for other, ttl in alive.items():
                earliest[other] = floor + ttl
                ends[other] = max(ends[other], floor + ttl)
            continue
        else:
            leader.run(rng.random())
            for lease in [lease for lease in alive if lease in leader.revoked]:
                assert earliest[lease] <= leader.revoked[lease] <= ends[lease] + SLACK
                del alive[lease]
            continue
        if lease in alive:
            earliest[lease] = leader.now + alive[lease]
            ends[lease] = max(earliest[lease], floor + alive[lease])
    for lease in alive:
        assert ends[lease] + SLACK >= leader.now
    assert leader.revoked
