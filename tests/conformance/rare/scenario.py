"""A story of members that fail, told to a judge and to us: the same calls, their answers compared line by line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.differential.coverage import ERRORS, Coverage
from tests.conformance.differential.known import KNOWN, Seen, excuse
from tests.conformance.rare.known import RARE
from tests.conformance.rare.side import Side, etcd_side, our_side

TIMES_MAX = 3


@dataclass(frozen=True)
class Scenario:
    play: Callable[[Side], None]
    met: dict[str, tuple[str, ...]]  # by judge: the errors that it says on the way, or rows of what may differ
    size: int = 3
    is_started: bool = True
    flags: Callable[[Path], Sequence[str]] = lambda folder: ()

    @property
    def name(self) -> str:
        return self.play.__name__

    def compare(self, folder: Path, judge: str) -> tuple[Coverage, list[str]]:
        """What was compared, and the differences that no row allows. Told again when the moment was missed."""
        for number in range(TIMES_MAX):
            (folder / str(number)).mkdir()
            coverage, differences = self._once(folder / str(number), judge)
            if not self.lacking(coverage, judge):
                break
        return coverage, differences

    def _once(self, folder: Path, judge: str) -> tuple[Coverage, list[str]]:
        (folder / "etcd").mkdir()
        (folder / "ours").mkdir()
        flags = self.flags(folder)
        with etcd_side(folder / "etcd", judge, self.size, flags) as etcd:
            self._tell(etcd)
        with our_side(folder / "ours", self.size, flags) as ours:
            self._tell(ours)
        coverage, differences = Coverage(), []
        for theirs, line in zip(etcd.lines, ours.lines, strict=True):
            assert theirs.call == line.call, (theirs, line)
            coverage.count(theirs.call)
            row = ""
            if theirs.answer != line.answer:
                row = excuse(judge, Seen(line.call, line.message, theirs.answer, line.answer, 0), {**KNOWN, **RARE})
                if not row:
                    differences.append(f"{line.call}({line.message}): {theirs.answer!r} {line.answer!r}")
                    continue
                coverage.excused[row] += 1
            if not row or theirs.answer.endswith(tuple(ERRORS)):
                coverage.see(theirs.answer)
        return coverage, differences

    def lacking(self, coverage: Coverage, judge: str) -> set[str]:
        return set(self.met[judge]) - set(coverage.errors) - set(coverage.excused)

    def _tell(self, side: Side) -> None:
        if self.is_started:
            side.start(*range(self.size))
            for member in range(self.size):
                side.wait_serves(member)
        self.play(side)
