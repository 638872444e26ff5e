"""Second opinions, from generators that nobody here wrote: h2load (Debian: nghttp2-client), etcdctl check perf."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
from typing import Final

from bench.channel import framed
from bench.clusters import BIN, cpu_seconds
from bench.measure import Numbers, RefusedError, Scene
from bench.messages import PUT, RANGE, VALUE_BYTES, field

H2LOAD_HELP: Final = "h2load is not installed (Debian: apt install nghttp2-client)"
UNIT_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}
PERF_SECONDS: Final = 180.0


class NotInstalledError(Exception):
    """The tool of this row is absent; the text says how to get it."""


async def run(*command: str, seconds: float) -> tuple[int, str]:
    """Exit code and output. The process group ends with us."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


async def h2load(scene: Scene, *, put: bool, connections: int = 100, each: int = 10) -> Numbers:
    """The same request again and again: h2load knows no keys. It ignores grpc-status, so the revision is compared."""
    tool = shutil.which("h2load")
    if tool is None:
        raise NotInstalledError(H2LOAD_HELP)
    count = scene.effort.h2load
    key = scene.keys.prefix + b"h2load"
    message = field(1, key) + (field(2, b"v" * VALUE_BYTES) if put else b"")
    if not put:
        await scene.members.ask(scene.leader, PUT, field(1, key) + field(2, b"v" * VALUE_BYTES))
    with tempfile.NamedTemporaryFile(prefix="bench-body-") as body:
        body.write(framed(message))
        body.flush()
        before, cpu = await scene.state(), cpu_seconds(scene.members.pids)
        code, output = await run(
            *(tool, "-n", str(count), "-c", str(connections), "-m", str(each), "-t", "1", "-d", body.name),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            scene.leader_url + (PUT if put else RANGE),
            seconds=PERF_SECONDS,
        )
        cpu, after = cpu_seconds(scene.members.pids) - cpu, await scene.state()
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    succeeded = re.search(r"(\d+) succeeded", output)
    sizes = re.search(r"\((\d+)\) data", output)
    mean = re.search(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s)", output)
    if code or not (rate and succeeded and sizes and mean) or int(succeeded[1]) != count:
        raise RefusedError(f"h2load failed:\n{output}")
    moved = after.revision - before.revision
    if moved != (count if put else 0):
        raise RefusedError(f"the revision moved by {moved} where h2load counts {count} successes")
    if not put and int(sizes[1]) < count * VALUE_BYTES:
        raise RefusedError(f"h2load got {sizes[1]} bytes for {count} gets: not all can hold the value")
    return {"rate": float(rate[1]), "mean_ms": float(mean[1]) * UNIT_MS[mean[2]], "cpu_us": cpu / count * 1e6}


async def check_perf(scene: Scene, *, load: str) -> Numbers:
    """etcd's own judgement over a minute at a rate that it sets: PASS or FAIL, and the slowest request."""
    before = await scene.state()
    code, output = await run(
        *(str(BIN / "etcdctl"), f"--endpoints={','.join(scene.members.urls)}", "check", "perf", f"--load={load}"),
        seconds=PERF_SECONDS,
    )
    rate = re.search(r"Throughput (?:is|too low:) (\d+) writes/s", output)
    slowest = re.search(r"Slowest request took (?:too long: )?([\d.]+)s", output)
    deviation = re.search(r"Stddev (?:is|too high:) ([\d.]+)s", output)
    if not (rate and slowest and deviation):
        raise RefusedError(f"etcdctl check perf ended with {code}:\n{output[-2000:]}")
    moved = (await scene.state()).revision - before.revision
    if moved < int(rate[1]):
        raise RefusedError(f"the revision moved by {moved} only")
    return {
        "rate": float(rate[1]),
        "slowest_ms": float(slowest[1]) * 1000,
        "stddev_ms": float(deviation[1]) * 1000,
        "passed": code == 0,
    }
