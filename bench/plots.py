"""Plots of results, PNG and SVG under results/: ratios as bars, latencies as curves, series over a quantity."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.histogram import Histogram
from bench.report import RESULTS, Line, Result
from bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS: Final = {"kvstore": "#1f6fb4", "etcd": "#d9822b", "pysyncobj": "#7a7a7a"}
MET: Final = {"aim": "#2a8f4f", "yes": "#8cc79b", "": "#9aa5b1"}
NOT_MET: Final = "#c8553d"
LATENCY_ROWS: Final = ("put-1", "put-50", "put-1000", "put-1m", "put-latency", "get-lin-50", "get-ser-50", "mix-50")
CURVE_PERCENTS: Final = [*range(1, 100), 99.5, 99.9, 99.95, 99.99]


def figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple["Figure", list[Any]]:
    """A figure and its axes; matplotlib is loaded only when something is drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "kvstore", "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, list(made.subplots(rows, columns, squeeze=False).flat)


def save(made: "Figure", name: str, folder: Path | None = None) -> list[Path]:
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    made.savefig(paths[0], dpi=130)
    made.savefig(paths[1], metadata={"Date": None})
    return paths


def ratios(lines: list[Line], folder: Path | None = None) -> list[Path]:
    """Ours to the other's, longer is better: where less is better the ratio is turned round. Marks: must and aim."""
    drawn = [line for line in lines if line.ratio and line.row.must is not None]
    if not drawn:
        return []
    made, [axes] = figure(9, 1.2 + 0.28 * len(drawn))
    for place, line in enumerate(drawn):
        assert line.ratio is not None
        bar = _better(line.ratio, line.row)
        axes.barh(place, bar - 1, left=1, color=MET.get(line.met, NOT_MET), height=0.7)
        axes.annotate(f"{bar:.2f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        for asked, mark in ((line.row.must, "|"), (line.row.aim, "d")):
            if asked is not None:
                axes.plot(_better(asked, line.row), place, marker=mark, color="k", ms=6, mew=1.5)
    axes.axvline(1.0, color="k", lw=0.8)
    axes.set_yticks(range(len(drawn)), [line.row.what + (" (inverse)" if line.row.lower else "") for line in drawn])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16], ["1/4", "1/2", "1", "2", "4", "8", "16"])
    axes.set_xlabel("times as good as etcd 3.5.1 (log scale); | must, \N{BLACK DIAMOND} aim; green: met")
    return save(made, "ratios", folder)


def _better(ratio: float, row: Row) -> float:
    return 1 / ratio if row.lower else ratio


def latencies(results: list[Result], rows: list[Row], folder: Path | None = None) -> list[Path]:
    """For some rows: how many percent of the calls took at most so long, all rounds together."""
    names = [name for name in LATENCY_ROWS if name in {row.measure for row in rows}]
    found = {name: _merged(results, name) for name in names}
    drawn = [name for name in names if found[name]]
    if not drawn:
        return []
    columns = min(4, len(drawn))
    made, axes = figure(3.4 * columns, 2.8 * -(-len(drawn) // columns), rows=-(-len(drawn) // columns), columns=columns)
    for place, name in enumerate(drawn):
        for system, histogram in found[name].items():
            milliseconds = [1000 * seconds for seconds in histogram.percentiles(CURVE_PERCENTS)]
            tail = [1 / (1 - percent / 100) for percent in CURVE_PERCENTS]
            axes[place].plot(tail, milliseconds, label=system, color=COLORS[system])
        axes[place].set(title=name, xscale="log", yscale="log", ylabel="ms")
        axes[place].set_xticks([2, 10, 100, 1000, 10000], ["50", "90", "99", "99.9", "99.99"])
        axes[place].set_xlabel("percentile")
        axes[place].legend()
    for unused in axes[len(drawn) :]:
        unused.axis("off")
    return save(made, "latency", folder)


def _merged(results: Iterable[Result], name: str) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    for one in results:
        if one["measure"] == name and "histogram" in one:
            found.setdefault(one["system"], Histogram()).merge(Histogram(one["histogram"]))
    return found


@dataclass
class Panel:
    """One diagram: curves by label."""

    title: str
    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    logarithmic: bool = True  # of x
    from_zero: bool = True  # of y


def panels(found: list[Panel], name: str, *, columns: int = 2, folder: Path | None = None) -> list[Path]:
    """Diagrams beside each other."""
    rows = -(-len(found) // columns)
    made, axes = figure(4.6 * columns, 2.9 * rows, rows=rows, columns=columns)
    for panel, place in zip(found, axes, strict=False):
        for label, points in panel.curves.items():
            xs, ys = [x for x, _ in points], [y for _, y in points]
            place.plot(xs, ys, marker="o" if panel.logarithmic else "", ms=4, label=label, color=COLORS.get(label))
        place.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if panel.logarithmic:
            place.set_xscale("log")
        if panel.from_zero:
            place.set_ylim(bottom=0)
        if len(panel.curves) > 1:
            place.legend()
    for unused in axes[len(found) :]:
        unused.axis("off")
    return save(made, name, folder)
