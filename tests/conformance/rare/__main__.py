"""Tell every story to an etcd and to us: `python -m tests.conformance.rare --judge 3.4.23 --record`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.conformance.differential import record
from tests.conformance.differential.coverage import Coverage
from tests.conformance.differential.servers import JUDGES
from tests.conformance.rare.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.conformance.rare", description=__doc__.splitlines()[0])
    parser.add_argument("--judge", choices=list(JUDGES), default="3.5.1")
    parser.add_argument("--only", default="", help="stories whose name has this")
    parser.add_argument("--record", action="store_true", help="add the result to docs/DIFFERENTIAL.md")
    options = parser.parse_args()
    commit = record.commit() if options.record else ""
    begin = time.monotonic()
    whole, differences, told, missed = Coverage(), 0, 0, 0
    for scenario in SCENARIOS:
        if options.only not in scenario.name:
            continue
        told += 1
        with tempfile.TemporaryDirectory() as folder:
            coverage, different = scenario.compare(Path(folder), options.judge)
        lacking = scenario.lacking(coverage, options.judge)
        print(f"{scenario.name}: {dict(coverage.errors)}, allowed: {dict(coverage.excused)}", flush=True)
        print(*[f"  differs: {one}" for one in different], *[f"  not said: {one}" for one in lacking], sep="\n")
        whole.add(coverage.as_json())
        differences += bool(different)
        missed += bool(lacking)
    print(f"{told} stories, {whole.operations} answers compared with etcd {options.judge}, {differences} differ")
    if options.record:
        run = {"commit": commit, "judge": options.judge, "kind": record.STORIES, "members": 3, "cases": told}
        run |= {"operations": whole.operations, "differences": differences}
        record.add({**run, "seconds": round(time.monotonic() - begin)}, whole)
    return 1 if differences or missed else 0


if __name__ == "__main__":
    sys.exit(main())
