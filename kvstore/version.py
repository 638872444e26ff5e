"""Versions: our own, and the one that clients of etcd are told.

Clients choose features by the reported version, and some split it at the dots and call int() on each
part: digits only. 3.6.0 is the oldest one whose answers carry all fields that we fill.
"""

from typing import Final

VERSION: Final = "0.1.0"  # ours; the same as in pyproject.toml
ETCD_VERSION: Final = "3.6.0"  # "version" in StatusResponse and in GET /version
CLUSTER_VERSION: Final = "3.6.0"
STORAGE_VERSION: Final = "3.6.0"
