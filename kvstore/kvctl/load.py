"""Puts at a rate, for `kvctl check`: what etcdctl's checks send, and what they say of it."""

import asyncio
import random
from dataclasses import dataclass, field
from statistics import pstdev
from typing import TYPE_CHECKING, Final

from kvstore.client.errors import ClientError
from kvstore.kvctl.failures import usage
from kvstore.kvctl.transfer import Progress

if TYPE_CHECKING:
    from kvstore.client import Client

KEY_BYTES: Final = 256
VALUE_BYTES: Final = 1024
LOADS: Final = {"s": "s", "small": "s", "m": "m", "medium": "m", "l": "l", "large": "l", "xl": "xl", "xlarge": "xl"}


def load_name(text: str) -> str:
    if text not in LOADS:
        raise usage(f"--load={text}: want s, m, l or xl")
    return LOADS[text]


@dataclass(slots=True)
class Outcome:
    """Of one run."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of the puts that were answered
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def slowest(self) -> float:
        return max(self.latencies, default=0.0)

    @property
    def deviation(self) -> float:
        return pstdev(self.latencies) if self.latencies else 0.0


async def put_all(clients: "list[Client]", prefix: bytes, count: int, rate: float, progress: Progress) -> Outcome:
    """`count` puts of random keys, at most `rate` a second (0: no limit), one at a time by each client."""
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    numbers = iter(range(count))
    began = loop.time()

    async def worker(client: "Client") -> None:
        for number in numbers:
            if rate:
                await asyncio.sleep(began + number / rate - loop.time())
            key = prefix + random.randbytes(KEY_BYTES)
            asked = loop.time()
            try:
                await client.put(key, bytes(VALUE_BYTES))
            except ClientError as error:
                outcome.failures[error.message] = outcome.failures.get(error.message, 0) + 1
            else:
                outcome.latencies.append(loop.time() - asked)
            progress.advance()

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(worker(client))
    outcome.seconds = loop.time() - began
    return outcome
