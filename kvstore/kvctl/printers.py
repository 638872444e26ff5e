"""Results on stdout, one function per kind of result, byte for byte as etcdctl 3.5 prints them.

Its JSON is that of Go's structs: their field order and names, empty fields left out. A table of keys is ours.
"""

from typing import Any

from kvstore.client.types import (
    Alarm,
    Change,
    DeleteResult,
    Downgrade,
    Event,
    GetResult,
    Header,
    KeyValue,
    Member,
    OpResult,
    PutResult,
    TxnResult,
    WatchResponse,
)
from kvstore.kvctl.formats import base64_text, present, quote, write, write_json, write_table
from kvstore.kvctl.settings import WriteOut


def header_json(header: Header) -> dict[str, Any]:
    return present(
        cluster_id=header.cluster_id,
        member_id=header.member_id,
        revision=header.revision,
        raft_term=header.raft_term,
    )


def member_json(member: Member) -> dict[str, Any]:
    return present(
        ID=member.id,
        name=member.name,
        peerURLs=list(member.peer_urls),
        clientURLs=list(member.client_urls),
        isLearner=member.is_learner,
    )


def write_members_json(header: Header, members: tuple[Member, ...], **fields: Any) -> None:
    """The answer to any question or change about the members."""
    write_json({"header": header_json(header), **fields, **present(members=[member_json(one) for one in members])})


def write_alarms(header: Header, alarms: tuple[Alarm, ...], write_out: WriteOut) -> None:
    if write_out is WriteOut.JSON:
        types = {"NOSPACE": 1, "CORRUPT": 2}
        found = [present(memberID=alarm.member_id, alarm=types.get(alarm.type, 0)) for alarm in alarms]
        write_json({"header": header_json(header), **present(alarms=found)})
    elif write_out is WriteOut.TABLE:
        write_table(("MEMBER ID", "ALARM"), [(f"{alarm.member_id:x}", alarm.type) for alarm in alarms])
    elif write_out is WriteOut.FIELDS:
        header_fields(header)
        for alarm in alarms:
            write(f'"MemberID" : {alarm.member_id}')
            write(f'"AlarmType" : {alarm.type}')
            write()
    else:
        for alarm in alarms:
            member = f"memberID:{alarm.member_id} " if alarm.member_id else ""
            write(f"{member}alarm:{alarm.type} ")


def write_downgrade(result: Downgrade, action: str, write_out: WriteOut) -> None:
    if write_out is WriteOut.JSON:
        write_json({"header": header_json(result.header), **present(version=result.version)})
    else:
        write(f"Downgrade {action} success, cluster version {result.version}")


def kv_json(kv: KeyValue | None) -> dict[str, Any] | None:
    if kv is None:
        return None
    return present(
        key=base64_text(kv.key),
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        value=base64_text(kv.value),
        lease=kv.lease,
    )


def result_json(result: OpResult) -> dict[str, Any]:
    # The header of a nested txn is all zeros: an object without fields, which Go does not leave out.
    header = {"header": header_json(result.header)}
    if isinstance(result, GetResult):
        return header | present(kvs=[kv_json(kv) for kv in result.kvs], more=result.more, count=result.count)
    if isinstance(result, PutResult):
        return header | present(prev_kv=kv_json(result.prev_kv))
    if isinstance(result, DeleteResult):
        return header | present(deleted=result.deleted, prev_kvs=[kv_json(kv) for kv in result.prev_kvs])
    responses = [{"Response": {_FIELDS[type(op)]: result_json(op)}} for op in result.responses]
    return header | present(succeeded=result.succeeded, responses=responses)


_FIELDS: dict[type[OpResult], str] = {
    GetResult: "response_range",
    PutResult: "response_put",
    DeleteResult: "response_delete_range",
    TxnResult: "response_txn",
}


def header_fields(header: Header) -> None:
    write(f'"ClusterID" : {header.cluster_id}')
    write(f'"MemberID" : {header.member_id}')
    write(f'"Revision" : {header.revision}')
    write(f'"RaftTerm" : {header.raft_term}')


def kv_fields(kv: KeyValue, prefix: str = "") -> None:
    write(f'"{prefix}Key" : {quote(kv.key)}')
    write(f'"{prefix}CreateRevision" : {kv.create_revision}')
    write(f'"{prefix}ModRevision" : {kv.mod_revision}')
    write(f'"{prefix}Version" : {kv.version}')
    write(f'"{prefix}Value" : {quote(kv.value)}')
    write(f'"{prefix}Lease" : {kv.lease}')


def result_fields(result: OpResult) -> None:
    header_fields(result.header)
    if isinstance(result, GetResult):
        for kv in result.kvs:
            kv_fields(kv)
        write(f'"More" : {_bool(result.more)}')
        write(f'"Count" : {result.count}')
    elif isinstance(result, PutResult):
        if result.prev_kv is not None:
            kv_fields(result.prev_kv, "Prev")
    elif isinstance(result, DeleteResult):
        write(f'"Deleted" : {result.deleted}')
        for kv in result.prev_kvs:
            kv_fields(kv, "Prev")
    else:
        write(f'"Succeeded" : {_bool(result.succeeded)}')
        for op in result.responses:
            result_fields(op)


def result_simple(result: OpResult) -> None:
    if isinstance(result, GetResult):
        for kv in result.kvs:
            kv_simple(kv)
    elif isinstance(result, PutResult):
        write("OK")
        if result.prev_kv is not None:
            kv_simple(result.prev_kv)
    elif isinstance(result, DeleteResult):
        write(str(result.deleted))
        for kv in result.prev_kvs:
            kv_simple(kv)
    else:
        write("SUCCESS" if result.succeeded else "FAILURE")
        for op in result.responses:
            write()
            result_simple(op)


def kv_simple(kv: KeyValue) -> None:
    write(kv.key)
    write(kv.value)


def write_result(result: OpResult, write_out: WriteOut) -> None:
    if write_out is WriteOut.JSON:
        write_json(result_json(result))
    elif write_out is WriteOut.FIELDS:
        result_fields(result)
    else:
        result_simple(result)


def kvs_table(result: GetResult) -> None:
    rows = [
        (
            quote(kv.key)[1:-1],
            quote(kv.value)[1:-1],
            str(kv.create_revision),
            str(kv.mod_revision),
            str(kv.version),
            f"{kv.lease:x}",
        )
        for kv in result.kvs
    ]
    write_table(("KEY", "VALUE", "CREATE REVISION", "MOD REVISION", "VERSION", "LEASE"), rows)


def event_json(event: Event) -> dict[str, Any]:
    return present(type=event.type == "DELETE" and 1, kv=kv_json(event.kv), prev_kv=kv_json(event.prev_kv))


def watch_json(response: WatchResponse) -> None:
    write_json(
        {
            "Header": header_json(response.header),
            "Events": [event_json(event) for event in response.events],
            "CompactRevision": 0,
            "Canceled": False,
            "Created": False,
        }
    )


def watch_fields(response: WatchResponse) -> None:
    header_fields(response.header)
    for event in response.events:
        write(f'"Type" : {event.type}')
        if event.prev_kv is not None:
            kv_fields(event.prev_kv, "Prev")
        kv_fields(event.kv)


def watch_simple(response: WatchResponse) -> None:
    if response.is_progress:
        write(f"progress notify: {response.header.revision}")
    for event in response.events:
        write(event.type)
        if event.prev_kv is not None:
            kv_simple(event.prev_kv)
        kv_simple(event.kv)


def change_json(change: Change) -> dict[str, Any]:
    return {
        **event_json(change.event),
        "time_ns": change.time_ns,
        "index": change.index,
        "term": change.term,
        "member_id": change.member_id,
        **present(user=change.user, request_id=change.request_id),
    }


def _bool(value: bool) -> str:
    return str(value).lower()
