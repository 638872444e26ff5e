"""The keyword options of the calls, shared by Client's methods and the operations of a txn."""

from typing import Literal, TypedDict

from kvstore.client.txn import Order, SortBy


class GetOptions(TypedDict, total=False):
    prefix: bool
    from_key: bool
    revision: int  # 0: the newest
    limit: int  # 0: no limit
    sort_by: SortBy
    order: Order
    keys_only: bool
    count_only: bool
    serializable: bool  # from the member's own state, which may be behind
    min_mod_revision: int
    max_mod_revision: int
    min_create_revision: int
    max_create_revision: int


class PutOptions(TypedDict, total=False):
    lease: int
    prev_kv: bool
    ignore_value: bool
    ignore_lease: bool


class DeleteOptions(TypedDict, total=False):
    prefix: bool
    from_key: bool
    prev_kv: bool


class WatchOptions(TypedDict, total=False):
    prefix: bool
    from_key: bool
    start_revision: int  # 0: from now on
    prev_kv: bool
    progress_notify: bool  # report now and then how far the watch has come, also without events
    only: Literal["PUT", "DELETE"] | None
