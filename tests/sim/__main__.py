"""python -m tests.sim SEED | FIRST..LAST: the simulator, from a check-out."""

import sys

from raft.testing.sim.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m tests.sim"))
