"""Record the transcripts from a real etcd: `python -m tests.conformance.record`.

Writes recorded/etcdctl-<version>/<script>.txt. Run it after a change of a script, and commit only what you can explain.
"""

import sys
import tempfile
from pathlib import Path

from tests.conformance.etcd import BIN, running_etcd
from tests.conformance.session import Session

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "scripts").glob("*.txt"))
# etcdctl 3.5 is a development dependency; 3.4 is Debian's etcd-client.
ETCDCTLS = {"etcdctl-3.5": BIN / "etcdctl", "etcdctl-3.4": Path("/usr/bin/etcdctl")}


def record(folder: Path) -> None:
    """Play every script on a fresh etcd, with every etcdctl that is installed."""
    for name, program in ETCDCTLS.items():
        if not program.exists():
            print(f"{name}: not installed ({program}), its transcripts stay as they are")
            continue
        with tempfile.TemporaryDirectory() as scratch, running_etcd(Path(scratch)) as cluster:
            session = Session(str(program), cluster)
            (folder / name).mkdir(parents=True, exist_ok=True)
            for script in SCRIPTS:
                (folder / name / script.name).write_text(session.play(script.read_text()))
                print(f"{name}: {script.name}")


if __name__ == "__main__":
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "recorded")
