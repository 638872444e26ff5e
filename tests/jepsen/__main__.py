"""python -m tests.jepsen: one run under faults, judged. One line per verdict; history and report below --out.

Exit code 0: all verdicts pass. 1: some do not. 2: the harness failed, nothing is known. 3: this machine cannot.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from tests.jepsen.backends import AUTO, BACKENDS, choose
from tests.jepsen.breaking import FAULT_SECONDS
from tests.jepsen.engine import EngineError
from tests.jepsen.faults import FAULTS, NEMESES
from tests.jepsen.guard import ROOT
from tests.jepsen.network import NetworkError
from tests.jepsen.probe import describe, probe
from tests.jepsen.run import SERVERS, HarnessError, Options, Run
from tests.jepsen.workloads import WORKLOADS

HARNESS_FAILED, CANNOT = 2, 3


def nemeses(text: str) -> tuple[str, ...]:
    names = tuple(FAULTS) if text == "all" else tuple(name for name in text.split(",") if name not in {"", "none"})
    for name in names:
        if name not in NEMESES:
            raise argparse.ArgumentTypeError(f"no {name}: all, none, or some of {', '.join(NEMESES)}")
    return names


def bounds(text: str) -> tuple[float, float]:
    least, most = map(float, text.split(","))
    return least, most


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jepsen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=[AUTO, *BACKENDS], default=AUTO, help="auto: the first that can run")
    parser.add_argument("--workload", choices=list(WORKLOADS), default="register")
    parser.add_argument("--nemesis", type=nemeses, default="all", help=f"all, none, or some of {','.join(NEMESES)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--time", type=float, default=60.0, help="seconds under faults")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--clients", type=int, default=15)
    parser.add_argument("--rate", type=float, default=300.0, help="operations a second, of all clients together")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "jepsen")
    parser.add_argument("--fault-seconds", type=bounds, default=FAULT_SECONDS, help="of a fault: LEAST,MOST")
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    parser.add_argument("--probe", action="store_true", help="only say what this machine can do")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    found = probe()
    print(f"this machine can do:\n{describe(found)}", flush=True)
    if given.probe:
        return 0
    backend = choose(given.backend, found)
    if backend is None:
        return CANNOT
    options = Options(
        given.workload,
        given.nemesis,
        given.seed,
        given.time,
        given.members,
        given.clients,
        given.rate,
        backend,
        server=given.server,
        fault_seconds=given.fault_seconds,
    )
    other = "" if given.server == SERVERS[0] else f"{given.server}-"
    path = given.out / f"{other}{given.workload}-{given.seed}"
    try:
        code = Run(options, path).run()
    except (HarnessError, NetworkError, EngineError, AssertionError, subprocess.TimeoutExpired) as error:
        print(f"HARNESS   {type(error).__name__}: {error}")
        return HARNESS_FAILED
    print(f"{'pass' if code == 0 else 'FAIL'}: {options.command}\n{path}/report.html")
    return code


if __name__ == "__main__":
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where a shell has told its background jobs to ignore the first
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
