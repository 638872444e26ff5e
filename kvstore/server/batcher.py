"""From requests to log entries, and from applied entries back to the requests' callers.

Requests wait here while the entry before them is on its way. Once it is applied the node pulls, and gets
everything that waits as ONE entry: our own clients' requests and those that followers forwarded to us. So
batches grow with the load, and a lone request waits for nobody. Only a full entry does not wait.

                 add()                    take(leading)                            results()
    client  ---------------> [ queue ] -----------------> one entry --- raft ---> apply ---> Proposal.done
    follower  receive() ---> [ forwarded ] ------^   take(not leading): one Forward to the leader

At most once (thesis 6.3, RELIABILITY): a request is handed out once. Only `returned`, the node's word
that the last take was neither appended nor sent, puts it back. What a follower forwarded and the leader
lost stays without an answer until its deadline, or until an entry of a newer term is applied: then the
older term's entries have all come, and the callers learn that the leader changed. Both answers mean
"unknown", and clients read them so. (member, boot, sequence) names a request for ever; a leader drops one
that it has seen, and apply does too, since a transport may deliver a message twice.

Callers are bounded in number and bytes. Whoever is refused here was certainly not proposed.
Sans-IO: time comes in, callbacks go out.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, final

import structlog

from kvstore.errors import LEADER_CHANGED, REQUEST_TOO_LARGE, STOPPED, TIMEOUT, TOO_MANY_REQUESTS, KvError
from kvstore.failpoints import fail
from kvstore.server.company import Company
from kvstore.server.deadlines import Deadlines
from kvstore.server.proposal import Proposal
from kvstore.state.applier import Result
from kvstore.state.command import CommandError, decode_batch, encode_batch, encode_head, encode_tail
from raft.errors import RaftError
from raft.proposals import ProposalSource
from raft.types import NodeId, Term

log = structlog.get_logger(__name__)

ENTRY_BYTES_MAX: Final = 512 * 1024  # a follower appends, and apply works, in pieces of this size
ENTRY_REQUESTS_MAX: Final = 1_000  # one step of apply writes what they change: 3 ms
WAITING_REQUESTS_MAX: Final = 10_000  # of our own clients, from arrival to answer
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024  # not yet handed to the node: our own, and as much forwarded
FORWARDED_REQUESTS_MAX: Final = 20_000  # not yet handed to the node
ENTRIES_UNAPPLIED_MAX: Final = 1  # more wait for more company: measured, half the CPU and twice the puts of no bound
NOT_HANDED_OUT: Final = -1


@final
class _Waiting:
    """A request from its arrival to its answer."""

    __slots__ = ("data", "done", "sequence", "since", "term")

    def __init__(self, sequence: int, data: bytes, done: Callable[[Result], None], since: float) -> None:
        self.sequence = sequence
        self.data = data  # encoded Request
        self.done = done
        self.since = since
        self.term = NOT_HANDED_OUT  # in which it was given to the node


@final
class Batcher(ProposalSource):
    """The queue of one member. All calls come on the loop."""

    def __init__(
        self,
        member_id: int,
        boot: int,
        *,
        request_bytes_max: int,
        timeout: float,
        term: Callable[[], Term],
        unapplied: Callable[[], int],
        stamp: Callable[[], int],
        timeout_error: Callable[[float], KvError],
        company: Company,
    ) -> None:
        """unapplied: entries in the log that are not applied yet. stamp: the next entry's time.
        timeout_error(since): what to tell a caller that waited since then. company: whom an entry waits for."""
        self._member_id = member_id
        self._boot = boot
        self._head = encode_head(member_id, boot)
        self._request_bytes_max = request_bytes_max
        self._timeout = timeout
        self._term = term
        self._unapplied = unapplied
        self._stamp = stamp
        self._timeout_error = timeout_error
        self._company = company
        self._sequence = 0
        self._waiting: dict[int, _Waiting] = {}  # by sequence: everything not answered
        self._queue: deque[_Waiting] = deque()  # not handed out; may hold requests answered meanwhile
        self._queue_bytes = 0
        self._forwarded: deque[bytes] = deque()  # encoded Requests
        self._forwarded_bytes = 0
        self._seen: dict[int, tuple[int, int]] = {}  # member -> highest (boot, sequence) taken in from it
        self._taken: list[_Waiting] = []  # of the last take
        self._taken_forwarded: list[bytes] = []
        self._gathers = False  # the last take left everything here until there is more, or until something happens
        self._deadlines = Deadlines()
        self._applied_term = 0
        self._stopped = False
        self.failed = 0  # requests that were taken and got no result, since the start

    @property
    def waiting(self) -> int:
        """Requests of our own clients without an answer."""
        return len(self._waiting)

    def add(self, proposals: list[Proposal], now: float) -> bool:
        """Queue requests; refusals are answered at once. Returns whether the node should be woken to take them."""
        due: dict[float | None, list[int]] = {}  # sequences by their timeout
        for proposal in proposals:
            error = self._refusal()
            if error is not None:
                proposal.done(error)
                continue
            sequence = self._sequence + 1
            data = encode_tail(
                self._head,
                proposal.op,
                proposal.raw,
                sequence,
                proposal.user,
                proposal.auth_revision,
                proposal.request_id,
            )
            if len(data) > self._request_bytes_max:
                proposal.done(REQUEST_TOO_LARGE)
                continue
            self._sequence = sequence
            waiting = _Waiting(sequence, data, proposal.done, now)
            self._waiting[sequence] = waiting
            self._queue.append(waiting)
            self._queue_bytes += len(data)
            due.setdefault(proposal.timeout, []).append(sequence)
        for timeout, sequences in due.items():
            self._deadlines.add(sequences, now + (self._timeout if timeout is None else timeout))
        return not self._gathers or self._is_full(ENTRY_BYTES_MAX) or self._company.has_come(self._queued)

    def _is_full(self, bytes_max: int) -> bool:
        """What waits fills an entry."""
        return self._queue_bytes + self._forwarded_bytes >= bytes_max or self._queued >= ENTRY_REQUESTS_MAX

    @property
    def _queued(self) -> int:
        return len(self._queue) + len(self._forwarded)

    def _should_wait(self, leading: bool) -> bool:
        """For company: our last entry is not applied, or those who have just been answered are about to ask again."""
        if leading and self._unapplied() >= ENTRIES_UNAPPLIED_MAX:
            return True
        return self._company.is_expected(self._queued)

    def _refusal(self) -> KvError | None:
        if self._stopped:
            return STOPPED
        if len(self._waiting) >= WAITING_REQUESTS_MAX or self._queue_bytes >= WAITING_BYTES_MAX:
            return TOO_MANY_REQUESTS
        return None

    # What the node calls.

    def take(self, bytes_max: int, leading: bool) -> list[bytes]:
        self._taken = []
        self._taken_forwarded = []
        self._gathers = False
        if not self._queue and not (leading and self._forwarded):
            self._drop_forwarded()
            return []
        limit = min(bytes_max, ENTRY_BYTES_MAX)
        if not self._is_full(limit) and self._should_wait(leading):
            self._gathers = True
            return []
        fail("batchBeforeTake")
        shares = 2 if leading and self._forwarded else 1  # neither side starves the other
        own_limit, own_most = limit // shares, ENTRY_REQUESTS_MAX // shares
        term = self._term()
        requests: list[bytes] = []
        size = 0
        while self._queue and len(requests) < own_most:
            if requests and size + len(self._queue[0].data) > own_limit:
                break
            waiting = self._queue.popleft()
            self._queue_bytes -= len(waiting.data)
            if waiting.sequence not in self._waiting:
                continue  # its deadline passed while it waited: nobody was promised anything
            waiting.term = term
            size += len(waiting.data)
            requests.append(waiting.data)
            self._taken.append(waiting)
        if not leading:
            self._drop_forwarded()
            return [encode_batch(0, requests)] if requests else []
        while self._forwarded and len(requests) < ENTRY_REQUESTS_MAX:
            if requests and size + len(self._forwarded[0]) > limit:
                break
            data = self._forwarded.popleft()
            self._forwarded_bytes -= len(data)
            size += len(data)
            requests.append(data)
            self._taken_forwarded.append(data)
        return [encode_batch(self._stamp(), requests)] if requests else []

    @property
    def has_more(self) -> bool:
        return bool(self._queue or self._forwarded)

    def receive(self, sender: NodeId, data: list[bytes]) -> None:
        fail("batchBeforeReceive")
        for item in data:
            try:
                batch = decode_batch(item)
            except CommandError as error:
                log.warning("dropped what a member forwarded", sender=f"{sender:x}", reason=str(error))
                continue
            for request in batch.requests:
                identity = (request.boot, request.sequence)
                # A follower forwards its own clients' requests only, each once and in their order.
                if request.member != sender or identity <= self._seen.get(sender, (0, 0)):
                    continue
                self._seen[sender] = identity
                encoded = request.SerializeToString()
                if not self._forwarded_fits(len(encoded)):
                    return
                self._forwarded.append(encoded)
                self._forwarded_bytes += len(encoded)

    def returned(self, data: list[bytes], error: RaftError) -> None:
        # Before anything newer, so that one caller's requests keep their order.
        for waiting in reversed(self._taken):
            waiting.term = NOT_HANDED_OUT
            self._queue.appendleft(waiting)
            self._queue_bytes += len(waiting.data)
        for request in reversed(self._taken_forwarded):
            self._forwarded.appendleft(request)
            self._forwarded_bytes += len(request)
        self._taken = []
        self._taken_forwarded = []

    def _forwarded_fits(self, size: int) -> bool:
        return (
            len(self._forwarded) < FORWARDED_REQUESTS_MAX
            and self._forwarded_bytes < WAITING_BYTES_MAX
            and size <= self._request_bytes_max
        )

    def _drop_forwarded(self) -> None:
        """We do not lead any more. A forward is sent once and never passed on."""
        self._forwarded.clear()
        self._forwarded_bytes = 0

    # What apply calls.

    def results(self, results: list[tuple[int, Result]]) -> None:
        """Answers to our own requests, by sequence. Whoever gave up waiting is not there any more."""
        for sequence, result in results:
            waiting = self._waiting.pop(sequence, None)
            if waiting is not None:
                waiting.done(result)
        if results:
            self._company.answered(len(results), self._queued)

    def applied(self, term: Term) -> None:
        """An entry of `term` is applied, and the results of all before it have been given."""
        if term <= self._applied_term:
            return
        self._applied_term = term
        lost = [waiting for waiting in self._waiting.values() if NOT_HANDED_OUT < waiting.term < term]
        self._fail(lost, LEADER_CHANGED)

    def jumped(self, seen: tuple[int, int]) -> None:
        """A snapshot stands for entries that are never applied here; `seen`: the newest of our requests in it.

        What became of each of them is lost: their callers learn that nobody knows.
        """
        boot, sequence = seen
        if boot == self._boot:
            self._fail([waiting for waiting in self._waiting.values() if waiting.sequence <= sequence], TIMEOUT)

    # What the server calls.

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed."""
        due = [self._waiting[sequence] for sequence in self._deadlines.due(now) if sequence in self._waiting]
        for waiting in due:
            del self._waiting[waiting.sequence]
            waiting.done(self._timeout_error(waiting.since))
        self.failed += len(due)

    def stop(self) -> None:
        """Nobody will be answered by apply any more."""
        self._stopped = True
        self._fail(list(self._waiting.values()), STOPPED)

    def _fail(self, lost: list[_Waiting], error: KvError) -> None:
        for waiting in lost:
            self._waiting.pop(waiting.sequence, None)
            waiting.done(error)
        self.failed += len(lost)
