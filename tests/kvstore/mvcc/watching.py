"""A store with a watch hub behind its applier, and sinks that tests can slow down."""

from pathlib import Path
from typing import final

from google.protobuf.message import Message

from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.watch import WatchHub, WatchLimits, WatchStream
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.applier import Applier, Result
from tests.kvstore.state.support import entry


def header(revision: int) -> bytes:
    message = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=1, member_id=2, revision=revision, raft_term=3))
    return message.SerializeToString()


@final
class Sink:
    """The client's end. `stuck`: it takes nothing, so all that is sent stays queued."""

    def __init__(self) -> None:
        self.stuck = False
        self.messages: list[bytes] = []
        self._queued = 0

    @property
    def queued_bytes(self) -> int:
        return self._queued if self.stuck else 0

    def send(self, messages: list[bytes]) -> None:
        self.messages += messages
        self._queued += sum(map(len, messages))

    def release(self) -> None:
        """It has read everything."""
        self.stuck = False
        self._queued = 0

    def take(self) -> list[pb.WatchResponse]:
        messages, self.messages = self.messages, []
        return [pb.WatchResponse.FromString(message) for message in messages]


@final
class Client:
    def __init__(self, hub: WatchHub) -> None:
        self.sink = Sink()
        self.stream: WatchStream = hub.open_stream(self.sink)

    def create(self, key: bytes = b"", range_end: bytes = b"", **options: object) -> pb.WatchResponse:
        self.stream.create(pb.WatchCreateRequest(key=key, range_end=range_end, **options))  # type: ignore[arg-type]
        created = self.sink.take()[0]
        assert created.created
        return created

    def take(self) -> list[pb.WatchResponse]:
        return self.sink.take()


@final
class Watched:
    """Requests are applied one by one or several in one entry; the hub sees what apply made of them."""

    def __init__(self, path: Path, limits: WatchLimits | None = None) -> None:
        self.store = MvccStore.open(path)
        self._limits = limits or WatchLimits()
        self.wakes = 0
        self.hub = self.new_hub()
        self._applier = Applier(self.store, 7, 1, self)
        self._sequence = 0
        self.answers: dict[int, Result] = {}

    def new_hub(self) -> WatchHub:
        """As after a restart: it has nothing in memory."""
        self.hub = WatchHub(self.store, self._limits, header)
        self.hub.wake = self._wake
        return self.hub

    def _wake(self) -> None:
        self.wakes += 1

    def client(self) -> Client:
        return Client(self.hub)

    async def apply(self, *requests: Message) -> list[Result]:
        first = self._sequence + 1
        self._sequence += len(requests)
        await self._applier.apply([entry(self.store.applied_index + 1, first, requests)])
        return [self.answers[first + at] for at in range(len(requests))]

    async def put(self, *pairs: tuple[bytes, bytes]) -> None:
        """All in one batch, each its own revision."""
        await self.apply(*[pb.PutRequest(key=key, value=value) for key, value in pairs])

    async def compact(self, revision: int) -> None:
        await self.apply(pb.CompactionRequest(revision=revision))

    async def sync(self) -> None:
        while await self.hub.sync_unsynced():
            pass

    def members(self) -> None:
        pass

    def events(self, batch: list[RevisionEvents]) -> None:
        self.hub.notify(batch)

    def results(self, results: list[tuple[int, Result]]) -> None:
        self.answers.update(results)

    def applied(self, index: int, term: int) -> None:
        pass

    def close(self) -> None:
        self.store.close()
