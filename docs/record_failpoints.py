"""Writes the table of docs/failpoints.md from the code; `python docs/record_failpoints.py`. A test compares both."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import kvstore.failpoints  # noqa: F401  # declares its points
from raft.failpoints import POINTS

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "failpoints.md"
BEGIN: Final = "<!-- points: written by `python docs/record_failpoints.py` -->\n"
END: Final = "<!-- /points -->\n"
CALLS: Final = {"fail": "call", "fail_async": "task"}


@dataclass(frozen=True)
class Place:
    """One call of a failpoint in the code."""

    name: str
    path: str
    kind: str  # call or task: what a sleep there holds


def places() -> list[Place]:
    """Every call, in the order of files and lines."""
    found = []
    for folder in ("raft", "kvstore"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = file.read_text()
            if "fail" not in text or "/pb/" in file.as_posix():
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?"
                    found.append(Place(str(name), file.relative_to(ROOT).as_posix(), CALLS[node.func.id]))
    return found


def table() -> str:
    where = {place.name: place for place in places()}
    lines = ["| name | passed when | in | sleep holds |", "|---|---|---|---|"]
    for name, when in POINTS.items():
        place = where.get(name, Place(name, "nowhere", "-"))
        lines.append(f"| `{name}` | {when} | {place.path} | {'the task' if place.kind == 'task' else 'the thread'} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with a fresh table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
