"""The clients, a process in a namespace of its own: `python -m tests.jepsen.worker SPEC`, SPEC a JSON object.

It works until a line comes on stdin, then reads everything a last time, and ends. The end of stdin ends it at once.
"""

import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.client.errors import ClientError
from tests.e2e.history import Endpoint
from tests.jepsen.record import Writer
from tests.jepsen.workloads import WORKLOADS
from tests.jepsen.workloads.base import FINAL_SECONDS, Client


async def run(spec: dict[str, Any]) -> int:
    workload = WORKLOADS[spec["workload"]]()
    endpoints = [Endpoint(name, target) for name, target in spec["members"].items()]
    stopping = asyncio.Event()
    count = spec["clients"] * workload.patient
    loop = asyncio.get_running_loop()
    with Path(spec["history"]).open("w") as file:
        writer = Writer(file)
        clients = [Client(number, count, endpoints, writer) for number in range(count)]
        working = [
            loop.create_task(
                workload.work(client, random.Random(f"{spec['seed']}/{number}"), count / spec["rate"], stopping)
            )
            for number, client in enumerate(clients)
        ]
        others = [loop.create_task(one) for one in workload.others(endpoints, writer, spec["seed"])]
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return 1
        stopping.set()
        await asyncio.gather(*working)
        deadline = time.monotonic() + FINAL_SECONDS
        done = False
        while not done and time.monotonic() < deadline:
            with suppress(grpc.aio.AioRpcError, ClientError):
                done = await workload.final(clients[0])
        _, late = await asyncio.wait(others, timeout=FINAL_SECONDS) if others else ((), ())
        for client in clients:
            await client.close()
        for endpoint in endpoints:
            await endpoint.channel.close(None)
        for task in late:
            task.cancel()
        return 0 if done and not late else 2


if __name__ == "__main__":
    sys.exit(asyncio.run(run(json.loads(sys.argv[1]))))
