"""The benchmark of record: `make bench`. Every row of docs/BENCHMARK.md, our members beside etcd's, in one run.

python -m bench [--row NAMES] [--quick] [--rounds N] [--seconds S] [--only SYSTEM] [--readme] [--show FILE] [--list]
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from bench import plots, report
from bench.measure import QUICK, Effort
from bench.progress import Progress
from bench.rows import LONG, Row, chosen
from bench.runner import SYSTEMS, Runner, wanted

ROUNDS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="our members beside etcd's, row by row")
    parser.add_argument("--row", default="", metavar="NAMES", help="a row, a list a,b, or beginnings of names")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, no figures")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}; two more for rows with a spread over 10 %%")
    parser.add_argument("--seconds", type=float, help="of each window")
    parser.add_argument("--only", choices=SYSTEMS, help="leave the others out")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--show", type=Path, metavar="FILE", help="no run: the table and plots of these results")
    parser.add_argument("--list", action="store_true", help="the rows")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    try:
        rows = chosen(options.row)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.quick and not options.row:
        rows = [row for row in rows if row.name not in LONG]
    if options.list:
        print("\n".join(f"{row.name:16} {row.what}" for row in rows))
        return 0
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, etcd 3.5.1"
    if options.show:
        conclude(report.read(options.show), rows, options, f"{options.show.stem} on {machine}")
        return 0
    name = report.commit()
    print(f"{name} on {machine}; connections go to the leader, of both systems", flush=True)
    results: list[dict[str, Any]] = []
    interrupted = not _run(options, rows, name, results)
    print(f"\nresults: {report.RESULTS / f'{name}.jsonl'}")
    conclude(results, rows, options, f"{name} on {machine}")
    if interrupted:
        return 130
    return 1 if report.refused(results) else 0


def _run(options: argparse.Namespace, rows: list[Row], name: str, results: list[dict[str, Any]]) -> bool:
    """Fill `results`; false when it was cut short."""
    effort = QUICK if options.quick else Effort()
    if options.seconds:
        effort = Effort(**{**vars(effort), "seconds": options.seconds})
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    progress = Progress()

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        report.append([{"commit": name, **result}], name)

    async def measure() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        runner = Runner(effort, keep, progress)
        await runner.run(wanted(rows, options.only), rounds, None if options.rounds or options.quick else report.wide)

    try:
        event_loop()(measure())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted: what is there is kept")
        return False
    finally:
        progress.end()
    return True


def event_loop() -> Any:
    """uvloop's run where it is installed."""
    with contextlib.suppress(ImportError):
        from uvloop import run

        return run
    return asyncio.run


def conclude(results: list[dict[str, Any]], rows: list[Row], options: argparse.Namespace, where: str) -> None:
    """Table, refusals, plots, README."""
    measured = {(one["system"], one["measure"]) for one in results}
    shown = [row for row in rows if wanted([row]) & measured]
    found = report.lines(results, shown)
    if not found:
        return
    effort = results[-1]["effort"]
    print(f"\n{report.table(found)}\n\n{report.summary(found)}")
    if effort != vars(Effort()):
        print(f"Not of full size ({', '.join(f'{name} {value:g}' for name, value in effort.items())}).")
    for text in report.refused(results):
        print(f"refused: {text}", file=sys.stderr)
    drawn = [*plots.ratios(found), *plots.latencies(results, shown)]
    for path in drawn:
        print(f"plot: {path}")
    if options.readme:
        rounds = max(one["round"] for one in results) + 1
        text = f"{report.table(found)}\n\n{report.summary(found)} Medians of up to {rounds} rounds at {where}."
        images = [path.relative_to(report.README.parent) for path in drawn if path.suffix == ".svg"]
        report.into_readme("\n\n".join([text, *(f"![{path.stem}]({path})" for path in images)]))


if __name__ == "__main__":
    sys.exit(main())
