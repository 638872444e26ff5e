"""What clients asked and heard, and whether one register for each key could have answered so.

Two checkers. The first works while the history grows, by the order of the log: a write or a read that
began after another one was acknowledged must lie behind it. The second is blind to the log: it searches
for an order of all operations on a register in which each takes effect between its call and its answer
(linearizability; the search of Wing and Gong with Lowe's memory of what was tried).
"""

from typing import Final, final

from raft.types import Index

READ: Final = "read"
WRITE: Final = "write"
SWAP: Final = "swap"  # compare-and-set

_NEVER: Final = 2**62


@final
class Operation:
    __slots__ = ("expected", "index", "kind", "needed", "number", "register", "result", "returned", "started", "value")

    def __init__(self, number: int, kind: str, register: int, value: int, expected: int | None) -> None:
        self.number = number
        self.kind = kind
        self.register = register
        self.value = value  # to write; unique
        self.expected = expected
        self.started = 0  # order among all calls and answers, not time: two events never share it
        self.returned = _NEVER  # never: nobody knows whether it took effect
        self.needed: Index = 0  # what was committed or acknowledged when it began
        self.index: Index = 0  # where it took effect, or where a read was confirmed
        self.result = 0  # what the register held before

    def __repr__(self) -> str:
        what = {READ: "", WRITE: f" {self.value}", SWAP: f" {self.expected} -> {self.value}"}[self.kind]
        answer = f"= {self.result} at {self.index}" if self.returned != _NEVER else "?"
        return f"#{self.number} {self.kind} r{self.register}{what} {answer}"


@final
class History:
    def __init__(self) -> None:
        self.answered_count = 0
        self.unknown = 0
        self.refused_count = 0
        self.acknowledged: Index = 0  # the highest index of an answered write
        self._order = 0
        self._registers: dict[int, list[Operation]] = {}

    def begin(self, operation: Operation, committed: Index) -> None:
        """`committed`: the highest index that any node has committed."""
        operation.started = self._next()
        operation.needed = committed if operation.kind == READ else self.acknowledged
        self._registers.setdefault(operation.register, []).append(operation)

    def refused(self, operation: Operation) -> None:
        """It was certainly not done."""
        self.refused_count += 1
        self._registers[operation.register].remove(operation)

    def lost(self, operation: Operation) -> None:
        """Nobody will answer it any more. A write may have taken effect, or still do so."""
        self.unknown += 1
        if operation.kind == READ:
            self._registers[operation.register].remove(operation)

    def written(self, operation: Operation, index: Index, result: int) -> None:
        assert index > operation.needed, f"{operation} took effect at {index}, before {operation.needed} was answered"
        operation.index = index
        operation.result = result
        operation.returned = self._next()
        self.acknowledged = max(self.acknowledged, index)
        self.answered_count += 1

    def confirmed(self, operation: Operation, index: Index) -> None:
        assert index >= operation.needed, (
            f"stale read: {operation} may run at {index}, {operation.needed} was committed before it began"
        )
        operation.index = index

    def answered(self, operation: Operation, result: int) -> None:
        operation.result = result
        operation.returned = self._next()
        self.answered_count += 1

    def check(self) -> None:
        """Every register is linearizable."""
        for register, operations in self._registers.items():
            assert linearizable(operations), f"register {register} is not linearizable: {operations}"

    def _next(self) -> int:
        self._order += 1
        return self._order


def linearizable(operations: list[Operation]) -> bool:
    """Whether an order exists in which a register that starts at 0 gives these answers."""
    relevant = _relevant(operations)
    relevant.sort(key=_start)
    return _search(relevant, _due(relevant), _observers(relevant))


def _relevant(operations: list[Operation]) -> list[Operation]:
    """Without the writes that were never answered and can be left out of any order.

    What stands right behind such a write has seen its value: an answered operation says so in its result, and else
    it is a swap that expects it and is itself relevant. Anything else would do as well without the write.
    """
    relevant = [operation for operation in operations if operation.returned != _NEVER]
    writers = {o.value: o for o in operations if o.returned == _NEVER and o.kind != READ}
    seen = [operation.result for operation in relevant]
    while seen:
        writer = writers.pop(seen.pop(), None)
        if writer is not None:
            relevant.append(writer)
            if writer.expected is not None:
                seen.append(writer.expected)
    return relevant


def _due(operations: list[Operation]) -> list[int]:
    """By when each must have taken effect: answered, or its value (nobody else writes it) told in an answer."""
    told: dict[int, int] = {}
    for operation in operations:
        told[operation.result] = min(told.get(operation.result, _NEVER), operation.returned)
    return [
        operation.returned if operation.returned != _NEVER else told.get(operation.value, _NEVER)
        for operation in operations
    ]


def _observers(operations: list[Operation]) -> dict[int, int]:
    """For each value, the set of operations that were told it. No value comes twice: all of them stand behind it
    and before whatever changes it."""
    found: dict[int, int] = {}
    for i, operation in enumerate(operations):
        if operation.returned != _NEVER:
            found[operation.result] = found.get(operation.result, 0) | 1 << i
    return found


def _start(operation: Operation) -> int:
    return operation.started


def _search(operations: list[Operation], due: list[int], observers: dict[int, int]) -> bool:
    """Depth first over sets of operations that have taken effect; each (set, value) is tried once."""
    needed = sum([1 << i for i, by in enumerate(due) if by != _NEVER])
    tried = {(0, 0)}
    stack = [(0, 0)]
    while stack:
        done, value = stack.pop()
        if done & needed == needed:
            return True
        left = observers.get(value, 0) & ~done  # told this value, and still to come
        for state in _next_states(operations, due, done, value):
            if state[1] != value and left & ~state[0]:
                continue  # they would never see it again
            if state not in tried:
                tried.add(state)
                stack.append(state)
    return False


def _next_states(operations: list[Operation], due: list[int], done: int, value: int) -> list[tuple[int, int]]:
    """Every way to let one more operation take effect."""
    found = []
    deadline = _NEVER
    position = ((done + 1) & ~done).bit_length() - 1  # the first that is not done
    for i in range(position, len(operations)):
        operation = operations[i]
        if operation.started > deadline:
            break  # something that is not done had to be before this one began
        if done >> i & 1:
            continue
        deadline = min(deadline, due[i])
        after = _effect(operation, value)
        if after == value and operation.returned != _NEVER:
            # It fits here and changes nothing: wherever an order has it later, it could be here as well.
            return [(done | 1 << i, value)]
        if after is not None and after != value:
            found.append((done | 1 << i, after))
    return found


def _effect(operation: Operation, value: int) -> int | None:
    """The register after `operation` on `value`; None when its answer would have been another."""
    known = operation.returned != _NEVER
    if known and operation.result != value:
        return None
    if operation.kind == READ:
        return value
    if operation.kind == SWAP and operation.expected != value:
        return value
    return operation.value
