"""What went wrong is never a figure: a row with errors is refused, its round is recorded so, the exit code says it."""

import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from bench import __main__ as bench_main
from bench import load, plots, report, runner
from bench.clusters import Members, NotServedError
from bench.measure import Effort, RefusedError, Scene, closed, counted
from bench.progress import Progress
from bench.rows import PUT, chosen
from tests.bench.fakes import FakeMember, FakeMembers, serving

SHORT = Effort(seconds=0.05, keys=50, seed=10)


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WARM_UP_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def scene(member: FakeMember) -> AsyncIterator[Scene]:
    async with serving(member) as url:
        yield Scene(cast(Members, FakeMembers(member, url)), 0, SHORT)


async def test_a_good_row_has_its_numbers() -> None:
    async with scene(FakeMember()) as good:
        numbers = await closed(good, PUT, connections=2)
    assert numbers["rate"] == pytest.approx(numbers["done"] / numbers["seconds"])
    assert numbers["batch"] == 1.0
    assert sum(numbers["histogram"].values()) == numbers["done"]


async def test_a_call_that_fails_refuses_the_row() -> None:
    member = FakeMember()
    member.fail_each = 40
    async with scene(member) as bad:
        with pytest.raises(RefusedError, match="1 x gRPC status 14"):
            await counted(bad, count=50)


async def test_a_put_that_was_not_done_refuses_the_row() -> None:
    member = FakeMember()
    member.forget_each = 40
    async with scene(member) as bad:
        with pytest.raises(RefusedError, match="moved by 49 where 50 writes"):
            await counted(bad, count=50)


def fake_clusters(monkeypatch: pytest.MonkeyPatch, members: dict[str, FakeMember | Exception]) -> None:
    """Each system is one fake member, or does not start."""

    @contextlib.asynccontextmanager
    async def cluster(system: str, **_: Any) -> AsyncIterator[tuple[FakeMembers, int]]:
        found = members[system]
        if isinstance(found, Exception):
            raise found
        async with serving(found) as url:
            yield FakeMembers(found, url), 0

    monkeypatch.setattr(runner, "cluster", cluster)


def broken(each: int) -> FakeMember:
    member = FakeMember()
    member.fail_each = each
    return member


async def played(rounds: int = 1, wide: Any = None, rows: str = "put-50") -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    one = runner.Runner(SHORT, kept.append, Progress(io.StringIO()))
    await one.run(runner.wanted(chosen(rows)), rounds, wide)
    assert kept == one.results
    return kept


async def test_systems_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clusters(monkeypatch, {"etcd": FakeMember(), "kvstore": FakeMember()})
    results = await played(2)
    assert [(one["system"], one["round"]) for one in results] == [
        *(("etcd", 0), ("kvstore", 0)),
        *(("etcd", 1), ("kvstore", 1)),
    ]
    [line] = report.lines(results, chosen("put-50"))
    assert line.ratio is not None


async def test_two_more_rounds_of_what_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clusters(monkeypatch, {"etcd": FakeMember(), "kvstore": FakeMember()})
    results = await played(3, lambda results: {("etcd", "put-1"), ("kvstore", "put-1")}, rows="put-1,put-50")
    rounds = {name: sum(one["measure"] == name for one in results) // 2 for name in ("put-1", "put-50")}
    assert rounds == {"put-1": 5, "put-50": 3}


async def test_a_refused_round_is_recorded_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clusters(monkeypatch, {"etcd": FakeMember(), "kvstore": broken(each=30)})
    results = await played(2)
    assert ["refused" in one for one in results] == [False, True, False, True]
    assert report.lines(results, chosen("put-50"))[0].met == "refused"


async def test_a_cluster_that_does_not_start_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = {"etcd": OSError("no such program"), "kvstore": NotServedError("--cert-file")}
    fake_clusters(monkeypatch, cast(Any, clusters))
    etcd, ours = await played()
    assert etcd["refused"] == "no such program"
    assert ours["not_served"] == "--cert-file"


@pytest.mark.parametrize(("each", "code"), [(0, 0), (30, 1)])
def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], each: int, code: int
) -> None:
    fake_clusters(monkeypatch, {"etcd": FakeMember(), "kvstore": broken(each)})
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_main, "QUICK", SHORT)
    monkeypatch.setattr("sys.argv", ["bench", "--row", "put-50", "--quick"])
    assert bench_main.main() == code
    printed = capsys.readouterr()
    assert ("refused" in printed.out) == bool(code)
    assert ("gRPC status 14" in printed.err) == bool(code)
    [kept] = tmp_path.glob("*.jsonl")
    assert len(report.read(kept)) == 2
    assert (tmp_path / "ratios.png").exists() != bool(code)
    assert (tmp_path / "latency.svg").exists()
