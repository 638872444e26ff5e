"""The alarms as this member knows them, and the way to raise one.

`active` is what everybody looks at: Status, /health, /readyz, metrics. It follows what is applied here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, final

import structlog

from kvstore.errors import KvError
from kvstore.pb.rpc_pb2 import AlarmMember, AlarmRequest, AlarmResponse, AlarmType
from kvstore.server.proposal import Proposal
from kvstore.state.alarms import check_alarm, of_type, read_alarms
from kvstore.state.applier import Result
from kvstore.state.command import Op

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)


@final
class Alarms:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._raising: dict[tuple[int, int], list[Callable[[], None]]] = {}  # (member, type) -> who waits for its end
        self.active: list[AlarmMember] = read_alarms(server.store)  # by type, then by member

    def refresh(self) -> None:
        """Rows of the cluster have changed."""
        before, self.active = self.active, read_alarms(self._server.store)
        for alarm in self.active:
            if alarm not in before:
                log.warning("alarm", type=name_of(alarm), member=f"{alarm.memberID:x}")
        for alarm in before:
            if alarm not in self.active:
                log.info("alarm is over", type=name_of(alarm), member=f"{alarm.memberID:x}")

    async def answer(self, request: AlarmRequest) -> AlarmResponse:
        """An answer without its header. Raises KvError."""
        check_alarm(request)
        if request.action == AlarmRequest.GET:
            await self._server.linearizable()
            return AlarmResponse(alarms=of_type(self.active, request.alarm))
        await self._server.versions.wait_decided()
        result = await self._server.propose_one(Op.ALARM, request.SerializeToString())
        return AlarmResponse.FromString(result.body)

    def raise_alarm(self, kind: AlarmType.ValueType, member: int, done: Callable[[], None] = lambda: None) -> None:
        """Raise it unless it is there; `done` when it is, or could not be: who finds the trouble again tries again."""
        if AlarmMember(memberID=member, alarm=kind) in self.active or self._server.versions.state.cluster is None:
            done()
            return
        waiting = self._raising.get((member, kind))
        if waiting is not None:
            waiting.append(done)
            return
        self._raising[member, kind] = [done]

        def ended(result: Result) -> None:
            if isinstance(result, KvError):
                log.warning("could not raise an alarm", type=AlarmType.Name(kind), reason=result.message)
            for one in self._raising.pop((member, kind)):
                one()

        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=member, alarm=kind)
        self._server.propose([Proposal(Op.ALARM, request.SerializeToString(), ended)])


def name_of(alarm: AlarmMember) -> str:
    """NOSPACE, CORRUPT; its number where a newer member has raised what this one does not know."""
    return AlarmType.Name(alarm.alarm) if alarm.alarm in AlarmType.values() else str(alarm.alarm)


def text_of(alarm: AlarmMember) -> str:
    """As Status.errors tells it: the text form of protobuf as Go writes it, with the blank at its end."""
    member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
    return f"{member}alarm:{name_of(alarm)} "
