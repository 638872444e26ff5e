"""Changes: what a node tells of the members of its cluster, and who waits for a change of them.

The core takes a configuration into force when it is appended (thesis 4.1); a listener hears of each at once,
and again when one is taken back. Whoever asked for a change waits until C_new is committed and applied here.
A node that sees itself leave, in a configuration that is committed and applied, is told so once.
"""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from raft.core.raw_node import RawNode
from raft.errors import NotLeader, ProposalDropped, Stopped
from raft.types import Configuration, ConfigurationChange, Index, NodeId

Configurations: TypeAlias = list[tuple[Index, Configuration, bytes]]  # index, configuration, context; oldest first


class Changes:
    def __init__(self, node_id: NodeId) -> None:
        self.on_configuration: list[Callable[[Configurations], None]] = []
        self.on_removed: list[Callable[[], None]] = []
        self._node_id = node_id
        self._asked: list[tuple[ConfigurationChange, asyncio.Future[None]]] = []
        self._begun: list[tuple[tuple[Index, Configuration, bytes], asyncio.Future[None]]] = []
        self._told: Configurations = []
        self._settled = False  # nobody waits, and the newest configuration is applied
        self._was_member = False
        self._removed = False

    async def wait(self, change: ConfigurationChange) -> None:
        """Until it is done. A caller that gives up leaves nothing behind, but the change goes on."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asked = (change, future)
        self._asked.append(asked)
        try:
            await future
        finally:
            if asked in self._asked:
                self._asked.remove(asked)
            self._begun = [begun for begun in self._begun if begun[1] is not future]

    def propose(self, raw: RawNode) -> None:
        """Hand the core what was asked for."""
        asked, self._asked = self._asked, []
        for change, future in asked:
            if future.done():
                continue  # its caller has given up
            try:
                index = raw.propose_configuration(change)
            except ProposalDropped as error:
                future.set_exception(error)
            else:
                first = [entry for entry in raw.configurations if entry[0] == index]
                self._begun.append((first[0], future))

    def tell(self, raw: RawNode, applied: Index) -> None:
        """Once in a turn: what has changed."""
        configurations = raw.configurations
        if configurations != self._told:
            self._told = configurations
            for listener in list(self.on_configuration):
                listener(configurations)
        elif self._settled and not self._begun:
            return
        for first, future in list(self._begun):
            _resolve(first, future, configurations, applied)
        self._settled = not self._begun and configurations[-1][0] <= applied
        self._look_for_ourselves(configurations, applied)

    def _look_for_ourselves(self, configurations: Configurations, applied: Index) -> None:
        """A joining node meets configurations from before its time: only who was in one can leave."""
        ours = [
            self._node_id in configuration.members() for index, configuration, _ in configurations if index <= applied
        ]
        self._was_member = self._was_member or any(ours)
        in_force = self._node_id in configurations[-1][1].members()
        if self._was_member and not in_force and not ours[-1] and not self._removed:
            self._removed = True
            for listener in list(self.on_removed):
                listener()

    def fail(self, error: Stopped) -> None:
        for _, future in [*self._asked, *self._begun]:
            if not future.done():
                future.set_exception(error)


def _resolve(
    first: tuple[Index, Configuration, bytes],
    future: "asyncio.Future[None]",
    configurations: Configurations,
    applied: Index,
) -> None:
    if future.done():
        return
    index = first[0]
    if configurations[0][0] < index and first not in configurations:
        future.set_exception(NotLeader(f"another leader has overwritten the change at {index}"))
    elif any(index <= at <= applied and not made.voters_outgoing for at, made, _ in configurations):
        future.set_result(None)
