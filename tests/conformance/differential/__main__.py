"""Compare us with a real etcd for as long as you like: `python -m tests.conformance.differential --seconds 600`.

Every seed is a case (generator.py). A case that differs is shrunk and printed, and the search goes on; the exit
code is 1 when there was one. `--judge` says which etcd, `--members 3` asks a follower of three of our members.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import grpc

from tests.conformance.differential import record
from tests.conformance.differential.generator import HOW_OFTEN, Generator
from tests.conformance.differential.servers import JUDGES, running_pair
from tests.conformance.differential.shrink import report


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.conformance.differential", description=__doc__.splitlines()[0])
    parser.add_argument("--judge", choices=list(JUDGES), default="3.5.1")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--cases", type=int, default=1_000_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--theme", choices=list(HOW_OFTEN), help="cases of this kind only")
    parser.add_argument("--members", type=int, choices=(1, 3), default=1)
    parser.add_argument("--jwt", action="store_true", help="tokens are JWTs, which know their auth revision")
    parser.add_argument("--record", action="store_true", help="add the result to docs/DIFFERENTIAL.md")
    options = parser.parse_args()
    commit = record.commit() if options.record else ""
    begin = time.monotonic()
    deadline = begin + options.seconds
    cases = differences = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        running_pair(Path(folder), options.members, options.judge, jwt=options.jwt) as pair,
    ):
        for seed in range(options.seed, options.seed + options.cases):
            if time.monotonic() > deadline:
                break
            cases += 1
            try:
                found = report(pair, Generator(seed, pair.served, options.members, options.theme).case())
            except grpc.RpcError as error:
                print(f"=== seed {seed}: the search ends, as a side does not answer: {error}", flush=True)
                break
            if found:
                differences += 1
                print(f"=== seed {seed}\n{found}", flush=True)
    print(pair.coverage.report(options.judge))
    print(
        f"{cases} cases from seed {options.seed}, {pair.coverage.operations} operations compared with etcd"
        f" {options.judge}, {differences} cases differ"
    )
    if options.record:
        run = {"commit": commit, "judge": options.judge, "members": options.members, "cases": cases}
        run["kind"] = record.RANDOM
        run |= {"operations": pair.coverage.operations, "differences": differences}
        record.add({**run, "seconds": round(time.monotonic() - begin)}, pair.coverage)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
