from contextlib import AsyncExitStack
from typing import Annotated, Final

import typer

from kvstore.kvctl.commands.put import argument_bytes
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.load import Outcome, load_name, put_all
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut
from kvstore.kvctl.transfer import Progress

RATES: Final = {"s": (150, 50), "m": (1000, 200), "l": (8000, 500), "xl": (15000, 1000)}  # puts a second, clients
SHARE_MIN: Final = 0.9  # of the rate
SLOWEST_SECONDS: Final = 0.5
DEVIATION_SECONDS: Final = 0.1


async def check_perf(
    session: Session,
    load: Annotated[str, typer.Option(help="s, m, l or xl: 150, 1000, 8000 or 15000 puts a second.")] = "s",
    prefix: Annotated[str, typer.Option(help="Where the keys go; it has to be empty, and is emptied again.")] = (
        "/etcdctl-check-perf/"
    ),
    duration: Annotated[int, typer.Option(min=1, help="Seconds.")] = 60,
    auto_compact: Annotated[bool, typer.Option("--auto-compact", help="Compact afterwards.")] = False,
    auto_defrag: Annotated[bool, typer.Option("--auto-defrag", help="Taken; there is nothing to defragment.")] = False,
) -> None:
    """Put for a minute at a rate, and tell whether the cluster keeps up.

    The clients of all loads are this one process: from `l` on it may be what is slow.

    Examples:

    kvctl check perf

    kvctl check perf --load m --auto-compact
    """
    session.simple_or_json("check perf")
    rate, count = RATES[load_name(load)]
    where = argument_bytes(prefix)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(session.client()) for _ in range(count)]
        if (await clients[0].get(where, prefix=True, count_only=True)).count:
            raise Failure(f"{prefix} has keys; delete them with `kvctl del {prefix} --prefix` first")
        try:
            with Progress("check perf", rate * duration) as progress:
                outcome = await put_all(clients, where, rate * duration, rate, progress)
        finally:
            deleted = await clients[0].delete(where, prefix=True, timeout=60)
        if auto_compact:
            await clients[0].compact(deleted.header.revision)
    lines, passed = judge(outcome, rate)
    if session.write_out is WriteOut.JSON:
        write_json(
            {
                "pass": passed,
                "writes_per_second": outcome.rate,
                "slowest_seconds": outcome.slowest,
                "stddev_seconds": outcome.deviation,
                "errors": outcome.failures,
            }
        )
    else:
        for line in [*lines, "PASS" if passed else "FAIL"]:
            write(line)
    if not passed:
        raise typer.Exit(ExitCode.ERROR)


def judge(outcome: Outcome, rate: int) -> tuple[list[str], bool]:
    """What etcdctl says, by its limits."""
    lines: list[str] = []
    passed = not outcome.failures
    if outcome.failures:
        lines.append("FAIL: too many errors")
        lines += [f"FAIL: ERROR({text}) -> {count}" for text, count in sorted(outcome.failures.items())]
    speed = int(outcome.rate) + 1
    fast = outcome.rate / rate > SHARE_MIN
    lines.append(f"PASS: Throughput is {speed} writes/s" if fast else f"FAIL: Throughput too low: {speed} writes/s")
    slowest, deviation = outcome.slowest, outcome.deviation
    quick = slowest <= SLOWEST_SECONDS
    lines.append(
        f"PASS: Slowest request took {slowest:f}s" if quick else f"Slowest request took too long: {slowest:f}s"
    )
    even = deviation <= DEVIATION_SECONDS
    lines.append(f"PASS: Stddev is {deviation:f}s" if even else f"Stddev too high: {deviation:f}s")
    return lines, passed and fast and quick and even
