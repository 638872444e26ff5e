"""The Python client: `from kvstore.client import Client`. Its rules are in kvstore/client/client.py.

Names load on first use, so that `import kvstore.client.errors` alone brings no grpc.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.client import errors, txn
    from kvstore.client.client import Client
    from kvstore.client.election import Election
    from kvstore.client.errors import ClientError
    from kvstore.client.lease import KeepAlive
    from kvstore.client.lock import Lock
    from kvstore.client.session import Session
    from kvstore.client.types import (
        Alarm,
        AlarmList,
        Change,
        CompactResult,
        DeleteResult,
        Downgrade,
        Event,
        GetResult,
        HashKv,
        Header,
        KeyValue,
        LeaseGrant,
        LeaseKept,
        LeaseList,
        LeaseRevoked,
        LeaseTtl,
        Member,
        MemberList,
        PutResult,
        SnapshotPart,
        Status,
        TxnResult,
        WatchResponse,
    )
    from kvstore.client.watch import Watch

__all__ = [
    "Alarm",
    "AlarmList",
    "Change",
    "Client",
    "ClientError",
    "CompactResult",
    "DeleteResult",
    "Downgrade",
    "Election",
    "Event",
    "GetResult",
    "HashKv",
    "Header",
    "KeepAlive",
    "KeyValue",
    "LeaseGrant",
    "LeaseKept",
    "LeaseList",
    "LeaseRevoked",
    "LeaseTtl",
    "Lock",
    "Member",
    "MemberList",
    "PutResult",
    "Session",
    "SnapshotPart",
    "Status",
    "TxnResult",
    "Watch",
    "WatchResponse",
    "errors",
    "txn",
]

_MODULES = {
    "Client": "client",
    "ClientError": "errors",
    "Election": "election",
    "KeepAlive": "lease",
    "Lock": "lock",
    "Session": "session",
    "Watch": "watch",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "txn"):
        return importlib.import_module(f"kvstore.client.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'kvstore.client' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvstore.client.{_MODULES.get(name, 'types')}"), name)
