"""python -m tests.sim.member SEED | FIRST..LAST: the whole member under simulation."""

import sys

from tests.sim.member.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m tests.sim.member"))
