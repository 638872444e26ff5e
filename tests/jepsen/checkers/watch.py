"""Watches as lines of the history, and judged by tests.e2e.watches.

    {"process": "w3", "type": "invoke", "f": "watch", "key": "17", "value": {"key": ..., "start": 40, ...}}
    {"process": "w3", "type": "info", "f": "watch", "key": "17", "value": {"events": [...]}, "revision": 52}

`key` is the number of the watch. An event is [kind, key, value, create_revision, mod_revision, version, previous], the
last one null or [value, create_revision, mod_revision, version].
"""

from __future__ import annotations

from typing import Any

from kvstore.pb import kv_pb2, rpc_pb2
from tests.e2e.checkers import Truth
from tests.e2e.watches import WatchLog, check_watch_logs
from tests.jepsen.record import Call

FLAGS = ("created", "canceled", "fragment")


def request_of(request: rpc_pb2.WatchCreateRequest) -> dict[str, Any]:
    return {
        "key": request.key.decode(),
        "range_end": request.range_end.decode(),
        "start": request.start_revision,
        "prev_kv": request.prev_kv,
        "fragment": request.fragment,
        "filters": list(request.filters),
    }


def response_of(response: rpc_pb2.WatchResponse) -> dict[str, Any]:
    found: dict[str, Any] = {flag: True for flag in FLAGS if getattr(response, flag)}
    if response.compact_revision:
        found["compact_revision"] = response.compact_revision
    if response.events:
        found["events"] = [_event_of(event) for event in response.events]
    return found


def _event_of(event: kv_pb2.Event) -> list[Any]:
    kv = event.kv
    previous = _state(event.prev_kv) if event.HasField("prev_kv") else None
    return [kv_pb2.Event.EventType.Name(event.type), kv.key.decode(), *_state(kv), previous]


def _state(kv: kv_pb2.KeyValue) -> list[Any]:
    return [kv.value.decode(), kv.create_revision, kv.mod_revision, kv.version]


def logs_of(lines: list[dict[str, Any]]) -> list[WatchLog]:
    logs: dict[str, WatchLog] = {}
    for line in lines:
        if line["f"] != "watch":
            continue
        value = line["value"]
        if line["type"] == "invoke":
            request = rpc_pb2.WatchCreateRequest(
                key=value["key"].encode(),
                range_end=value["range_end"].encode(),
                start_revision=value["start"],
                prev_kv=value["prev_kv"],
                fragment=value["fragment"],
                filters=value["filters"],
            )
            logs[line["key"]] = WatchLog(line["member"], request)
        else:
            logs[line["key"]].responses.append(_response(value, line["revision"]))
    return list(logs.values())


def _response(value: dict[str, Any], revision: int) -> rpc_pb2.WatchResponse:
    response = rpc_pb2.WatchResponse(
        events=[_event(one) for one in value.get("events", ())],
        compact_revision=value.get("compact_revision", 0),
        **{flag: True for flag in FLAGS if value.get(flag)},
    )
    response.header.revision = revision
    return response


def _event(value: list[Any]) -> kv_pb2.Event:
    kind, key, *current, previous = value
    event = kv_pb2.Event(type=kind, kv=_kv(key, current))
    if previous is not None:
        event.prev_kv.CopyFrom(_kv(key, previous))
    return event


def _kv(key: str, found: list[Any]) -> kv_pb2.KeyValue:
    value, created, modified, version = found
    return kv_pb2.KeyValue(
        key=key.encode(), value=value.encode(), create_revision=created, mod_revision=modified, version=version
    )


def check_watch(lines: list[dict[str, Any]], calls: list[Call], truth: Truth | None) -> list[str]:
    assert truth is not None, "without the members' history nobody knows"
    logs = logs_of(lines)
    asked = [call.asked for call in calls if call.f == "compact"]
    compacted = max([truth.compact_revision, *asked])  # faults compact, too
    told = sum(len(response.events) for log in logs for response in log.responses)
    complaints = check_watch_logs(logs, truth, compacted)
    return complaints if told else [*complaints, f"{len(logs)} watches were told nothing"]
