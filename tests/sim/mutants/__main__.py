"""python -m tests.sim.mutants [NAME...]: puts each known bug back into a copy of the code, and looks for a seed.

    --last N     give up on a mutant after seed N (200; at the member's level 60)
    --fresh      forget what an earlier run has found; without it, only what has changed is run again

Results are kept in build/mutants.json, by the contents of the code and of the mutant.
"""

import argparse
import json
import sys
from hashlib import sha256

from tests.sim.mutants.mutant import ROOT, Found, hunt, load_all

RESULTS = ROOT / "build" / "mutants.json"
FOLDERS = {"raft": ["raft"], "member": ["raft", "kvstore", "tests/sim/member"]}  # what a result depends on, by level
LAST = {"raft": 200, "member": 60}


def source_of(level: str) -> str:
    files = [path for folder in FOLDERS[level] for path in sorted((ROOT / folder).rglob("*.py"))]
    return sha256(b"".join([path.read_bytes() for path in files])).hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose names begin so")
    parser.add_argument("--last", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args(arguments)
    mutants = [m for m in load_all() if not options.names or m.name.startswith(tuple(options.names))]
    known: dict[str, list[object]] = {}
    if RESULTS.exists() and not options.fresh:
        known = json.loads(RESULTS.read_text())
    sources = {level: source_of(level) for level in FOLDERS}
    caught = 0
    for mutant in mutants:
        key = f"{sources[mutant.level]} {mutant.digest}"
        if key in known:
            found = Found(*known[key])  # type: ignore[arg-type]
        else:
            found = hunt(mutant, options.last or LAST[mutant.level])
            if found.seed:
                known[key] = list(found)
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(known, indent=1))
        caught += bool(found.seed)
        verdict = f"seed {found.seed:<4} {found.seconds:5.1f} s" if found.seed else "NOT CAUGHT       "
        print(f"{verdict}  {mutant.name:<46} {found.violation[:90]}", flush=True)
    print(f"{caught} of {len(mutants)} caught")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
