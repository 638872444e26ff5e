"""One mutant: its file, its copy of the code, and the search for a seed that finds it.

Its `level` says which simulator has to: that of raft/ alone ("raft", when nothing is said) or that of the whole
member ("member").
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent


class Found(NamedTuple):
    seed: int  # 0: not caught
    seconds: float  # of search
    violation: str


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    name: str
    scenario: str
    bug: str
    level: str
    edits: tuple[Edit, ...]
    digest: str  # of its file

    def apply(self, root: Path) -> None:
        for edit in self.edits:
            path = root / edit.file
            text = path.read_text()
            found = text.count(edit.old)
            assert found == 1, f"{self.name}: its text occurs {found} times in {edit.file}; bring the mutant up to date"
            path.write_text(text.replace(edit.old, edit.new))


def load(path: Path) -> Mutant:
    data = path.read_bytes()
    fields = tomllib.loads(data.decode())
    edits = tuple(Edit(**edit) for edit in fields["edit"])
    level = fields.get("level", "raft")
    return Mutant(path.stem, fields["scenario"], fields["bug"], level, edits, sha256(data).hexdigest())


def load_all() -> list[Mutant]:
    return [load(path) for path in sorted(FOLDER.glob("*.toml"))]


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """A directory with the code as the mutant has it, and the simulator's command line."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        root = Path(name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "raft", root / "raft", ignore=ignore)
        if mutant.level == "member":
            shutil.copytree(ROOT / "kvstore", root / "kvstore", ignore=ignore)
            shutil.copytree(ROOT / "tests", root / "tests", ignore=ignore)
            mutant.apply(root)
            yield root
            return
        (root / "tests" / "sim").mkdir(parents=True)
        for file in ("tests/__init__.py", "tests/sim/__init__.py", "tests/sim/__main__.py"):
            shutil.copy(ROOT / file, root / file)
        mutant.apply(root)
        yield root


def simulate(root: Path, *arguments: str, level: str = "raft") -> subprocess.CompletedProcess[str]:
    """`python -m tests.sim`, or of the member's level, with the code of `root`."""
    return subprocess.run(
        [sys.executable, "-m", "tests.sim.member" if level == "member" else "tests.sim", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def hunt(mutant: Mutant, last: int) -> Found:
    """The first seed of 1..last that ends in a violation."""
    begin = time.monotonic()
    with mutated(mutant) as root:
        result = simulate(root, f"1..{last}", "--stop", level=mutant.level)
    seconds = time.monotonic() - begin
    assert result.returncode in {0, 1}, f"{mutant.name}: {result.stderr}"
    seed = re.search(r"^seed (\d+) .*?hash \w+ (.*)", result.stdout, re.MULTILINE)
    if seed is None:
        assert result.returncode == 0, f"{mutant.name}: {result.stdout}{result.stderr}"
        return Found(0, seconds, "")
    return Found(int(seed[1]), seconds, seed[2])
