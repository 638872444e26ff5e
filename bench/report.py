"""What the bench makes of its results: lines of JSON under results/, the table, the README's block."""

import json
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.rows import MEASURES, Row

RESULTS: Final = Path(__file__).parent / "results"
README: Final = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
FAILURES: Final = {"refused": "refused", "not_served": "not served", "not_installed": "not installed"}
SPREAD_MAX: Final = 0.10

Result = dict[str, Any]


def commit() -> str:
    """The commit that is measured; `-dirty` when the tree has changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip() or "unknown"


def append(rows: Iterable[Result], name: str) -> Path:
    """Add the rows to the commit's file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def read(path: Path) -> list[Result]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def into_readme(text: str, readme: Path = README) -> None:
    """Replace what stands between the README's bench marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


@dataclass(frozen=True)
class Side:
    """One system's figures for a row: medians over the rounds."""

    value: float | None = None
    spread: float = 0.0  # of the value: (largest - smallest) / median
    p99_ms: float | None = None
    cpu_us: float | None = None
    batch: float | None = None
    rounds: int = 0
    said: str = ""  # the tool's own judgement, where it has one
    failure: str = ""  # why there is no value


@dataclass(frozen=True)
class Line:
    """A row with both sides."""

    row: Row
    other: Side
    ours: Side

    @property
    def ratio(self) -> float | None:
        if self.ours.value is None or not self.other.value:
            return None
        return self.ours.value / self.other.value

    @property
    def p99_ratio(self) -> float | None:
        if self.row.p99 is None or self.ours.p99_ms is None or not self.other.p99_ms:
            return None
        return self.ours.p99_ms / self.other.p99_ms

    @property
    def met(self) -> str:
        """aim, yes, no, no (p99), or why there is nothing to judge; where nothing is asked for, what the tools said."""
        failure = self.ours.failure or self.other.failure
        if failure:
            return failure
        ratio = self.ratio
        if self.row.must is None or ratio is None:
            return f"{self.other.said} / {self.ours.said}" if self.ours.said else ""
        if not self._reaches(ratio, self.row.must):
            return "no"
        if self.row.p99 is not None and self.p99_ratio is not None and self.p99_ratio > self.row.p99:
            return f"no (p99 {self.p99_ratio:.2f})"
        return "aim" if self.row.aim is not None and self._reaches(ratio, self.row.aim) else "yes"

    def _reaches(self, ratio: float, asked: float) -> bool:
        return ratio <= asked if self.row.lower else ratio >= asked


def side(results: list[Result], system: str, row: Row) -> Side:
    """One refused round refuses the row."""
    found = [one for one in results if one["system"] == system and one["measure"] == row.measure]
    failures = [label for one in found for kind, label in FAILURES.items() if kind in one]
    if failures:
        return Side(failure=failures[0])
    values = [one[row.metric] for one in found if row.metric in one]
    if not values:
        return Side()
    return Side(
        value=statistics.median(values),
        spread=spread(values),
        p99_ms=_median(found, "p99_ms"),
        cpu_us=_median(found, "cpu_us"),
        batch=_median(found, "batch"),
        rounds=len(values),
        said=("PASS" if found[-1]["passed"] else "FAIL") if "passed" in found[-1] else "",
    )


def _median(results: list[Result], name: str) -> float | None:
    values = [one[name] for one in results if name in one]
    return statistics.median(values) if values else None


def spread(values: list[float]) -> float:
    """(Largest - smallest) / median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def lines(results: list[Result], rows: list[Row]) -> list[Line]:
    return [Line(row, side(results, row.other, row), side(results, "kvstore", row)) for row in rows]


def wide(results: list[Result]) -> set[tuple[str, str]]:
    """What was measured with a spread that is too large; both systems then get more rounds."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for one in results:
        measure = MEASURES[one["measure"]]
        if measure.steady in one and not measure.once:
            values[one["system"], one["measure"]].append(one[measure.steady])
    names = {name for (_, name), found in values.items() if spread(found) > SPREAD_MAX}
    return {(system, name) for system, name in values if name in names}


def table(found: list[Line]) -> str:
    """Medians over the rounds, ours beside the other's, as Markdown."""
    head = ["row", "what", "other", "kvstore", "ratio", "must", "aim", "met"]
    head += ["p99 ms, other / ours", "CPU us/op, other / ours", "spread, other / ours", "puts per entry"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in found:
        row, other, ours = line.row, line.other, line.ours
        name = "" if row.other == "etcd" else f" ({row.other})"
        cells = [row.name, row.what, value(other, row.unit) + name, value(ours, row.unit), number(line.ratio, "{:.2f}")]
        cells += [number(row.must, "{:g}"), number(row.aim, "{:g}"), line.met]
        cells += [pair(other.p99_ms, ours.p99_ms, "{:.1f}"), pair(other.cpu_us, ours.cpu_us, "{:.0f}")]
        spreads = [one.spread if one.rounds > 1 else None for one in (other, ours)]
        cells += [pair(spreads[0], spreads[1], "{:.0%}")]
        cells += [number(ours.batch, "{:.1f}")]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def value(side_: Side, unit: str) -> str:
    if side_.value is None:
        return side_.failure or "-"
    return f"{side_.value:,.{0 if side_.value >= 100 else 2}f} {unit}".replace(" /s", "/s").strip()


def number(found: float | None, form: str) -> str:
    return "" if found is None else form.format(found)


def pair(one: float | None, two: float | None, form: str) -> str:
    return "" if one is None and two is None else f"{number(one, form) or '-'} / {number(two, form) or '-'}"


def summary(found: list[Line]) -> str:
    """How many rows are met."""
    judged = [line for line in found if line.row.must is not None]
    met = [line for line in judged if line.met in {"yes", "aim"}]
    aims = [line for line in judged if line.met == "aim"]
    text = f"{len(met)} of {len(judged)} rows are met, {len(aims)} reach the aim."
    missed = [f"{line.row.name} ({line.met or 'not measured'})" for line in judged if line not in met]
    return text + (f" Not met: {', '.join(missed)}." if missed else "")


def refused(results: list[Result]) -> list[str]:
    """Each refusal in full."""
    return [
        f"{one['system']} {one['measure']}, round {one['round'] + 1}: {one['refused']}"
        for one in results
        if "refused" in one
    ]
