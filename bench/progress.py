"""What a person at a terminal sees: a line for each result, and below it one that says what runs.

Where the output is no terminal only the results are printed.
"""

import sys
import time
from typing import Any, Final, TextIO

CLEAR: Final = "\r\033[K"
NUMBERS: Final = [  # field, format
    ("rate", "{:>11,.0f}/s"),
    ("p50_ms", "p50 {:.2f}"),
    ("p99_ms", "p99 {:.2f} ms"),
    ("cpu_us", "CPU {:.1f} us/op"),
    ("batch", "{:.1f} puts per entry"),
    ("rss_mb", "RSS {:.0f} MB"),
    ("disk_mb", "disk {:.0f} MB"),
    ("restart_s", "first read after {:.2f} s"),
    ("gap_ms", "gap {:.0f} ms"),
    ("syncs_per_put", "{:.2f} syncs per put"),
    ("slowest_ms", "slowest {:.0f} ms"),
    ("generator_share", "generator {:.0%} of a core"),
]
FAILURES: Final = ("refused", "not_served", "not_installed", "note")
BUSY: Final = 0.9  # of a core; above it the generator is what is measured


class Progress:
    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._round = ""
        self._began = time.monotonic()

    def round(self, number: int, rounds: int) -> None:
        self._round = f"round {number}/{rounds}"
        self._print(self._round)

    def begin(self, system: str, name: str) -> None:
        if self._live:
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            self._out.write(
                f"{CLEAR}{minutes:3}:{seconds:02} {self._round} {system} {name} ... (Ctrl-C keeps the rest)"
            )
            self._out.flush()

    def finished(self, result: dict[str, Any]) -> None:
        self._print(f"  {result['system']:9} {result['measure']:16} {describe(result)}")

    def end(self) -> None:
        if self._live:
            self._out.write(CLEAR)
            self._out.flush()

    def _print(self, text: str) -> None:
        self.end()
        print(text, file=self._out, flush=True)


def describe(result: dict[str, Any]) -> str:
    """One result in a line."""
    for kind in FAILURES[:-1]:
        if kind in result:
            return f"{kind.replace('_', ' ')}: {' '.join(result[kind].split())[:300]}"
    parts = [form.format(result[name]) for name, form in NUMBERS if name in result]
    if result.get("generator_share", 0) > BUSY:
        parts.append("(the generator is the limit)")
    if "note" in result:
        parts.append(result["note"])
    return "  ".join(parts)
