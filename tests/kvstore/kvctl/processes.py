"""kvctl and etcdctl as users run them: real processes."""

import os
import subprocess
from collections.abc import Sequence

from tests.kvstore.client.clusters import BIN, Cluster


def environment(**more: str) -> dict[str, str]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("KVCTL", "ETCDCTL", "XDG", "_KVCTL"))
    }
    return clean | {"COLUMNS": "120", "TERM": "dumb", **more}


def run(tool: str, *arguments: str, stdin: bytes = b"", timeout: float = 30, **more: str) -> "Outcome":
    return Outcome(
        subprocess.run(
            [str(BIN / tool), *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment(**more),
            check=False,
        )
    )


def kvctl(cluster: Cluster, *arguments: str, stdin: bytes = b"", **more: str) -> "Outcome":
    return run("kvctl", f"--endpoints={','.join(cluster.endpoints)}", *arguments, stdin=stdin, **more)


class Outcome:
    def __init__(self, process: subprocess.CompletedProcess[bytes]) -> None:
        self.code = process.returncode
        self.out = process.stdout
        self.error = process.stderr.decode()
        assert "Traceback" not in self.error, self.error

    def ok(self) -> bytes:
        assert self.code == 0, self.error
        return self.out

    def failed(self, code: int, *texts: str) -> None:
        """With one line on stderr that has these texts."""
        assert self.code == code, (self.code, self.error)
        last = self.error.splitlines()[-1]
        assert last.startswith("Error: "), self.error
        for text in texts:
            assert text in last


def etcdctl(cluster: Cluster, arguments: Sequence[str], stdin: bytes = b"") -> Outcome:
    return run("etcdctl", f"--endpoints={','.join(cluster.endpoints)}", *arguments, stdin=stdin)
