"""python -m tests.jepsen.mutants [NAME...]: puts known bugs back into real members, one by one. Each must be seen
within five minutes, and the same run of the server as it is must pass.

    --fresh      forget what an earlier run has found; without it, only what this commit has not run is run
    --table      write what is known of this commit to docs/JEPSEN.md

Results are kept in build/jepsen/mutants.json, by commit; those of a tree with changes are not believed later.
"""

import argparse
import json
import sys
from dataclasses import asdict

from tests.jepsen.guard import ROOT
from tests.jepsen.mutants.case import SECONDS_MAX, Found, check, read_cases
from tests.jepsen.probe import NETNS, missing, probe
from tests.jepsen.report import SERVER_CODE, commit

FOLDER = ROOT / "build" / "jepsen"
RESULTS = FOLDER / "mutants.json"
DOCUMENT = ROOT / "docs" / "JEPSEN.md"
BEGIN, END = "<!-- mutants: made by `make jepsen-mutants ARGS=--table` -->", "<!-- end of mutants -->"
CODE = (*SERVER_CODE, "tests/jepsen", "tests/e2e", "tests/sim/mutants")  # what a result depends on
CANNOT = 3


def table(known: dict[str, Found]) -> str:
    rows = [
        f"Server of commit {commit()}, three members.\n",
        "| mutant | run | seen | by |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in sorted(known.items()):
        seen = f"{found.seconds:.0f} s" if found.seed else "NOT SEEN"
        options = found.command.removeprefix("make jepsen BACKEND=netns ")
        rows.append(f"| `{name}`: {found.bug} | `{options}` | {seen} | {found.verdict} |")
    return "\n".join(rows)


def write_table(known: dict[str, Found]) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(known)}\n\n{END}{rest.partition(END)[2]}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jepsen.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only mutants whose names begin so")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    if why := missing(NETNS, probe()):
        print(f"SKIPPED   backend netns: {why}")
        return CANNOT
    at = commit(CODE)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known: dict[str, Found] = {}
    if not (options.fresh or at.endswith("+")):
        known = {name: Found(**found) for name, found in kept.get(at, {}).items()}
    cases = [case for case in read_cases() if not options.names or case.name.startswith(tuple(options.names))]
    good = 0
    for case in cases:
        if case.name not in known:
            known[case.name] = check(case, FOLDER / "mutants" / case.name)
            kept[at] = {name: asdict(found) for name, found in known.items()}
            RESULTS.write_text(json.dumps(kept, indent=1))
        found = known[case.name]
        verdict = f"seed {found.seed} {found.seconds:5.1f} s" if found.seed else "NOT SEEN      "
        sound = "" if found.sound == "pass" else f"THE SERVER AS IT IS: {found.sound} "
        print(f"{verdict}  {case.name:<34} {sound}{found.verdict}: {found.complaint[:90]}", flush=True)
        good += bool(found.seed) and found.seconds <= SECONDS_MAX and not sound
    print(f"{good} of {len(cases)} seen, and the server as it is passes")
    if options.table:
        write_table(known)
    return 0 if good == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
