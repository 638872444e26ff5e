"""The numbers of a report, and its page, from hand-made runs."""

from html.parser import HTMLParser
from typing import Any

import pytest

from tests.jepsen.judge import LATE_SECONDS, RESUMED_SECONDS, Verdict, judge_availability
from tests.jepsen.page import page
from tests.jepsen.record import Call
from tests.jepsen.report import by_class, longest_gap, quantiles, unavailability

SECOND = 10**9
VOID = {"meta", "rect", "path", "polyline", "i"}


def write(at: float, took: float = 0.01, **more: Any) -> Call:
    """An acknowledged write that returned `at` seconds after the start, which is at second 100."""
    returned = int((100 + at) * SECOND)
    call = Call(1, "write", "k", "1", int(returned - took * SECOND), "ok", member="m1", **more)
    call.returned = call.noticed = returned
    return call


def fault(name: str, began: float, ended: float) -> dict[str, Any]:
    return {"name": name, "what": "m1>m2", "began": began, "ended": ended, "beside": "", "unavailable": 0.0}


def test_quantiles() -> None:
    assert quantiles([]) == {"count": 0}
    assert quantiles([3.0]) == {"count": 1, "p50": 3.0, "p99": 3.0, "max": 3.0}
    assert quantiles(map(float, range(200, 0, -1))) == {"count": 200, "p50": 100.0, "p99": 198.0, "max": 200.0}


def test_a_gap_counts_from_the_fault_on() -> None:
    assert longest_gap([], 1.0, 4.0) == 3.0
    assert longest_gap([0.0, 1.5, 3.9, 9.0], 1.0, 4.0) == pytest.approx(2.4)


def test_a_fault_is_not_blamed_for_the_next_one_nor_for_the_end() -> None:
    writes = [write(at / 10) for at in range(100) if not 32 < at < 70]  # none from 3.2 to 7.0
    faults = [fault("first", 1.0, 2.0), fault("second", 3.0, 5.0), fault("last", 8.0, 9.0)]
    unavailability(writes, faults, 100 * SECOND, 110 * SECOND)
    assert [one["unavailable"] for one in faults] == pytest.approx([0.1, 3.8, 0.1])
    assert by_class(faults)["second"]["max"] == pytest.approx(3.8)
    unavailability(writes, [], 100 * SECOND, 110 * SECOND)


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID - {"i"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID - {"i"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_nobody_has_written_makes_no_time_available() -> None:
    def done(f: str, at: float, asked: Any = None) -> Call:
        call = write(at)
        call.f, call.asked = f, asked
        return call

    found = [write(0.5), done("stale", 1.0), done("unlock", 1.1), done("txn", 2.0, [["r", "key", None]])]
    found += [done("txn", 2.5, [["append", "key", 1]]), write(3.0)]
    faults = [fault("isolate", 0.4, 3.5)]
    unavailability(found, faults, 100 * SECOND, 104 * SECOND)
    assert faults[0]["unavailable"] == pytest.approx(2.0)


def test_writes_that_resume_late_fail_by_what_was_done() -> None:
    def after(name: str, seconds: float) -> Verdict:
        return judge_availability([fault(name, 0.0, 5.0) | {"what": "m1", "unavailable": seconds}])

    assert after("isolate", RESUMED_SECONDS - 0.1).result == "pass"
    assert "1 within 3.5s" in after("isolate", RESUMED_SECONDS - 0.1).about
    assert after("isolate", LATE_SECONDS - 0.1).result == "pass"
    assert after("isolate", LATE_SECONDS + 0.1).result == "FAIL"
    assert after("clock-speed-all", LATE_SECONDS + 0.1).result == "pass"  # its clocks may be slow
    assert after("kill-all", LATE_SECONDS + 0.1).result == "pass"  # no majority is left
    assert after("fp-stall-leader", LATE_SECONDS + 0.1).result == "FAIL"  # a leader that stalls is soon none


def test_the_page_tells_what_failed_first_and_shows_hostile_text_as_text() -> None:
    unknown = write(2.0, error="UNAVAILABLE: <script>alert(1)</script>")
    unknown.type, unknown.returned = "info", 2**62
    report = {
        "command": "make jepsen SEED=7",
        "date": "2026-01-01",
        "commit": "abc",
        "server": "kvstore",
        "options": {"workload": "register", "seed": 7, "members": 3, "clients": 2, "backend": "netns"},
        "started_ns": 100 * SECOND,
        "seconds": 10.0,
        "capabilities": {"veth": "yes"},
        "skipped": {"flaky": "no such match"},
        "verdicts": [
            {"name": "agreement", "result": "pass", "complaints": [], "about": ""},
            {"name": "linearizable", "result": "FAIL", "complaints": ["<b>stale</b> read"], "about": ""},
        ],
        "faults": [fault("kill-leader", 1.0, 3.0)],
        "leaders": [{"member": "m1", "state": "leader", "term": 4, "began": 0.0, "ended": 9.0}],
    }
    text = page(report, [write(0.5), unknown, write(9.0)])
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    seen = " ".join(parser.text)
    assert "Not passed: linearizable" in seen
    assert seen.index("<b>stale</b> read") < seen.index("agreement")
    assert "make jepsen SEED=7" in seen
    assert "no such match" in seen
    assert "<script" not in text
    assert "http" not in text.replace("https", "http")  # nothing from elsewhere
