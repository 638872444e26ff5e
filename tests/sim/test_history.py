"""The search for a linearization against one that tries every order, on small random histories, true and false."""

import random
from itertools import combinations, permutations

from raft.testing.sim.history import READ, SWAP, WRITE, Operation, linearizable


def draw(rng: random.Random) -> list[Operation]:
    """What a real register answers to overlapping calls; some are never answered, some answers are lies."""
    value = order = number = 0
    written, calls, history = [0], [], []
    taken: dict[int, int] = {}  # call -> what the register held when it took effect
    for _ in range(rng.randint(4, 16)):
        chance = rng.random()
        if chance < 0.5 and number < 5:
            number += 1
            kind = rng.choice([READ, WRITE, WRITE, SWAP])
            call = Operation(number, kind, 0, number, rng.choice(written[-3:]) if kind == SWAP else None)
            if kind != READ:
                written.append(number)
            order += 1
            call.started = order
            calls.append(call)
            history.append(call)
        elif chance < 0.75 and calls:
            call = rng.choice(calls)
            if call.number not in taken:
                taken[call.number] = value
                if call.kind == WRITE or (call.kind == SWAP and call.expected == value):
                    value = call.value
        elif calls:
            call = rng.choice(calls)
            if call.number in taken:
                calls.remove(call)
                order += 1
                call.returned = order
                call.result = rng.choice(written) if rng.random() < 0.3 else taken[call.number]
    return [one for one in history if one not in calls or one.kind != READ]


def every_order(history: list[Operation]) -> bool:
    answered = [one for one in history if one.returned < 2**62]
    unknown = [one for one in history if one.returned == 2**62]
    for count in range(len(unknown) + 1):
        for kept in combinations(unknown, count):
            if any(fits(order) for order in permutations([*answered, *kept])):
                return True
    return False


def fits(order: tuple[Operation, ...]) -> bool:
    value = latest = 0
    for one in order:
        if one.returned < latest or (one.returned < 2**62 and one.result != value):
            return False
        latest = max(latest, one.started)
        if one.kind == WRITE or (one.kind == SWAP and one.expected == value):
            value = one.value
    return True


def test_the_search_finds_an_order_exactly_when_there_is_one() -> None:
    rng = random.Random(1)
    verdicts = []
    for _ in range(4000):
        history = draw(rng)
        verdicts.append(every_order(history))
        assert linearizable(list(history)) == verdicts[-1], [(one, one.started, one.returned) for one in history]
    assert min(verdicts.count(True), verdicts.count(False)) > 50
