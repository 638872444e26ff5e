"""The space quota of this member: when its store is full it raises NOSPACE, which all members obey.

What counts is in mvcc/live.py. The quota is a setting and members may have different ones, so it decides nothing by
itself: the alarm does, which is an entry of the log (state/alarms.py). What is refused here, before it is proposed, is
refused to be quick, and so that the alarm is there by the time the first client hears of it.

Services look at one attribute per list of calls: `tight`, true when a single request could exceed the quota. Only
then is what each request costs worth a look.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar, final

from kvstore.errors import NO_SPACE
from kvstore.pb.rpc_pb2 import AlarmType
from kvstore.rpc.base import Call
from kvstore.state.quota import PUT_OVERHEAD

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

DEFAULT_BYTES: Final = 2 << 30
Message = TypeVar("Message")
Calls = list[tuple[Call, Message]]


@final
class Quota:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self.flag = server.config.quota_backend_bytes or DEFAULT_BYTES  # negative: there is none
        self._used = server.store.live.total
        self._margin = server.config.max_request_bytes + PUT_OVERHEAD
        self.tight = self._is_tight()

    def _is_tight(self) -> bool:
        return 0 < self.flag <= self._used + self._margin

    def applied(self) -> None:
        """A batch has become visible."""
        before, self._used = self._used, self._server.store.live.total
        self.tight = self._is_tight()
        # Also where no client is: who writes may have chosen a member with a larger quota. Only what grows counts,
        # so that an alarm that is taken back comes again with the next write and not at once.
        if self.tight and before < self._used >= self.flag:
            self._raise(lambda: None)

    def admit(self, calls: Calls[Message], cost: Callable[[Message], int]) -> Calls[Message]:
        """For when it is tight: the calls that still fit. The others are answered, once the alarm is raised."""
        fitting = []
        for call, request in calls:
            bytes_ = cost(request)
            if bytes_ and self._used + bytes_ >= self.flag:
                self._raise(_Refusal(call))
            else:
                fitting.append((call, request))
        return fitting

    def _raise(self, done: Callable[[], None]) -> None:
        self._server.alarms.raise_alarm(AlarmType.NOSPACE, self._server.member_id, done)


@final
class _Refusal:
    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self) -> None:
        self._call.fail(NO_SPACE)
