"""Do both systems put a write on disk before they answer? Their system calls are counted once, with strace.

One client puts, one call at a time, so that no two writes that are answered can share a call. An answer that a quorum
has synced needs at least one fdatasync (or fsync, or a write with RWF_DSYNC) on two of three members.
"""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Final

from bench.channel import dial
from bench.measure import Numbers, RefusedError, Scene
from bench.messages import PUT

PUTS: Final = 200
SYNCS: Final = re.compile(r"\b(fdatasync|fsync|sync_file_range|msync|pwritev2\(.*RWF_D?SYNC)")
CALLS: Final = "trace=fdatasync,fsync,msync,sync_file_range,pwritev2"
ATTACH_SECONDS: Final = 10.0


async def count(scene: Scene) -> Numbers:
    """Syncs per put, of all members together."""
    strace = shutil.which("strace")
    if strace is None:
        raise RefusedError("strace is not installed (Debian: apt install strace)")
    logs = [scene.members.data_dir(number).with_suffix(".strace") for number in range(scene.members.size)]
    # -y shows the files' names, -f follows threads; waiting for the attach message means that all of them are traced.
    tracers = [
        await asyncio.create_subprocess_exec(
            *(strace, "-f", "-y", "-e", CALLS, "-o", str(log), "-p", str(pid)),
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        for log, pid in zip(logs, scene.members.pids, strict=True)
    ]
    try:
        for tracer in tracers:
            assert tracer.stderr is not None
            line = await asyncio.wait_for(tracer.stderr.readline(), ATTACH_SECONDS)
            if b"attached" not in line:
                raise RefusedError(f"strace cannot attach: {line.decode().strip()}")
        channel = await dial(scene.leader_url, scene.members.context)
        put = scene.keys.put()
        for _ in range(PUTS):
            await channel.ask(PUT, put.message())
        await channel.close()
    finally:
        for tracer in tracers:
            if tracer.returncode is None:
                tracer.terminate()
                await tracer.wait()
    found = [_syncs(log) for log in logs]
    due = PUTS * (scene.members.size // 2 + 1)
    if sum(found) < due:
        raise RefusedError(f"{PUTS} puts were answered with {found} syncs by the members: a quorum's are {due}")
    return {"syncs_per_put": sum(found) / PUTS, "syncs": found}


def _syncs(log: Path) -> int:
    return sum(
        1 for line in log.read_text(errors="replace").splitlines() if SYNCS.search(line) and "resumed" not in line
    )
