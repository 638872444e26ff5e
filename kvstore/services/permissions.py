"""What services ask about their callers beyond what the front has asked for each method (kvstore/auth/methods.py)."""

from typing import TYPE_CHECKING, Any

from kvstore.auth.table import AuthTable, Identity
from kvstore.errors import KvError
from kvstore.mvcc.leases import keys_of
from kvstore.rpc.generated import ContextCaller

if TYPE_CHECKING:
    from kvstore.mvcc.store import ReadView
    from kvstore.server.server import KvServer


def check(refused: KvError | None) -> None:
    """Raises it."""
    if refused is not None:
        raise refused.fresh()


def identify(server: "KvServer", context: Any) -> Identity:
    """Who a call of generated code is of. context: a ServicerContext of either front. Raises KvError."""
    return server.auth.identify(ContextCaller(context))


async def check_leases(view: "ReadView", who: Identity, leases: list[int], *, write: bool) -> None:
    """Whether the caller may read, or write, every key of the leases. In slices. Raises KvError."""
    table: AuthTable = view.auth
    check(table.refuse_user(who))
    if not table.enabled or table.is_root(who.user):
        return
    for lease in leases:
        for key in await keys_of(view, lease):
            check(table.refuse_write(who, key) if write else table.refuse_read(who, key))
