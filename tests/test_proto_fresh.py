"""The checked-in generated code is what proto/generate.py makes of the .proto files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def generated(root: Path) -> dict[str, str]:
    return {
        str(f.relative_to(root)): f.read_text() for p in ("raft", "kvstore") for f in (root / p / "pb").glob("*_pb2*")
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "proto" / "generate.py"), str(tmp_path)], check=True, timeout=100)
    made, checked_in = generated(tmp_path), generated(ROOT)
    assert len(made) > 10
    assert sorted(made) == sorted(checked_in), "files come or go: run `make proto`"
    stale = [name for name, text in made.items() if checked_in[name] != text]
    if stale:
        pytest.fail(f"run `make proto`: {', '.join(stale)}")
