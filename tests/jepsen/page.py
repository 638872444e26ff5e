"""A run as one HTML file: verdicts, then everything on one axis of time. No scripts, nothing from elsewhere.

What an operator needs first stands first: passed or not, by which verdict, and the command that does it again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from html import escape
from itertools import pairwise
from typing import Any

from tests.jepsen.record import NEVER, Call
from tests.jepsen.report import by_class, operations, quantiles

WIDTH, LEFT, RIGHT = 1200, 110, 20
LANE = 18
BINS = 160  # of the plots over time
SHOWN = 4  # complaints of a verdict
GAP_SECONDS = 1.0  # without an acknowledged write: marked
UNKNOWN_MAX = 1500  # operations of unknown outcome that are drawn one by one

OK, FAILED, INFO, QUIET = "#2e7d32", "#c98a00", "#c62828", "#e4e7ea"
TERMS = ("#1565c0", "#6a1b9a", "#00838f", "#ad1457", "#4e6b12", "#b75a00")
FAULT = "#455a64"

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, 'DejaVu Sans', sans-serif; color: #1c2126; background: #fff; margin: 24px auto;
  max-width: 1200px; padding: 0 16px }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 17px; margin: 28px 0 6px }
.banner { padding: 12px 16px; border-radius: 6px; color: #fff; margin-bottom: 12px }
.pass { background: #2e7d32 } .FAIL { background: #b71c1c } .UNDECIDED { background: #a65f00 }
.tag { color: #fff; border-radius: 4px; padding: 1px 8px; font-weight: 600; font-size: 13px }
table { border-collapse: collapse; margin: 6px 0 } th, td { text-align: left; vertical-align: top;
  padding: 3px 14px 3px 0 }
th { color: #56606a; font-weight: 600; border-bottom: 1px solid #ccd2d8 } td.n, th.n { text-align: right }
td { border-bottom: 1px solid #eef0f2 } code, pre { font: 13px/1.4 ui-monospace, 'DejaVu Sans Mono', monospace }
pre { background: #f4f6f8; padding: 10px 12px; border-radius: 6px; white-space: pre-wrap; margin: 6px 0 }
svg { display: block; width: 100%; height: auto }
svg text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #3a434b }
.note { color: #56606a; margin: 2px 0 4px } .key span { margin-right: 16px; white-space: nowrap }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px; border-radius: 2px }
"""


def page(report: dict[str, Any], found: list[Call]) -> str:
    options = report["options"]
    title = f"{options['workload']}, seed {options['seed']}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        _head(report, found),
        _verdicts(report),
        _timeline(report, found),
        _faults(report),
        _operations(found),
        _about(report),
    ]
    return "\n".join(parts) + "</html>\n"


def _head(report: dict[str, Any], found: list[Call]) -> str:
    options = report["options"]
    bad = [one for one in report["verdicts"] if one["result"] != "pass"]
    result = "FAIL" if any(one["result"] == "FAIL" for one in bad) else bad[0]["result"] if bad else "pass"
    says = "Every verdict passes" if not bad else "Not passed: " + ", ".join(one["name"] for one in bad)
    text = (
        f"{options['members']} members ({report['server']}, {options['backend']}, commit {report['commit']}), "
        f"{options['clients']} clients, {len(found)} operations in {report['seconds']:.0f} s, "
        f"{len(report['faults'])} faults; {report['date']}"
    )
    name = escape(f"{options['workload']}, seed {options['seed']}")
    return (
        f"<div class='banner {result}'><h1>{escape(says)}</h1>{name}</div>"
        f"<p class=note>{escape(text)}</p><p class=note>The same again:</p><pre>{escape(report['command'])}</pre>"
    )


def _verdicts(report: dict[str, Any]) -> str:
    rows = []
    for one in sorted(report["verdicts"], key=lambda verdict: verdict["result"] == "pass"):
        complaints = "".join(f"<pre>{escape(text[:4000])}</pre>" for text in one["complaints"][:SHOWN])
        more = len(one["complaints"]) - SHOWN
        complaints += f"<p class=note>and {more} more in report.json</p>" if more > 0 else ""
        tag = f"<span class='tag {one['result']}'>{one['result']}</span>"
        rows.append([tag, escape(one["name"]), escape(one["about"]) + complaints])
    return "<h2>Verdicts</h2>" + _table(["", "verdict", "what was looked at"], rows)


def _table(heads: list[str], rows: Iterable[list[str]], numbers: int = 0) -> str:
    """The last `numbers` columns are numbers."""
    first = len(heads) - numbers

    def line(cells: list[str], tag: str) -> str:
        columns = (f"<{tag}{' class=n' * (at >= first)}>{cell}</{tag}>" for at, cell in enumerate(cells))
        return f"<tr>{''.join(columns)}</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


class Axis:
    """Seconds of the run to a place on the picture."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 1.0)

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at, 0.0), self.seconds) / self.seconds

    def bar(
        self, began: float, ended: float, y: float, height: float, colour: str, title: str, opacity: float = 1
    ) -> str:
        width = max(self.x(ended) - self.x(began), 1.0)
        return (
            f"<rect x='{self.x(began):.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{colour}' "
            f"opacity='{opacity:.2f}'><title>{escape(title)}</title></rect>"
        )

    def ticks(self, top: float, bottom: float) -> str:
        step = next(one for one in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600) if self.seconds / one <= 14)
        lines = []
        for number in range(int(self.seconds // step) + 1):
            x = self.x(number * step)
            lines.append(f"<path d='M{x:.1f} {top}V{bottom}' stroke='#e9ecef'/>")
            lines.append(f"<text x='{x:.1f}' y='{bottom + 15}' text-anchor='middle'>{number * step} s</text>")
        return "".join(lines)

    def shades(self, faults: list[dict[str, Any]], top: float, bottom: float) -> str:
        """Where faults were, behind a plot."""
        return "".join(
            self.bar(one["began"], one["ended"], top, bottom - top, FAULT, one["name"], 0.08) for one in faults
        )


def _svg(height: float, *parts: str) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {height:.0f}' role=img>{''.join(parts)}</svg>"


def _label(text: str, y: float) -> str:
    return f"<text x='{LEFT - 8}' y='{y:.1f}' text-anchor='end'>{escape(text)}</text>"


def _timeline(report: dict[str, Any], found: list[Call]) -> str:
    axis = Axis(report["seconds"])
    started = report["started_ns"]
    key = "".join(
        f"<span><i style='background:{colour}'></i>{text}</span>"
        for colour, text in ((OK, "ok"), (FAILED, "certainly not done"), (INFO, "nobody can know"), (QUIET, "silent"))
    )
    plots = [
        (
            "Faults",
            "The number is the longest time without an acknowledged write, in seconds.",
            _fault_lanes(report, axis),
        ),
        ("Leaders", "A colour for each term; grey: the member does not answer.", _leaders(report, axis)),
        (
            "Clients, by the member that they ask",
            "Each mark is what the operations that ended then became; lines are operations without an answer.",
            _members(report, found, axis, started),
        ),
        ("Operations a second", "", _throughput(report, found, axis, started)),
        (
            "Latency",
            "Of acknowledged operations, in ms: the median, and the slowest.",
            _latency(report, found, axis, started),
        ),
        (
            "Availability",
            f"Acknowledged writes a second; red: none for more than {GAP_SECONDS:.0f} s.",
            _availability(report, found, axis, started),
        ),
    ]
    return f"<h2>Timeline</h2><p class='note key'>{key}</p>" + "".join(
        f"<h2>{title}</h2>{f'<p class=note>{note}</p>' if note else ''}{picture}" for title, note, picture in plots
    )


def _fault_lanes(report: dict[str, Any], axis: Axis) -> str:
    names = list(dict.fromkeys(one["name"] for one in report["faults"]))
    height = LANE * max(len(names), 1)
    parts = [axis.ticks(0, height)]
    for number, name in enumerate(names):
        y = number * LANE
        parts.append(_label(name, y + 13))
        for one in report["faults"]:
            if one["name"] == name:
                title = f"{name} {one['what']}: {one['began']:.1f} to {one['ended']:.1f} s"
                parts.append(axis.bar(one["began"], one["ended"], y + 2, LANE - 4, FAULT, title))
                colour = INFO if one["unavailable"] > GAP_SECONDS else "#3a434b"
                at = min(axis.x(one["ended"]) + 4, WIDTH - RIGHT - 4)
                parts.append(f"<text x='{at:.1f}' y='{y + 13}' style='fill:{colour}'>{one['unavailable']:.1f}</text>")
    return _svg(height + 20, *parts)


def _leaders(report: dict[str, Any], axis: Axis) -> str:
    names = sorted({one["member"] for one in report["leaders"]})
    height = LANE * max(len(names), 1)
    parts = [axis.shades(report["faults"], 0, height), axis.ticks(0, height)]
    for number, name in enumerate(names):
        y = number * LANE
        parts += [_label(name, y + 13), f"<path d='M{LEFT} {y + LANE / 2}H{WIDTH - RIGHT}' stroke='#cfd6dc'/>"]
        for one in (one for one in report["leaders"] if one["member"] == name and one["state"] != "follower"):
            leads = one["state"] == "leader"
            colour = TERMS[one["term"] % len(TERMS)] if leads else "#b0b8bf"
            title = f"{name} {one['state']}, term {one['term']}, from {one['began']:.1f} s"
            parts.append(axis.bar(one["began"], one["ended"], y + 3, LANE - 6, colour, title))
            if leads and axis.x(one["ended"]) - axis.x(one["began"]) > 24:
                place = f"x='{axis.x(one['began']) + 4:.1f}' y='{y + 13}'"
                parts.append(f"<text {place} style='fill:#fff;font-size:11px'>{one['term']}</text>")
    return _svg(height + 20, *parts)


def _bins(axis: Axis, found: list[Call], started: int, key: Callable[[Call], Any]) -> dict[Any, dict[int, list[Call]]]:
    """By key and by number of the bin in which they ended; those that nobody answered do not end."""
    binned: dict[Any, dict[int, list[Call]]] = defaultdict(lambda: defaultdict(list))
    for call in found:
        if call.returned != NEVER:
            binned[key(call)][int((call.returned - started) / 1e9 / axis.seconds * BINS)].append(call)
    return binned


def _members(report: dict[str, Any], found: list[Call], axis: Axis, started: int) -> str:
    names = sorted({call.member for call in found if call.member})
    lane = LANE * 2
    height = lane * max(len(names), 1)
    parts = [axis.shades(report["faults"], 0, height), axis.ticks(0, height)]
    binned = _bins(axis, found, started, lambda call: call.member)
    unknown = [call for call in found if call.type == "info"]
    step = -(-len(unknown) // UNKNOWN_MAX) or 1
    width = axis.seconds / BINS
    for number, name in enumerate(names):
        y = number * lane
        parts.append(_label(name, y + 13))
        for at, ended in binned[name].items():
            counts = Counter(call.type for call in ended)
            colour = OK if counts["ok"] else FAILED
            title = f"{name} {at * width:.1f} s: {counts['ok']} ok, {counts['fail']} certainly not done"
            parts.append(axis.bar(at * width, (at + 1) * width, y + 2, 12, colour, title))
        for order, call in enumerate(call for call in unknown[::step] if call.member == name):
            began = (call.invoked - started) / 1e9
            title = f"{call.f} {call.key} at {began:.2f} s: {call.error}"
            ended = (call.noticed - started) / 1e9 if call.noticed else began + 0.1
            parts.append(axis.bar(began, ended, y + 16 + order % 8 * 2, 1.4, INFO, title, 0.7))
    return _svg(height + 20, *parts)


def _plot(
    axis: Axis, faults: list[dict[str, Any]], top: float, lines: list[tuple[str, list[tuple[float, float]]]]
) -> str:
    """Lines of (seconds, value) over a scale from 0 to `top`."""
    height = 110.0

    def y(value: float) -> float:
        return height - 100 * min(value / top, 1.0)

    parts = [axis.shades(faults, 10, height), axis.ticks(10, height)]
    parts += [_label(f"{top:.0f}", 14), _label("0", height)]
    for colour, points in lines:
        path = " ".join(f"{axis.x(at):.1f},{y(value):.1f}" for at, value in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.6'/>")
    return _svg(height + 20, *parts)


def _throughput(report: dict[str, Any], found: list[Call], axis: Axis, started: int) -> str:
    width = axis.seconds / BINS
    counts: dict[str, list[int]] = {kind: [0] * (BINS + 1) for kind in ("ok", "fail", "info")}
    for call in found:
        ended = call.noticed or call.invoked
        counts[call.type][min(max(int((ended - started) / 1e9 / width), 0), BINS)] += 1
    top = max(max(numbers) for numbers in counts.values()) / width or 1.0
    colours = {"ok": OK, "fail": FAILED, "info": INFO}
    lines = [
        (colours[kind], [((at + 0.5) * width, number / width) for at, number in enumerate(numbers[:BINS])])
        for kind, numbers in counts.items()
    ]
    return _plot(axis, report["faults"], top, lines)


def _latency(report: dict[str, Any], found: list[Call], axis: Axis, started: int) -> str:
    width = axis.seconds / BINS
    binned = _bins(axis, [call for call in found if call.ok], started, lambda _: "")[""]
    took = {at: quantiles((call.returned - call.invoked) / 1e6 for call in ended) for at, ended in binned.items()}
    points = {
        which: [((at + 0.5) * width, took[at][which]) for at in sorted(took) if 0 <= at < BINS]
        for which in ("p50", "max")
    }
    top = max((value for _, value in points["max"]), default=1.0)
    return _plot(axis, report["faults"], max(top, 1.0), [("#9aa5ae", points["max"]), ("#1565c0", points["p50"])])


def _availability(report: dict[str, Any], found: list[Call], axis: Axis, started: int) -> str:
    answers = sorted((call.returned - started) / 1e9 for call in found if call.ok and call.f != "read")
    width = axis.seconds / BINS
    counts = Counter(int(at / width) for at in answers)
    top = max(counts.values(), default=1) / width
    plot = _plot(axis, report["faults"], top, [(OK, [((at + 0.5) * width, counts[at] / width) for at in range(BINS)])])
    edges = [0.0, *answers, axis.seconds]
    gaps = [(earlier, later) for earlier, later in pairwise(edges) if later - earlier > GAP_SECONDS]
    marks = [
        axis.bar(began, ended, 3, 8, INFO, f"{ended - began:.1f} s without a write, from {began:.1f} s")
        for began, ended in gaps
    ]
    return plot.replace("</svg>", "".join(marks) + "</svg>")


def _faults(report: dict[str, Any]) -> str:
    def cells(numbers: dict[str, float]) -> list[str]:
        return [f"{numbers['count']}", *(f"{numbers[which]:.2f}" for which in ("p50", "p99", "max"))]

    rows = [[escape(name), *cells(numbers)] for name, numbers in sorted(by_class(report["faults"]).items())]
    every = [
        [f"{one['began']:.1f}", f"{one['ended'] - one['began']:.1f}", escape(one["name"]), escape(one["what"]),
         escape(one["beside"]), f"{one['unavailable']:.2f}"]
        for one in report["faults"]
    ]  # fmt: skip
    return (
        "<h2>Seconds without an acknowledged write</h2>"
        + _table(["fault", "times", "p50", "p99", "max"], rows, 4)
        + "<details><summary>Each fault</summary>"
        + _table(["at", "for", "fault", "to whom", "at the same time", "without writes"], every, 1)
        + "</details>"
    )


def _operations(found: list[Call]) -> str:
    kinds = ("ok", "fail", "info")
    rows = [[escape(f), *(str(counts.get(kind, 0)) for kind in kinds)] for f, counts in operations(found).items()]
    errors = Counter(call.error for call in found if call.error).most_common(12)
    listed = [[escape(error[:200]), str(count)] for error, count in errors]
    return (
        "<h2>Operations</h2>"
        + _table(["f", "ok", "certainly not done", "nobody can know"], rows, 3)
        + "<h2>Errors</h2>"
        + _table(["error", "times"], listed, 1)
    )


def _about(report: dict[str, Any]) -> str:
    skipped = [[escape(name), escape(why)] for name, why in report["skipped"].items()]
    able = [[escape(name), escape(why)] for name, why in sorted(report["capabilities"].items())]
    return (
        ("<h2>Skipped faults</h2>" + _table(["fault", "why"], skipped) if skipped else "")
        + "<details><summary>What this machine can do</summary>"
        + _table(["capability", ""], able)
        + "</details><p class=note>history.jsonl and report.json beside this page have all of it.</p>"
    )
