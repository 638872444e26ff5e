"""/debug/vars: what this process is and what its node of raft knows, as Go's expvar writes it and etcd names it."""

import json
import os
import resource
import sys
from typing import TYPE_CHECKING, Any, Final

from kvstore.version import VERSION

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

CONTENT_TYPE: Final = "application/json; charset=utf-8"


def variables(server: "KvServer") -> str:
    """One a line. etcd's `memstats` are of Go's memory; `kvstore` is ours."""
    found = {
        "cmdline": sys.orig_argv,
        "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "kvstore": {
            "version": VERSION,
            "pid": os.getpid(),
            "boot": server.identity.boot,
            "revision": server.store.current_revision,
            "compact_revision": server.store.compact_revision,
            "waiting_requests": server.waiting_requests,
            "leases": len(server.leases.lessor),
            "watchers": server.hub.watcher_count,
        },
        "raft.status": _raft(server),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _raft(server: "KvServer") -> dict[str, Any]:
    status = server.status()
    return {
        "id": f"{status.node_id:x}",
        "term": status.term,
        "vote": f"{status.vote:x}",
        "commit": status.commit,
        "lead": f"{status.leader_id:x}",
        "raftState": _state(status.role.name),
        "applied": server.store.applied_index,
        "progress": {
            f"{member:x}": {
                "match": progress.match_index,
                "next": progress.next_index,
                "state": _state(progress.state.name),
            }
            for member, progress in status.progress.items()
        },
    }


def _state(name: str) -> str:
    return "State" + name.title().replace("_", "")
