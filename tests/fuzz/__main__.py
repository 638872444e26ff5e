"""`python -m tests.fuzz --port client|peer|gateway --seconds N --seed S`: nothing may crash, hang or leak."""

import argparse
import tempfile
import time
from pathlib import Path

from tests.fuzz.ports import PORTS
from tests.fuzz.target import fuzz, running_target


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--port", choices=sorted(PORTS), default="client")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_target(Path(folder)) as target:
        port = PORTS[options.port](target)
        executions = fuzz(target, port.inputs(), port.send, options.seed, options.seconds)
        port.close()
    print(f"{options.port}: {executions} executions in {time.monotonic() - begin:.0f} s, 0 findings")


if __name__ == "__main__":
    main()
