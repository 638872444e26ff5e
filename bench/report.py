"""What the bench writes: a line of JSON per row under results/, and a Markdown table."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
OPERATIONS = {"put": "put", "linearizable": "get, linearizable", "serializable": "get, serializable"}


def commit() -> str:
    """The commit that is measured; `-dirty` when the tree has changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip() or "unknown"


def append(rows: list[dict[str, Any]], name: str) -> Path:
    """Add the rows to the commit's file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def into_readme(text: str) -> None:
    """Replace what stands between the README's bench marks."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the rounds, ours beside etcd's. CPU is that of all three members together."""
    lines = [
        "| 256 B values, three members | in flight | kvstore /s | etcd /s | ratio "
        "| p50 / p99 ms | etcd p50 / p99 ms | CPU us/op | etcd CPU us/op | puts per entry |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    shapes = list(dict.fromkeys((row["operation"], row["in_flight"]) for row in rows))
    for operation, in_flight in shapes:
        chosen = [row for row in rows if (row["operation"], row["in_flight"]) == (operation, in_flight)]
        ours = median([row for row in chosen if row["system"] == "kvstore"])
        etcd = median([row for row in chosen if row["system"] == "etcd"])
        batch = f"{ours['batch']:.1f}" if operation == "put" and ours else ""
        ratio = f"{ours['rate'] / etcd['rate']:.2f}" if ours and etcd else "-"
        cells = [OPERATIONS[operation], str(in_flight), rate(ours), rate(etcd), ratio]
        cells += [latency(ours), latency(etcd), cpu(ours), cpu(etcd), batch]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def median(rows: list[dict[str, Any]]) -> dict[str, float]:
    if not rows:
        return {}
    numbers = ("rate", "p50_ms", "p99_ms", "cpu_us", "batch")
    return {name: statistics.median(row[name] for row in rows) for name in numbers}


def rate(row: dict[str, float]) -> str:
    return f"{row['rate']:,.0f}" if row else "-"


def latency(row: dict[str, float]) -> str:
    return f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f}" if row else "-"


def cpu(row: dict[str, float]) -> str:
    return f"{row['cpu_us']:.0f}" if row else "-"
