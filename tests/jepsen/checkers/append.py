"""Lists: the longest read of one is its order, and every read is a beginning of it; then the dependencies of
transactions (who wrote what who read, who overwrote it, who ended before whom began) must have no cycle (after
Kingsbury and Alvaro, "Elle", VLDB 2020).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.jepsen.checkers.text import brief
from tests.jepsen.record import Call


@dataclass(eq=False)
class _Txn:
    """A transaction as others see it."""

    call: Call
    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the list before its own appends
    appends: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __repr__(self) -> str:
        return f"#{self.call.process}@{self.call.invoked} {self.call.type} {brief(self.call.value)}"


class _Lists:
    """Who appended what, and in which order."""

    def __init__(self, calls: list[Call]) -> None:
        self.complaints: list[str] = []
        self.txns = [self._txn(call) for call in calls if call.f == "txn"]
        self.writer: dict[tuple[str, int], _Txn] = {}
        self.order: dict[str, tuple[int, ...]] = {}
        for txn in self.txns:
            for key, elements in txn.appends.items():
                self.writer |= {(key, element): txn for element in elements}
            for key, read in txn.reads.items():
                if len(read) > len(self.order.get(key, ())):
                    self.order[key] = read
        for txn in self.txns:
            for key, read in txn.reads.items():
                self._check_read(txn, key, read)
        for key, order in self.order.items():
            self._check_order(key, order)
        self._check_lost()

    def _txn(self, call: Call) -> _Txn:
        txn = _Txn(call)
        for what, key, element in call.value if call.ok else call.asked:
            if what == "append":
                txn.appends[key].append(element)
            elif call.ok:
                own = txn.appends.get(key, [])
                before = tuple(element[: len(element) - len(own)])
                if element[len(before) :] != own or txn.reads.get(key, before) != before:
                    self.complaints.append(f"{key}: not what it had appended or read itself: {txn}")
                txn.reads.setdefault(key, before)
        return txn

    def _check_read(self, txn: _Txn, key: str, read: tuple[int, ...]) -> None:
        if self.order[key][: len(read)] != read if read else False:
            self.complaints.append(f"{key}: {brief(read)} is no beginning of {brief(self.order[key])}: {txn}")
        if read:
            writer = self.writer.get((key, read[-1]))
            if writer is not None and writer.appends[key][-1] != read[-1]:
                self.complaints.append(f"{key}: {read[-1]} read between the appends of {writer}: {txn}")

    def _check_order(self, key: str, order: tuple[int, ...]) -> None:
        if len(set(order)) != len(order):
            self.complaints.append(f"{key}: an element twice in {brief(order)}")
        for element in order:
            writer = self.writer.get((key, element))
            if writer is None:
                self.complaints.append(f"{key}: {element} was never appended")
            elif writer.call.type == "fail":
                self.complaints.append(f"{key}: {element} is there, though it certainly failed: {writer}")

    def _check_lost(self) -> None:
        for (key, element), writer in self.writer.items():
            if writer.call.ok and element not in self.order.get(key, ()):
                self.complaints.append(f"{key}: {element} was acknowledged and is in no read: {writer}")

    def dependencies(self) -> dict[_Txn, set[_Txn]]:
        """Edges to what must come later: overwrote (ww), read from (wr), read what it overwrote (rw)."""
        edges: dict[_Txn, set[_Txn]] = defaultdict(set)

        def edge(one: _Txn | None, other: _Txn | None) -> None:
            if one is not None and other is not None and one is not other:
                edges[one].add(other)

        for key, order in self.order.items():
            for one, other in pairwise(order):
                edge(self.writer.get((key, one)), self.writer.get((key, other)))
        for txn in self.txns:
            for key, read in txn.reads.items():
                order = self.order.get(key, ())
                if read:
                    edge(self.writer.get((key, read[-1])), txn)
                if len(read) < len(order):
                    edge(txn, self.writer.get((key, order[len(read)])))
        return edges


def check_append(calls: list[Call]) -> list[str]:
    lists = _Lists(calls)
    if lists.complaints:
        return lists.complaints  # without an order there are no dependencies
    graph: dict[object, set[object]] = defaultdict(set)
    for txn, others in lists.dependencies().items():
        graph[txn] |= others
    _real_time(lists.txns, graph)
    return [
        f"a cycle of {len(cycle)}: {' | '.join(map(repr, cycle[:6]))}"
        for component in _components(graph)
        if len(cycle := [one for one in component if isinstance(one, _Txn)]) > 1
    ]


def _real_time(txns: list[_Txn], graph: dict[object, set[object]]) -> None:
    """Who ended before whom began, by way of a chain of moments: an edge each instead of one for every pair."""
    events = sorted(
        [(txn.call.invoked, 1, number) for number, txn in enumerate(txns)]
        + [(txn.call.returned, 0, number) for number, txn in enumerate(txns) if txn.call.ok]
    )
    moment: object = "start"
    for time, begins, number in events:
        if begins:
            graph[moment].add(txns[number])
        else:
            after = (time, number)
            graph[moment].add(after)
            graph[txns[number]].add(after)
            moment = after


def _components(graph: dict[object, set[object]]) -> Iterable[list[object]]:
    """Strongly connected ones (Tarjan 1972), without recursion."""
    number: dict[object, int] = {}
    low: dict[object, int] = {}
    stack: list[object] = []
    on_stack: set[object] = set()
    for root in list(graph):
        if root in number:
            continue
        work = [(root, iter(graph.get(root, ())))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, others = work[-1]
            for other in others:
                if other not in number:
                    number[other] = low[other] = len(number)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(graph.get(other, ()))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], number[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component = []
                    while not component or component[-1] is not node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    yield component
