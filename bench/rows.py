"""Every row of the benchmark: what is measured, on which scene, and which ratio to the other system is asked for.

A scene is one fresh cluster, on which the chosen measurements run one after another. Several rows may read different
numbers of one measurement: puts/s and CPU per put come from the same window.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import external, failover, fsyncs, measure, streams
from bench.load import Operation
from bench.measure import Numbers, Scene
from bench.messages import Keys

MIB: Final = 1 << 20
OPEN_LOOP_RATE: Final = 2000.0  # puts/s; well below what etcd can do here
Run = Callable[[Scene], Awaitable[Numbers]]


@dataclass(frozen=True)
class Stage:
    """How a scene's cluster is made."""

    tls: bool = False
    seeded: bool = False  # some keys are there before the first measurement
    first: str = ""  # a measurement that the others need


STAGES: Final = {  # in the order in which they are played
    "idle": Stage(),
    "small": Stage(seeded=True),
    "tls": Stage(tls=True, seeded=True),
    "values": Stage(),
    "million": Stage(first="put-1m"),
    "failover": Stage(),
    "outside": Stage(),
}


@dataclass(frozen=True)
class Measure:
    """One measurement."""

    name: str
    stage: str
    run: Run
    once: bool = False  # in the first round only
    steady: str = "rate"  # the number whose spread asks for more rounds


@dataclass(frozen=True)
class Row:
    """A line of the table. must and aim are ratios of ours to the other's: at least so much, or at most if lower."""

    name: str
    what: str
    measure: str
    must: float | None = None
    aim: float | None = None
    metric: str = "rate"
    unit: str = "/s"
    lower: bool = False
    p99: float | None = None  # and our p99 at most so many times the other's
    other: str = "etcd"


def one(operation: Callable[[Keys], Operation]) -> Callable[[Keys], Callable[[], Operation]]:
    """The same kind of call each time."""

    def pick(keys: Keys) -> Callable[[], Operation]:
        chosen = operation(keys)
        return lambda: chosen

    return pick


PUT, GET = one(Keys.put), one(Keys.get)
SERIALIZABLE = one(partial(Keys.get, serializable=True))


def closed(
    pick: Callable[[Keys], Callable[[], Operation]],
    connections: int,
    each: int = 1,
    *,
    follower: bool = False,
    large: bool = False,
) -> Run:
    return partial(measure.closed, pick=pick, connections=connections, each=each, follower=follower, large=large)


_MEASURES: Final = [
    Measure("rss-idle", "idle", measure.idle, steady="rss_mb"),
    Measure("fsync", "idle", fsyncs.count, once=True, steady="syncs_per_put"),
    Measure("put-1", "small", closed(PUT, 1)),
    Measure("put-50", "small", closed(PUT, 50)),
    Measure("put-1000", "small", closed(PUT, 100, 10)),
    Measure("put-latency", "small", partial(measure.paced, rate=OPEN_LOOP_RATE), steady="p99_ms"),
    Measure("get-lin-50", "small", closed(GET, 50)),
    Measure("get-lin-1000", "small", closed(GET, 100, 10)),
    Measure("get-ser-50", "small", closed(SERIALIZABLE, 50)),
    Measure("get-ser-1000", "small", closed(SERIALIZABLE, 100, 10)),
    Measure("mix-50", "small", closed(Keys.mix, 50)),
    Measure("txn-50", "small", closed(one(Keys.txn), 50)),
    Measure("range-1000", "small", closed(one(partial(Keys.range, count=1000)), 10)),
    Measure("follower-put-50", "small", closed(PUT, 50, follower=True)),
    Measure("follower-get-50", "small", closed(GET, 50, follower=True)),
    Measure("watch-fanout", "small", streams.fan_out),
    Measure("watch-full", "small", streams.full_rate),
    Measure("lease-keepalive", "small", streams.keep_alives),
    Measure("tls-put-50", "tls", closed(PUT, 50)),
    Measure("tls-get-50", "tls", closed(GET, 50)),
    Measure("value-64k", "values", closed(one(partial(Keys.put, value_bytes=MIB // 16)), 10, large=True)),
    Measure("value-1m", "values", closed(one(partial(Keys.put, value_bytes=MIB)), 10, large=True)),
    Measure("put-1m", "million", measure.counted),
    Measure("size-1m", "million", measure.sizes, steady="rss_mb"),
    Measure("count-1m", "million", measure.total),
    Measure("watch-catchup", "million", streams.catch_up),
    Measure("restart-1m", "million", measure.restart, steady="restart_s"),
    Measure("failover", "failover", failover.killed, steady="gap_ms"),
    Measure("h2load-put", "outside", partial(external.h2load, put=True)),
    Measure("h2load-get", "outside", partial(external.h2load, put=False)),
    Measure("check-perf-s", "outside", partial(external.check_perf, load="s"), once=True, steady="slowest_ms"),
    Measure("check-perf-m", "outside", partial(external.check_perf, load="m"), once=True, steady="slowest_ms"),
    Measure("check-perf-l", "outside", partial(external.check_perf, load="l"), once=True),
    Measure("check-perf-xl", "outside", partial(external.check_perf, load="xl"), once=True),
]
MEASURES: Final = {one.name: one for one in _MEASURES}

ROWS: Final = [
    Row("put-1", "put, 1 client", "put-1", 1.1, 1.3, p99=1.0),
    Row("put-50", "put, 50 clients", "put-50", 1.6, 2.0, p99=1.0),
    Row("put-1000", "put, 100 connections x 10", "put-1000", 2.0, 2.5, p99=1.0),
    Row("put-1m", "put, 1,000,000 new keys, 100 x 10", "put-1m", 2.0, 3.0, p99=0.5),
    Row("get-lin-50", "get linearizable, 50 clients", "get-lin-50", 1.4, 2.0, p99=1.0),
    Row("get-lin-1000", "get linearizable, 100 x 10", "get-lin-1000", 1.6, 2.5, p99=1.0),
    Row("get-ser-50", "get serializable, 50 clients", "get-ser-50", 1.1, 1.5, p99=1.0),
    Row("get-ser-1000", "get serializable, 100 x 10", "get-ser-1000", 1.3, 2.0, p99=1.0),
    Row("mix-50", "mix, 20 % puts, 50 clients", "mix-50", 1.6, 2.0, p99=1.0),
    Row("txn-50", "txn (compare, put), 50 clients", "txn-50", 1.5, 2.0, p99=1.0),
    Row("range-1000", "range of 1,000 keys, 10 clients", "range-1000", 0.8, 1.5, p99=1.0),
    Row("count-1m", "count of a prefix of 1,000,000, 1 client", "count-1m", 1.0, 10.0, p99=1.0),
    Row("follower-put-50", "put through a follower, 50 clients", "follower-put-50", 1.2, 1.6, p99=1.0),
    Row("follower-get-50", "get linearizable through a follower", "follower-get-50", 1.2, 1.6, p99=1.0),
    Row("watch-fanout", "events to 1,000 watchers", "watch-fanout", 1.2, 2.0),
    Row("watch-full", "events to 1 watcher at full put rate", "watch-full", 1.2, 2.0),
    Row("watch-catchup", "events from 500,000 revisions back", "watch-catchup", 1.2, 2.0),
    Row("lease-keepalive", "lease keep-alives, 50 streams", "lease-keepalive", 1.2, 2.0, p99=1.0),
    Row("tls-put-50", "TLS: put, 50 clients", "tls-put-50", 1.2, 1.6, p99=1.0),
    Row("tls-get-50", "TLS: get linearizable, 50 clients", "tls-get-50", 1.0, 1.3, p99=1.0),
    Row("value-64k", "put of 64 KiB, 10 clients", "value-64k", 0.8, 1.2, p99=1.0),
    Row("value-1m", "put of 1 MiB, 10 clients", "value-1m", 0.8, 1.2, p99=1.0),
    Row("rss-idle", "RSS per member, idle", "rss-idle", 2.5, 1.5, "rss_mb", "MB", lower=True),
    Row("rss-1m", "RSS per member at 1,000,000 keys", "size-1m", 0.5, 0.33, "rss_mb", "MB", lower=True),
    Row("rss-restart", "RSS per member, restarted with them", "restart-1m", 0.33, 0.25, "rss_mb", "MB", lower=True),
    Row("disk-1m", "disk per member at 1,000,000 keys", "size-1m", 0.9, 0.5, "disk_mb", "MB", lower=True),
    Row("restart-1m", "all restarted with them: first read", "restart-1m", 0.5, 0.25, "restart_s", "s", lower=True),
    Row("failover", "kill -9 of the leader: write gap", "failover", 0.75, 0.3, "gap_ms", "ms", lower=True),
    Row("cpu-put-1000", "CPU per put, 100 x 10, all members", "put-1000", 0.6, 0.4, "cpu_us", "us", lower=True),
    Row("put-latency", "p99 of puts begun at 2,000/s", "put-latency", 1.0, None, "p99_ms", "ms", lower=True),
    Row("fsync", "syncs per put, 1 client, all members", "fsync", metric="syncs_per_put", unit=""),
    Row("h2load-put", "h2load: put of one key, 100 x 10", "h2load-put"),
    Row("h2load-get", "h2load: get of one key, 100 x 10", "h2load-get"),
    Row("check-perf-s", "check perf s: slowest put", "check-perf-s", metric="slowest_ms", unit="ms", lower=True),
    Row("check-perf-m", "check perf m: slowest put", "check-perf-m", metric="slowest_ms", unit="ms", lower=True),
    Row("check-perf-l", "check perf l: puts of 8,000/s", "check-perf-l"),
    Row("check-perf-xl", "check perf xl: puts of 15,000/s", "check-perf-xl"),
    Row("peer-put-1", "PySyncObj, unsynced: put, 1", "put-1", other="pysyncobj"),
    Row("peer-put-50", "PySyncObj, unsynced: put, 50", "put-50", other="pysyncobj"),
    Row("peer-put-1000", "PySyncObj, unsynced: put, 1000", "put-1000", other="pysyncobj"),
]
LONG: Final = frozenset(f"check-perf-{load}" for load in ("s", "m", "l", "xl"))  # a minute each, whatever the effort
IN_FLIGHT: Final = {"put-1": 1, "put-50": 50, "put-1000": 1000}  # of the rows that PySyncObj has too


def chosen(text: str, rows: list[Row] = ROWS) -> list[Row]:
    """Rows by a comma list of names, or of beginnings of names. Raises ValueError with what there is."""
    if not text:
        return rows
    names: set[str] = set()
    for part in text.split(","):
        wanted = part.strip()
        exact = {row.name for row in rows if row.name == wanted}
        found = exact or {row.name for row in rows if wanted and row.name.startswith(wanted)}
        if not found:
            raise ValueError(f"there is no row {wanted!r}; there are: {', '.join(row.name for row in rows)}")
        names |= found
    return [row for row in rows if row.name in names]
