"""Which faults this machine can do. Every capability is tried, not guessed from a version or a file.

`probe()` gives each capability's name and the reason why it is missing ("" when it is there).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.jepsen import network, packets
from tests.jepsen.disk import Disk
from tests.jepsen.engine import lacking
from tests.jepsen.faults.clocks import LIBRARY
from tests.jepsen.faults.versions import older_commit

SECONDS_MAX = 10.0


def _run(command: str) -> str:
    """The reason why the command failed; "" when it did not."""
    words = command.split()
    if shutil.which(words[0]) is None:
        return f"no {words[0]} on the PATH"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        return f"{words[0]} does not end"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"{words[0]} fails with {done.returncode}"])[0]


def _packet_queue() -> str:
    try:
        packets.queue().close()
    except OSError as error:
        return str(error)
    return ""


def _disk_image() -> str:
    """An ext4 in a file can be mounted, loses what was not synced, and hangs when it is told to."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder) / "kjprobe.img", Path(folder) / "mounted")
        try:
            disk.make()
        except (OSError, network.NetworkError) as error:
            return str(error)
        try:
            disk.freeze()
            disk.thaw()
            disk.shut_down()
        except (OSError, network.NetworkError) as error:
            return str(error)
        finally:
            disk.unmount()
    return ""


def _older_build() -> str:
    try:
        older_commit()
    except OSError as error:
        return str(error)
    return ""


def _faked_clock() -> str:
    if LIBRARY is None:
        return "not installed (Debian: libfaketime)"
    moved = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={**os.environ, "LD_PRELOAD": str(LIBRARY), "FAKETIME": "+1000000"},
        capture_output=True,
        text=True,
        check=False,
    )
    shown = float(moved.stdout or 0) - time.time()
    return "" if shown > 900_000 else f"a clock that is set ahead shows {shown:.0f} s more"


def probe() -> dict[str, str]:
    """By capability: "" or why not. Needs some 200 ms; leaves nothing behind."""
    found = {"docker engine": lacking()}
    found["strace inject"] = _run("strace -qq -o /dev/null -e inject=fsync:retval=0 true")
    found["disk image"] = _disk_image() if os.geteuid() == 0 else "not root"
    found["libfaketime"] = _faked_clock()
    found["older build"] = _older_build()
    rest = ("ip netns", "bridge", "veth", "iptables DROP", "iptables REJECT", "random loss", "packet queue")
    if os.geteuid() != 0:
        return found | dict.fromkeys(rest, "not root")
    name = f"kjprobe{uuid.uuid4().hex[:6]}"
    found["ip netns"] = _run(f"ip netns add {name}")
    if found["ip netns"]:
        return found | dict.fromkeys(rest, "no namespaces")
    inside = f"ip netns exec {name}"
    rule = f"{inside} iptables -w -A INPUT -s 198.18.255.1"
    try:
        found["bridge"] = _run(f"{inside} ip link add bridge0 type bridge")
        found["veth"] = _run(f"{inside} ip link add veth0 type veth peer name veth1")
        found["iptables DROP"] = _run(f"{rule} -j DROP")
        found["iptables REJECT"] = _run(f"{rule} -j REJECT")
        found["random loss"] = _run(f"{rule} -m statistic --mode random --probability 0.5 -j DROP")
        found["packet queue"] = _run(f"{rule} -j NFQUEUE") or _packet_queue()
    finally:
        _run(f"ip netns del {name}")
    return found


NETNS = ("ip netns", "bridge", "veth", "iptables DROP", "iptables REJECT")  # without these the backend cannot run
BACKENDS = {"docker": ("docker engine", *NETNS), "netns": NETNS}  # what each needs; the first is preferred


def missing(needed: tuple[str, ...], found: dict[str, str]) -> str:
    """What of `needed` this machine cannot do, and why; "" when it can do all."""
    return "; ".join(f"{name}: {found[name]}" for name in needed if found[name])


def describe(found: dict[str, str]) -> str:
    return "\n".join(f"  {name:<16} {'yes' if not why else f'NO: {why}'}" for name, why in sorted(found.items()))
