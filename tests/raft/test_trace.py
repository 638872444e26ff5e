"""The three readers of the core's facts say the same."""

import json

from raft.trace import JsonlTracer, ListTracer, LogTracer


def test_each_tracer_tells_node_term_and_fact() -> None:
    lines: list[str] = []
    logged: list[tuple[str, str, int]] = []

    def log(event: str, *, node: str, term: int) -> None:
        logged.append((event, node, term))

    listed = ListTracer()
    for tracer in (listed, LogTracer(log), JsonlTracer(lines.append, lambda: 17)):
        tracer.emit(0xAB, 3, "became leader")
    assert listed.lines == ["nab t3 became leader"]
    assert logged == [("became leader", "ab", 3)]
    assert [json.loads(line) for line in lines] == [{"ns": 17, "node": "ab", "term": 3, "fact": "became leader"}]
    assert lines[0].endswith("}\n")
