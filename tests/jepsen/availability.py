"""python -m tests.jepsen.availability: how long no write is acknowledged when the leader is lost, beside a real etcd.

Each round is a run of `make jepsen` for each fault and either server, one behind the other, so that a slow minute of
the machine hits both. The faults last long enough that another leader must be elected. Results accumulate in
tests/jepsen/recorded/availability.json, by server, commit and fault; docs/JEPSEN.md has the table.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.jepsen.apart import RECORDED, HarnessFailedError, row, run, write_table
from tests.jepsen.backends import AUTO, BACKENDS
from tests.jepsen.guard import ROOT
from tests.jepsen.report import commit, quantiles
from tests.jepsen.run import SERVERS

RESULTS = RECORDED / "availability.json"
FOLDER = ROOT / "build" / "jepsen" / "availability"
FAULTS = ("kill-leader", "isolate-leader", "pause-leader")
FAULT_SECONDS = "4,6"
SEED_FIRST = 1000  # so that no round repeats one of the matrix

Gaps = dict[str, dict[str, list[float]]]  # by server and commit, by fault


def load() -> Gaps:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(gaps: Gaps) -> None:
    RECORDED.mkdir(exist_ok=True)
    lines = [
        f" {json.dumps(server)}: {{\n"
        + ",\n".join(f"  {json.dumps(fault)}: {json.dumps(found)}" for fault, found in by_fault.items())
        + "\n }"
        for server, by_fault in gaps.items()
    ]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(gaps: Gaps) -> str:
    rows = [
        row(["lost", "server", "times", "p50", "p90", "p99", "max"]),
        row(["---", "---", *["---:"] * 5]),
    ]
    for fault in FAULTS:
        for server, by_fault in gaps.items():
            if found := sorted(by_fault.get(fault, [])):
                took = quantiles(found)
                took["p90"] = found[min(len(found) - 1, len(found) * 9 // 10)]
                numbers = [f"{took['count']}", *(f"{took[which]:.2f}" for which in ("p50", "p90", "p99", "max"))]
                rows.append(row([f"`{fault}`", server, *numbers]))
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jepsen.availability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="some eight faults of each kind, and eight minutes, each")
    parser.add_argument("--time", type=float, default=60.0, help="seconds of a run")
    parser.add_argument("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    given = parser.parse_args(arguments)
    names = {server: server if server == "etcd" else f"{server} {commit()}" for server in SERVERS}
    for number in range(given.rounds):
        for fault in FAULTS:
            for server, name in names.items():
                seed = SEED_FIRST + number
                flags = {"nemesis": fault, "seed": seed, "server": server, "fault_seconds": FAULT_SECONDS}
                try:
                    report = run(FOLDER / f"{server}-{fault}", given.time, backend=given.backend, **flags)
                except HarnessFailedError as error:
                    print(f"HARNESS   {server} {fault}: {error}", flush=True)
                    return 2
                gaps = load()
                found = [one["unavailable"] for one in report["faults"]]
                gaps.setdefault(name, {}).setdefault(fault, []).extend(found)
                save(gaps)
                print(f"{fault:<16} {server:<8} {' '.join(f'{gap:.2f}' for gap in found)}", flush=True)
    print(table(load()))
    write_table("availability", table(load()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
