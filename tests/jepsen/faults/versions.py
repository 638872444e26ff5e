"""Members of two builds: this tree's and an older commit's. A minority, a majority or all are rolled to the older one
and back, one after the other, each on its data.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.e2e.cluster import Member
from tests.jepsen.faults.base import Fault
from tests.jepsen.guard import ROOT

OLDER = os.environ.get("JEPSEN_OLDER")  # a commit
USUAL = "HEAD~40"
# The first one that can go on with a store that this build has written a large value to (kvstore/mvcc/schema.py).
OLDEST = "cf9754634a85efb0962cb1cf186a929f3c4cfbde"


def older_commit() -> str:
    """Its id. Raises OSError where there is none, such as in a shallow clone."""
    if OLDER:
        return _commit(OLDER)
    usual = _commit(USUAL)
    return usual if _git("merge-base", "--is-ancestor", OLDEST, usual).returncode == 0 else _commit(OLDEST)


def _commit(name: str) -> str:
    done = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if done.returncode:
        raise OSError(f"no commit {name} here")
    return done.stdout.strip()


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def older_build() -> Path:
    """The directory with its code; made once."""
    commit = older_commit()
    path = ROOT / "build" / "jepsen-builds" / commit
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", commit, "raft", "kvstore"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(part)], input=archive.stdout, check=True)
        try:
            part.rename(path)
        except OSError:  # another run was quicker
            shutil.rmtree(part)
    return path


class Rolled(Fault):
    needs = ("older build",)
    ours = True
    leaves_majority = True

    def begin(self) -> str:
        self.build = older_build()
        self.victims = self.pick(self.rng.choice(["one", "minority", "majority", "all"]))
        for member in self.victims:
            self._restart(member, self.build)
        return f"{' '.join(member.name for member in self.victims)}: {self.build.name[:7]}"

    def _restart(self, member: Member, code: Path | None) -> None:
        """As an operator does it: told to stop, and the next only when this one is there again."""
        member.stop()
        self.system.network.use_code(member, code)
        member.start()
        member.wait_ready()

    def bites(self) -> str:
        other = [member.name for member in self.victims if self._code(member) != self.build]
        return f"{other} run {[self._code(member) for member in self.victims]}" if other else ""

    def end(self) -> None:
        for member in self.victims:
            self._restart(member, None)

    def healed(self) -> str:
        old = [member.name for member in self.system.cluster.members if self._code(member) == self.build]
        return f"{old} are still of the older build" if old else ""

    def _code(self, member: Member) -> Path | None:
        return self.system.network.code_of(member)


VERSIONS: dict[str, type[Fault]] = {"upgrade": Rolled}
