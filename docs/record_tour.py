"""Record `kvstore local --size 3 --tour` as docs/tour.svg: `.venv/bin/python docs/record_tour.py`.

The picture holds what the programs wrote, and nothing else; only colours are added, and the path of the virtual
environment is left off.
"""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COLUMNS = 144


def record() -> str:
    """What the tour prints without a terminal."""
    command = [str(BIN / "kvstore"), "local", "--size", "3", "--tour"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, cwd=HERE.parent, timeout=120
    )
    prefixes = [f"{BIN}/", f"{BIN.relative_to(HERE.parent)}/"] if BIN.is_relative_to(HERE.parent) else [f"{BIN}/"]
    text = done.stdout
    for prefix in prefixes:
        text = text.replace(f"$ {prefix}", "$ ")
    return text.strip("\n")


def styled(line: str) -> Text:
    if line.startswith("$ "):
        return Text(line, "bold cyan")
    if line[:1].isdigit() and line[1:3] == ". ":
        return Text(line, "bold yellow")
    return Text(line)


def main() -> None:
    text = record()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print("$ make run", style="bold cyan", highlight=False)
    for line in text.splitlines():
        console.print(styled(line), highlight=False, overflow="fold")
    console.save_svg(str(HERE / "tour.svg"), title="make run")
    print(f"wrote {HERE / 'tour.svg'}, {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
