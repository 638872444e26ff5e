"""Plays the scenes round by round, in turn for each system (A B A B), and keeps every result as it comes.

So a slow minute of the machine hits both systems, and what is there when someone presses Ctrl-C stays.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from bench import peer
from bench.channel import CallFailedError
from bench.clusters import NotServedError, cluster
from bench.external import NotInstalledError
from bench.measure import Effort, RefusedError, Scene, seed
from bench.progress import Progress
from bench.rows import IN_FLIGHT, MEASURES, STAGES, Measure, Row

SYSTEMS: Final = ("etcd", "kvstore", "pysyncobj")
SPREAD_MAX: Final = 0.10
MORE_ROUNDS: Final = 2

Result = dict[str, Any]
Wanted = set[tuple[str, str]]  # system, measurement


def wanted(rows: list[Row], only: str | None = None) -> Wanted:
    """What the rows need."""
    found = {(system, row.measure) for row in rows for system in (row.other, "kvstore")}
    return {(system, name) for system, name in found if only in (None, system)}


class Runner:
    """`run()`; results are in `results` and given to `keep` one by one."""

    def __init__(self, effort: Effort, keep: Callable[[Result], None], progress: Progress) -> None:
        self._effort = effort
        self._keep = keep
        self._progress = progress
        self.results: list[Result] = []
        self._round = 0

    async def run(self, needed: Wanted, rounds: int, wide: Callable[[list[Result]], Wanted] | None = None) -> None:
        """So many rounds; `wide` names what then needs MORE_ROUNDS because its figures are too far apart."""
        for number in range(rounds):
            await self._play(number, rounds, needed)
        more = wide(self.results) & needed if wide is not None else set()
        for number in range(rounds, rounds + MORE_ROUNDS if more else rounds):
            await self._play(number, rounds + MORE_ROUNDS, more)

    async def _play(self, number: int, rounds: int, needed: Wanted) -> None:
        self._round = number
        self._progress.round(number + 1, rounds)
        for stage in STAGES:
            for system in SYSTEMS:
                todo = [
                    one
                    for one in MEASURES.values()
                    if one.stage == stage and (system, one.name) in needed and not (one.once and number)
                ]
                if todo:
                    await (self._peer(todo) if system == "pysyncobj" else self._scene(stage, system, todo))

    async def _scene(self, name: str, system: str, todo: list[Measure]) -> None:
        stage = STAGES[name]
        if stage.first and stage.first not in {one.name for one in todo}:
            todo = [MEASURES[stage.first], *todo]
        self._progress.begin(system, f"starting ({name})")
        try:
            async with cluster(system, tls=stage.tls) as (members, leader):
                scene = Scene(members, leader, self._effort)
                if stage.seeded:
                    await seed(scene, self._effort.seed)
                for one in todo:
                    self._progress.begin(system, one.name)
                    await self._one(system, one, scene)
        except (NotServedError, RefusedError, CallFailedError, OSError, RuntimeError, TimeoutError) as error:
            kind = "not_served" if isinstance(error, NotServedError) else "refused"
            for one in todo:
                if not self._has(system, one):
                    self._add(system, one.name, {kind: str(error) or type(error).__name__})

    async def _one(self, system: str, one: Measure, scene: Scene) -> None:
        try:
            numbers = await one.run(scene)
        except NotInstalledError as error:
            numbers = {"not_installed": str(error)}
        except (RefusedError, CallFailedError, OSError, RuntimeError, TimeoutError) as error:
            numbers = {"refused": str(error) or type(error).__name__}
        self._add(system, one.name, numbers)

    async def _peer(self, todo: list[Measure]) -> None:
        for one in todo:
            self._progress.begin("pysyncobj", one.name)
            try:
                numbers = await peer.puts(self._effort, in_flight=IN_FLIGHT[one.name])
            except (RefusedError, OSError, TimeoutError) as error:
                numbers = {"refused": str(error) or type(error).__name__}
            self._add("pysyncobj", one.name, numbers)

    def _has(self, system: str, one: Measure) -> bool:
        return any(
            (found["system"], found["measure"], found["round"]) == (system, one.name, self._round)
            for found in self.results
        )

    def _add(self, system: str, name: str, numbers: dict[str, Any]) -> None:
        result = {
            "measure": name,
            "system": system,
            "round": self._round,
            "time": time.time(),
            "effort": asdict(self._effort),
            **numbers,
        }
        self.results.append(result)
        self._keep(result)
        self._progress.finished(result)
