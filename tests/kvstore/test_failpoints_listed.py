"""Every failpoint of the code is declared, stands in it once, and is in docs/failpoints.md; and none that is not."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import kvstore.failpoints  # noqa: F401  # declares its points
from raft.failpoints import POINTS

ROOT = Path(__file__).parent.parent.parent


def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_failpoints", ROOT / "docs" / "record_failpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_declared_point_stands_in_the_code_once() -> None:
    used = Counter(place.name for place in recorder().places())
    assert sorted(set(used) - set(POINTS)) == [], "not declared"
    assert sorted(set(POINTS) - set(used)) == [], "declared, and nowhere in the code"
    assert [name for name, count in used.items() if count > 1] == [], "in two places: which one is meant?"


def test_the_page_lists_them() -> None:
    module = recorder()
    assert module.PAGE.read_text() == module.page(), "run `python docs/record_failpoints.py`"
