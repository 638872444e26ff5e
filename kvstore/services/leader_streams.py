"""Streams that end when this member has no leader, so that their clients go to one that has.

A client asks for it by the metadata `hasleader` (etcd's WithRequireLeader; its Go client does so for all
watches and keep-alives). A stream that is open may lack a leader for three election timeouts; one that is
opened meanwhile is refused at once.
"""

from typing import TYPE_CHECKING, Final, final

from kvstore.errors import NO_LEADER

if TYPE_CHECKING:
    from kvstore.rpc.base import Stream
    from kvstore.server.server import KvServer

ELECTION_TIMEOUTS: Final = 3


@final
class LeaderStreams:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._streams: dict[int, Stream] = {}  # by identity: streams need not be hashable
        self._leaderless_since: float | None = None
        self.seconds_max = ELECTION_TIMEOUTS * server.config.election_timeout / 1000

    def opened(self, stream: "Stream") -> None:
        if stream.metadata.get("hasleader") != "true":
            return
        self._streams[id(stream)] = stream
        if not self._server.has_leader:
            stream.close(NO_LEADER)

    def closed(self, stream: "Stream") -> None:
        self._streams.pop(id(stream), None)

    def tick(self, now: float) -> None:
        """Call it some times per `seconds_max`."""
        if self._server.has_leader:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now
        elif now - self._leaderless_since >= self.seconds_max:
            for stream in list(self._streams.values()):
                stream.close(NO_LEADER)
